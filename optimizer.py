"""Muon for the matrices of the layers, AdamW for the embedding and the gains of the norms.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces a matrix's
momentum by the nearest semi-orthogonal matrix, so that an update moves all directions alike, and not mostly
the few that dominate the gradient. Scaled to the size of AdamW's updates (Liu et al. 2025, arXiv:2502.16982),
both share one learning rate; the embedding, which is also the head, may learn at a multiple of it.
PyTorch's Muon, of 2.9 and later, takes one matrix at a time and always multiplies in bfloat16.
"""

import torch

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # s -> a s + b s^3 + c s^5 takes singular values to about 1
ADAMW_UPDATE_RMS = 0.2  # Liu et al. 2025


def make_optimizers(model, weight_decay: float, embedding_rate: float, dtype=torch.float32, name="muon"):
    """[Muon, AdamW], or named "adamw" [AdamW] alone; they hold every parameter of `model` once. Gains are not
    decayed.

    Each group has an "lr_scale", by which its learning rate is multiplied; the embedding's is
    `embedding_rate`. dtype: of Muon's matrix products, which tolerate bfloat16; all that is kept is float32.
    """
    named = list(model.named_parameters())  # a tied head has one name, the embedding's
    matrices = [parameter for name, parameter in named if parameter.dim() == 2 and ".layers." in name]
    embedding_and_head = [
        parameter for name, parameter in named if parameter.dim() == 2 and ".layers." not in name
    ]
    gains = [parameter for _, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": embedding_and_head, "weight_decay": weight_decay, "lr_scale": embedding_rate},
        {"params": gains, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    if name == "adamw":
        groups.append({"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0})
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    return [adamw] if name == "adamw" else [Muon(matrices, weight_decay, dtype), adamw]


@torch.no_grad()
def update(optimizers, lr: float, is_sound: torch.Tensor) -> None:
    """One step of each optimizer at the learning rate `lr`.

    Where the boolean `is_sound` is false, gradients and rate become 0: weights stay, momenta decay. It is a
    tensor of the device, and so is the rate: an `if` would make each step wait for the device.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(~is_sound, 0.0)
            group["lr"] = torch.where(is_sound, lr * group["lr_scale"], 0.0)
        optimizer.step()


def orthogonalize(matrices: torch.Tensor, dtype=torch.float32, coefficients=NEWTON_SCHULZ) -> torch.Tensor:
    """The semi-orthogonal matrices nearest to (N, rows, columns), roughly: singular values of 0.7 to 1.2."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.mT  # the smaller one of the two; then x = a x + (b gram + c gram gram) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """W -= lr * (0.2 sqrt(max(rows, columns)) * orthogonalize(Nesterov momentum) + weight_decay * W)."""

    def __init__(
        self, matrices, weight_decay, dtype=torch.float32, momentum=0.95, orthogonalize=orthogonalize
    ):
        defaults = {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum, "lr_scale": 1.0}
        super().__init__(matrices, defaults)
        self.dtype, self.orthogonalize = dtype, orthogonalize

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                self.step_matrices(matrices, group, ADAMW_UPDATE_RMS * max(shape) ** 0.5)

    def step_matrices(self, matrices: list, group: dict, scale: float):
        """One update of matrices that share a shape."""
        gradients, lr, momentum = [matrix.grad for matrix in matrices], group["lr"], group["momentum"]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)  # an average: orthogonalize ignores the scale
        ahead = torch._foreach_lerp(gradients, momenta, momentum)  # Nesterov
        directions = self.orthogonalize(torch.stack(ahead), self.dtype) * (-lr * scale)
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions.unbind()))
