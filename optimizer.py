"""Muon for the matrices of the layers, AdamW for the embedding and the gains of the norms.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces the momentum of a matrix by the
nearest semi-orthogonal matrix, so that an update moves all directions alike and not mostly the few that dominate the gradient.
Scaled to the size that AdamW's updates have (Liu et al. 2025, arXiv:2502.16982), both share one learning rate and decay; the
embedding, which is also the head, may learn at a multiple of that rate.

PyTorch has a Muon of its own since 2.9. This one works with older releases too, keeps float32 where bfloat16 is slow, and
takes all matrices of one shape at once.
"""

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: drives singular values to about 1 in 5 iterations
ITERATIONS = 5
ADAMW_UPDATE_RMS = 0.2  # Liu et al. 2025


def make_optimizers(model, learning_rate, weight_decay, dtype=torch.float32, embedding_rate=1.0):
    """[Muon, AdamW], which together hold every parameter of `model` once; gains are not decayed.

    Each of AdamW's groups has a "rate_scale", by which the loop multiplies its learning rate; the embedding's is `embedding_rate`.

    dtype: of Muon's matrix products, which tolerate bfloat16; all that is kept is float32.
    """
    layers = [parameter for parameter in model.model.layers.parameters() if parameter.dim() == 2]
    in_layers = {id(parameter) for parameter in layers}
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_layers]
    groups = [
        {"params": [parameter for parameter in others if parameter.dim() == 2], "weight_decay": weight_decay, "rate_scale": embedding_rate},
        {"params": [parameter for parameter in others if parameter.dim() < 2], "weight_decay": 0.0, "rate_scale": 1.0},
    ]
    fused = others[0].device.type in ("cuda", "cpu")
    return [Muon(layers, learning_rate, weight_decay, dtype), torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.95), fused=fused)]


def orthogonalize(matrices, dtype=torch.float32):
    """The semi-orthogonal matrices nearest to `matrices` (N, rows, columns), roughly: singular values between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """W -= lr * (0.2 sqrt(max(rows, columns)) * orthogonalize(nesterov momentum) + weight_decay * W).

    Where `found_inf`, a tensor, is 1, a step changes nothing, as with PyTorch's fused AdamW: so that an update can be dropped
    on the device, without waiting for it.
    """

    def __init__(self, matrices, lr, weight_decay, dtype=torch.float32, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        self.found_inf = None

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                self.update(matrices, group, ADAMW_UPDATE_RMS * max(shape) ** 0.5)

    def update(self, matrices, group, scale):
        """One update of matrices that share a shape."""
        momenta = []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            momenta.append(state["momentum"])
        gradients, lr = [matrix.grad for matrix in matrices], group["lr"]
        if self.found_inf is not None:
            # moving a momentum towards itself leaves it, whatever the gradient was
            gradients = [torch.where(self.found_inf > 0, momentum, gradient) for momentum, gradient in zip(momenta, gradients)]
            lr = lr * (1 - self.found_inf)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov: the momentum after one more such gradient
        directions = orthogonalize(torch.stack(ahead), self.dtype) * (-lr * scale)
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions.unbind()))
