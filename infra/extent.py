"""How long a run is, and what one can say of it before its first step."""

from dataclasses import dataclass

import numpy as np
import torch

from infra.device import peak_flops
from infra.distributed import Process
from infra.jsonl import count_kinds

TWENTY_MINUTES = 20 * 60 * 110e9  # floating-point operations, of two EPYC cores in float32


@dataclass(frozen=True)
class Extent:
    """How long a run is, and what its speed is measured against."""

    total_steps: int
    steps_per_epoch: int
    peak_tokens_per_second: float | None  # with all of the devices' arithmetic in use, where that is known


def extent_of(model, rows, config, process: Process, dtype: torch.dtype) -> Extent:
    peak = peak_flops(process.device, dtype)
    peak_tokens = peak * process.world / token_flops(model, mean_context(rows.lengths)) if peak else None
    return Extent(config.total_steps(len(rows)), config.steps_per_epoch(len(rows)), peak_tokens)


def mean_context(lengths: np.ndarray) -> float:
    """Positions that a token sees, itself included, on average over the tokens of these segments."""
    lengths = lengths.astype(np.float64)
    return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def token_flops(model, mean_context: float) -> float:
    """Floating-point operations to train on one token that sees `mean_context` positions (Chowdhery et al.
    2022, arXiv:2204.02311): 2 for each parameter and 4 for each layer, channel and position seen; three
    times that, since the backward pass costs twice the forward pass. A tied embedding counts once, as the
    head."""
    attention = 4 * model.config.num_hidden_layers * model.config.hidden_size * mean_context
    return 3 * (2 * model.num_parameters() + attention)


def is_long(model, rows, config) -> bool:
    """Whether two CPU cores take more than 20 minutes, about: they win back what compiling costs."""
    per_step = config.rows_per_step * rows.row_length * token_flops(model, mean_context(rows.lengths))
    return config.total_steps(len(rows)) * per_step > TWENTY_MINUTES


def describe(model, rows, config, where: str) -> str:
    """One line on the model, the data and the steps."""
    bad = rows.cache.about["bad_kinds"]
    bad_lines = f"{sum(bad.values())} bad lines" + (f" ({count_kinds(bad)})" if bad else "")
    return (
        f"{config.stage} from {config.init_from or 'random weights'}: {model.num_parameters():,} parameters"
        f" on {where} | {len(rows):,} rows of {rows.row_length}, {rows.padding_share:.1%} padding,"
        f" {rows.truncated} documents truncated, {bad_lines} skipped"
        f" | {describe_steps(config, len(rows))}"
    )


def describe_steps(config, num_rows: int) -> str:
    steps = config.total_steps(num_rows)
    return f"{steps} steps of {config.rows_per_step} rows, {config.warmup(steps)} of warm-up"
