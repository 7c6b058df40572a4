"""When the numbers of a run make no sense: which updates are dropped, and when it has to stop."""

import math

import torch

from infra.checkpoint import has_checkpoint
from infra.cli import UserError

DIVERGED = 2  # times the loss of guessing, log(vocabulary): an update from there on would only do harm
MOST_DROPPED_IN_A_ROW = 5
HALVINGS = 16  # of fp16's loss scale, from 2^16 to 1: that is how it finds its range
CHECK_EVERY = 20  # steps, at most: to read the counts is to wait for the device


class Diverged(UserError):
    """The loss or the gradients of a run make no sense any more."""


class Watch:
    """Counts the updates to drop, on the device itself, so that no step has to wait for it."""

    def __init__(self, vocab_size: int, device: torch.device, is_fp16: bool):
        self.guessing = math.log(vocab_size)
        self.worst_loss = DIVERGED * self.guessing
        self.is_fp16, self.most_in_a_row = is_fp16, MOST_DROPPED_IN_A_ROW + HALVINGS * is_fp16
        self.counts = torch.zeros(2, dtype=torch.long, device=device)  # dropped: in all, in a row

    def accepts(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """A boolean tensor (): False where the update of this step is to be dropped, which is counted."""
        is_sound = torch.isfinite(grad_norm) & (loss < self.worst_loss)  # false for a loss that is NaN
        self.counts[0] += ~is_sound
        self.counts[1] = torch.where(is_sound, 0, self.counts[1] + 1)
        return is_sound

    @property
    def dropped(self) -> int:
        """Updates dropped so far. Waits for the device."""
        return int(self.counts[0])

    def check(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor, config) -> None:
        """Raises Diverged when too many updates in a row have been dropped. Waits for the device."""
        in_a_row = int(self.counts[1])
        if in_a_row > self.most_in_a_row:
            found = f"step {step}: loss {float(loss):.4g}, gradient norm {float(grad_norm):.4g}"
            cause = self.likely_cause(float(loss))
            raise Diverged(f"{found}, {in_a_row} updates in a row dropped. {cause}. {advice(config)}")

    def likely_cause(self, loss: float) -> str:
        if math.isfinite(loss) and loss >= self.worst_loss:
            return f"Likely cause: it has diverged (guessing would cost {self.guessing:.1f})"
        if self.is_fp16:
            return "Likely cause: numbers too large for fp16: --dtype bf16 or fp32"
        return "Likely cause: weights grown too large, or a broken batch"


def not_saved(config) -> str:
    return (
        f"weights whose loss is more than {DIVERGED} times that of guessing are not saved. {advice(config)}"
    )


def advice(config) -> str:
    """What is left, and what may help."""
    folder = config.out_dir
    rate = f"--learning_rate (now {config.learning_rate:g})"
    lower = f"A lower {rate} or --grad_clip, or more --warmup_steps, may help"
    if not has_checkpoint(folder):
        return f"{folder} has no checkpoint yet. {lower}."
    again = f"--init_from {folder} and another --out_dir go on from it"
    return f"{folder} keeps the last good checkpoint. {lower}: {again}."
