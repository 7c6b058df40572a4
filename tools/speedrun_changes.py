"""What tools/speedrun.py changes, one thing at a time or several."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from infra.cli import UserError
from optimizer import NEWTON_SCHULZ, Muon, orthogonalize


@dataclass(frozen=True)
class Change:
    """One difference from the baseline. Progress is the share of the positions trained on, from 0 to 1."""

    config: dict = field(default_factory=dict)  # fields of TrainConfig
    optimizers: Callable = lambda ours, config: ours  # our optimizers, TrainConfig -> [optimizer, ...]
    schedule: Callable | None = None  # progress since warm-up -> part of the peak learning rate
    longest: Callable | None = None  # progress -> the longest segment of a text
    decay: Callable = lambda progress: 1.0  # part of the weight decay
    dropout: float = 0.0  # of what each attention and each MLP adds


def adamw_alone(optimizers, config):
    (matrices,), (embedding, gains) = (optimizer.param_groups for optimizer in optimizers)
    groups = [matrices, embedding | {"lr_scale": 1.0}, gains]  # each brings its own decay
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]


def other_muon(optimizers, config, **changes):
    """Our optimizers, with other arguments of Muon."""
    muon, adamw = optimizers
    return [Muon(muon.param_groups[0]["params"], config.weight_decay, muon.dtype, **changes), adamw]


def iterations(coefficients):
    """Muon whose `orthogonalize` has other coefficients, those of each iteration."""
    other = partial(orthogonalize, coefficients=coefficients)
    return Change(optimizers=partial(other_muon, orthogonalize=other))


CHANGES = {
    "baseline": Change(),
    **{f"AdamW alone, {x}e-3": Change({"learning_rate": x / 1000}, adamw_alone) for x in (2, 4, 8)},
    "momentum 0.9": Change(optimizers=partial(other_muon, momentum=0.9)),
    **{f"{n} iterations": iterations(NEWTON_SCHULZ[:n]) for n in (3, 4)},
    "cosine to 0": Change({"min_lr_ratio": 0.0}),
    "constant, last 40% linear to 0": Change(schedule=lambda p: min(1.0, (1 - p) / 0.4)),  # arXiv:2404.06395
    "constant, last 60% linear to 0": Change(schedule=lambda p: min(1.0, (1 - p) / 0.6)),
    **{f"decay {x}, to 0": Change({"weight_decay": x}, decay=lambda p: 1 - p) for x in (0.2, 0.4, 0.8)},
    **{f"dropout {x}": Change(dropout=x) for x in (0.1, 0.2)},
    "half the batch": Change({"batch_size": 4}),
    "pieces of 128, then 512": Change(longest=lambda p: 128 if p < 1 / 2 else 512),
}


def change_named(name: str) -> Change:
    """One of CHANGES, or several joined by " + ". Raises UserError where two of them change the same."""
    config, fields = {}, {}
    for part in name.split(" + "):
        if part not in CHANGES:
            raise UserError(f"--change {part!r} is unknown, expected all or some of: {'; '.join(CHANGES)}")
        found = vars(CHANGES[part])
        new = {key: value for key, value in found.items() if value != vars(CHANGES["baseline"])[key]}
        new.pop("config", None)
        if both := {*fields, *config} & {*new, *found["config"]}:
            raise UserError(f"--change {name!r}: found two changes of {', '.join(both)}, expected one")
        fields, config = fields | new, config | found["config"]
    return Change(config, **fields)
