"""`--dry_run`: what a run needs and how long it takes, told by a short one in a temporary folder.

Memory is taken to grow with the rows of a micro-batch: weights, gradients and optimizer states are there
once, all else is divided by the rows that were measured.
"""

import gc
import io
import math
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from infra.cli import UserError
from infra.device import pick_device, wants_compile
from infra.extent import describe_steps, is_long
from infra.files import existing_folder
from infra.metrics import read_metrics
from infra.resume import STATE

STEPS, SECONDS, MOST_SECONDS = 20, 30, 120  # of training that is timed: as many of both, within the last
SPARE = 0.9  # of the card's memory: the rest is lost between allocations


@dataclass
class Rehearsal:
    """What a short run showed: its first line, and bytes and seconds."""

    described: str
    step_seconds: float
    tokens_per_second: float
    validation_seconds: float
    other_seconds: float  # to start, compile and save
    checkpoint_bytes: int
    state_bytes: int


def dry_run(train, model, rows, config, validation=None, probe=None) -> dict:
    """Print what the run of `config` will take; returns it as a dictionary.

    train: `trainer.train`. Raises UserError where the disk is too small, or not even one row fits.
    """
    total_steps = config.total_steps(len(rows))
    if total_steps < 2:
        found = f"found a run of {total_steps} step, expected at least 2 to be timed"
        raise UserError(f"{found}: more data or --max_steps, or a smaller --batch_size")
    fitting, first = find_fitting(train, model, rows, config, validation)
    total_steps = fitting.total_steps(len(rows))  # half of an odd number is less
    largest = largest_batch(model, fitting.batch_size, first.state_bytes)
    most = min(int(MOST_SECONDS / first.step_seconds), total_steps - 1)
    steps = max(2, min(max(STEPS, int(SECONDS / first.step_seconds)), most))
    found = rehearse(train, model, rows, fitting, steps + 1, validation, probe)
    validations = math.ceil(total_steps / config.eval_every)
    seconds = total_steps * found.step_seconds + validations * found.validation_seconds + found.other_seconds
    needed = found.checkpoint_bytes + 2 * found.state_bytes  # a new state is written beside the old one
    free = shutil.disk_usage(existing_folder(Path(config.out_dir))).free
    flags = f"--batch_size {fitting.batch_size} --accumulation_steps {fitting.accumulation_steps}"
    print(f"{found.described} | {describe_steps(fitting, len(rows))}")
    speed = f"{found.tokens_per_second:,.0f} useful tokens a second"
    print(f"speed   {found.step_seconds:.3g} seconds a step, {speed}")
    print(f"time    {total_steps} steps take {duration(seconds)} with starting and validating")
    print(f"memory  {flags} fits" + (f", and up to about --batch_size {largest}" if largest else ""))
    print(f"disk    {needed / 1e9:.2f} GB for {config.out_dir}, {free / 1e9:.2f} GB are free")
    check_disk(needed, free, config.out_dir)
    print(
        "Nothing was written. The same command without --dry_run trains"
        + ("." if fitting == config else f", if {flags} is added.")
    )
    return {
        "hours": seconds / 3600,
        "step_seconds": found.step_seconds,
        "timed_seconds": steps * found.step_seconds + found.validation_seconds,
        "validation_seconds": found.validation_seconds,
        "tokens_per_second": found.tokens_per_second,
        "largest_batch": largest,
        "disk_bytes": needed,
        "batch_size": fitting.batch_size,
        "accumulation_steps": fitting.accumulation_steps,
    }


def rehearse(train, model, rows, config, steps: int, validation=None, probe=None) -> Rehearsal:
    """Train for a few steps, validate once and save, in a folder that goes."""
    with tempfile.TemporaryDirectory(prefix="dry_run_", dir=existing_folder(Path(config.out_dir))) as folder:
        first_steps = {"max_steps": steps, "warmup_steps": config.warmup(config.total_steps(len(rows)))}
        often = {"log_every": 1, "eval_every": steps, "save_every": steps}
        alone = {"dry_run": False, "resume": False, "use_wandb": False, "out_dir": folder}
        compiled = wants_compile(config.compile, pick_device(config.device), is_long(model, rows, config))
        short = replace(config, **first_steps, **often, **alone, compile=compiled)
        start = time.perf_counter()
        try:
            with redirect_stdout(io.StringIO()) as told:
                last = train(model, rows, short, validation, probe)
        except SystemExit:  # Ctrl-C or SIGTERM
            print("stopped: nothing was written")
            raise
        seconds = time.perf_counter() - start
        state = (Path(folder) / STATE).stat().st_size
        total = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        timed = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in line]
    early = timed[(len(timed) - 1) // 2]  # a processor that has rested is faster at first
    of_steps, tokens = (timed[-1][name] - early[name] for name in ("seconds", "tokens"))
    validating = last.get("val_seconds", 0.0)
    return Rehearsal(
        described=told.getvalue().splitlines()[0].rsplit(" | ", 1)[0],  # but for its own steps
        step_seconds=of_steps / (timed[-1]["step"] - early["step"]),
        tokens_per_second=tokens / of_steps,
        validation_seconds=validating,
        other_seconds=seconds - timed[-1]["seconds"] - validating,
        checkpoint_bytes=total - state,
        state_bytes=state,
    )


def find_fitting(train, model, rows, config, validation):
    """(the config with the micro-batch halved until it fits the memory, its Rehearsal)."""
    while True:
        try:
            steps = min(3, config.total_steps(len(rows)))
            return config, rehearse(train, model, rows, config, steps, validation)
        except torch.OutOfMemoryError:
            pass  # here its traceback still holds what has to go
        if config.batch_size == 1:
            advice = "try a shorter --max_seq_len, or another --preset"
            raise UserError(f"--batch_size 1 does not fit into the memory: {advice}")
        print(f"--batch_size {config.batch_size} does not fit into the memory, trying half of it")
        halved = {"batch_size": config.batch_size // 2, "accumulation_steps": config.accumulation_steps * 2}
        config = replace(config, **halved)
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.compiler.reset()  # else the next size would be compiled for any size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def largest_batch(model, batch_size: int, state_bytes: int) -> int | None:
    """Rows of a micro-batch that would fit on the card; None on other devices, whose use is not known."""
    device = model.lm_head.weight.device
    if device.type != "cuda":
        return None
    # gradients, and the weights and optimizer states that are saved
    once = 4 * model.num_parameters() + state_bytes
    total = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    a_row = max(1, torch.cuda.max_memory_allocated(device) - once) / batch_size
    return max(batch_size, int((total * SPARE - once) / a_row))


def check_disk(needed: int, free: int, out_dir: str) -> None:
    if needed > free:
        found = f"{out_dir} needs {needed / 1e9:.2f} GB, found {free / 1e9:.2f} GB free"
        raise UserError(f"{found}: make room, or pass another --out_dir")


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
