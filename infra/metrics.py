"""The log of a run: a line per interval on the screen, the same numbers in metrics.jsonl and wandb."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path

from infra.cli import UserError
from infra.device import synchronize
from infra.distributed import Process
from infra.extent import Extent
from infra.files import named_disk_errors, write_text
from infra.resume import STATE

NO_SHARES = ("val_ppl", "entropy", "reply_tokens")
TIMING_METRICS = ("seconds", "tokens_per_second", "epoch_minutes_left", "mfu", "val_seconds")


class Log:
    """What a run tells. The first process alone prints and writes."""

    def __init__(self, config, process: Process, extent: Extent):
        self.config, self.process, self.extent = config, process, extent
        self.path = Path(config.out_dir) / "metrics.jsonl"
        self.last = {}  # the newest value of everything that was written
        self.tokens, self.seconds = 0, 0.0  # useful tokens; seconds without validating and saving
        self.losses, self.interval_tokens = [], 0  # of the interval: (loss, weight) of each step
        self.interval_start = self.pause_start = time.perf_counter()
        self.interval_seconds = 0.0
        self.wandb = start_wandb(config) if process.rank == 0 and config.use_wandb else None

    def print(self, text: str) -> None:
        if self.process.rank == 0:
            print(text, flush=True)

    def set_aside_earlier_run(self) -> None:
        """A new run begins a new metrics.jsonl and is not resumed from the one before; its files are kept."""
        if self.process.rank > 0:
            return
        files = (self.path, *(self.path.with_name(name) for name in (STATE, "report.html")))
        copies = ([file.with_stem(f"{file.stem}.before{n or ''}") for file in files] for n in count())
        free = next(pair for pair in copies if not any(copy.exists() for copy in pair))
        for file, copy in zip(files, free):
            if file.is_file():
                os.replace(file, copy)
                if file.name == STATE:
                    kept = f"the state of the one before is kept in {copy}"
                    self.print(f"without --resume this run starts anew; {kept}")

    def add(self, loss, weight: float, tokens: int) -> None:
        """Count one step: its loss (a tensor), total loss weight and useful tokens."""
        self.losses.append((loss, weight))
        self.interval_tokens += tokens
        self.tokens += tokens

    def interval(self, step: int, lr: float, grad_norm: float, dropped: int) -> None:
        """Write the mean loss and the speed of the interval that ends with this step."""
        synchronize(self.process.device)
        extent, steps = self.extent, len(self.losses)
        seconds = time.perf_counter() - self.interval_start
        self.seconds += seconds
        finite = [(loss, weight) for loss, weight in self.step_losses() if math.isfinite(loss)]
        mean = (
            sum(loss * weight for loss, weight in finite) / sum(weight for _, weight in finite)
            if finite
            else None
        )
        # max_steps may end the run before the epoch
        left_in_epoch = min(-step % extent.steps_per_epoch, extent.total_steps - step)
        speed = self.interval_tokens / seconds
        metrics = {
            "step": step,
            "epoch": (step - 1) // extent.steps_per_epoch + 1,
            "loss": mean,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens": self.tokens,
            "dropped": dropped,
            "seconds": self.seconds,
            "tokens_per_second": speed,
            "epoch_minutes_left": left_in_epoch * seconds / steps / 60,
        }
        parts = [f"loss {math.nan if mean is None else mean:.4f}", f"lr {lr:.2e}", f"grad {grad_norm:.2f}"]
        parts.append(f"{short_count(speed)} tok/s")
        if extent.peak_tokens_per_second:
            metrics["mfu"] = speed / extent.peak_tokens_per_second
            parts.append(f"MFU {metrics['mfu']:.1%}")
        parts.append(f"{(extent.total_steps - step) * seconds / steps / 60:.1f} min left")
        self.write(metrics, parts + ([f"{dropped} dropped"] if dropped else []))
        self.losses, self.interval_tokens, self.interval_start = [], 0, time.perf_counter()

    def validation(self, step: int, measured: dict) -> None:
        """Write what a validation measured, {name: number or text}, within `paused`. No text is printed."""
        parts = [f"{name} {number_text(name, value)}" for name, value in without_texts(measured).items()]
        self.write({"step": step, **measured, "val_seconds": time.perf_counter() - self.pause_start}, parts)

    def write(self, metrics: dict, parts: list[str]) -> None:
        self.last = {**self.last, **metrics}
        self.print(" | ".join([f"step {metrics['step']}/{self.extent.total_steps}", *parts]))
        if self.process.rank > 0:
            return
        with named_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.wandb:
            self.wandb.log(metrics, step=metrics["step"])

    def stopped(self, step: int, why_not_saved: str) -> None:
        saved = f"saved in {self.config.out_dir}: the same command with --resume goes on from here"
        self.print(f"stopped at step {step}/{self.extent.total_steps}, {why_not_saved or saved}")

    def close(self) -> None:
        self.print(f"the model is in {self.config.out_dir}")
        if self.wandb:
            self.wandb.finish()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count against the speed of training."""
        synchronize(self.process.device)
        self.pause_start = time.perf_counter()
        self.interval_seconds = self.pause_start - self.interval_start
        yield
        self.interval_start = time.perf_counter() - self.interval_seconds

    def step_losses(self) -> list[tuple[float, float]]:
        return [(float(loss), weight) for loss, weight in self.losses]

    def state(self) -> dict:
        """What a resumed run needs to write the same lines, an unfinished interval included. But the means of
        what GRPO.py samples begin anew."""
        names = ("last", "tokens", "seconds", "interval_tokens", "interval_seconds")
        return {"losses": self.step_losses(), **{name: getattr(self, name) for name in names}}

    def restore(self, state: dict, step: int) -> None:
        """Take over the state, and cut metrics.jsonl back to its step."""
        for name, value in state.items():
            setattr(self, name, value)
        self.interval_start = time.perf_counter() - self.interval_seconds
        if self.process.rank == 0 and self.path.is_file():
            kept = [json.dumps(line) + "\n" for line in read_metrics(self.path) if line["step"] <= step]
            write_text(self.path, "".join(kept))


def start_wandb(config):
    """A run of Weights & Biases. Raises UserError where that asks for a login."""
    import wandb

    try:
        return wandb.init(project="WeakWater", name=config.stage, config=asdict(config))
    except wandb.Error as error:
        advice = "log in with `wandb login`, or set WANDB_MODE=offline"
        raise UserError(f"--use_wandb: {error}: {advice}") from None


def number_text(name: str, value) -> str:
    """A loss with four decimals, seconds with none, a share in percent; perplexity and the like with two."""
    if not isinstance(value, float):
        return str(value)
    if name.endswith("seconds"):
        return f"{value:.0f}"
    if name in NO_SHARES:
        return f"{value:.2f}" if value < 1e6 else f"{value:.1e}"
    return f"{value:.4f}" if name.startswith("val_") else f"{value:.1%}"


def without_texts(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not isinstance(value, str)}


def short_count(number: float) -> str:
    """1234567 -> "1.23M"."""
    return (
        f"{number / 1e6:.2f}M"
        if number >= 1e6
        else f"{number / 1e3:.0f}k"
        if number >= 1e4
        else f"{number:.0f}"
    )


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, none without a file; a last line that a crash cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
