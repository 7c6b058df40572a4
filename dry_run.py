"""`--dry_run`: what a run will need and how long it will take, measured by a few of its steps, of which nothing stays.

Memory is taken to grow with the rows of a micro-batch: weights, gradients and optimizer states are there once, all else is
divided by the rows that were measured.
"""

import gc
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

STEPS, MOST_SECONDS = 20, 120  # timed after one step that is not: it compiles, and makes the optimizer's states
SPARE = 0.9                    # of the memory: the rest is lost between allocations


def dry_run(make_run, config, validation, probe=None):
    """Print what the run of `config` (a TrainConfig) will take; returns it as a dictionary.

    make_run: a function TrainConfig -> Run. Raises ValueError where the disk is too small, or not even one row fits.
    """
    run, seconds, tokens = find_fitting(make_run, config)
    step_seconds = sum(seconds) / len(seconds)
    largest = largest_batch(run)  # before the sample replies, which take memory of their own
    validating = validation_seconds(run, step_seconds, validation) + (seconds_of(lambda: probe(run.model)) if probe else 0.0)
    hours = hours_of_run(run, step_seconds, validating)
    share = run.flops_share(tokens / sum(seconds))
    needed, free = disk_bytes(run), shutil.disk_usage(existing_folder(Path(config.out_dir))).free
    flags = f"--batch_size {run.config.batch_size} --accumulation_steps {run.config.accumulation_steps}"
    lines = [
        run.describe(),
        f"speed   {step_seconds:.3g} seconds a step ({len(seconds)} were timed), {tokens / sum(seconds):,.0f} useful tokens a second" + (f", MFU {share:.1%}" if share else ""),
        f"time    {run.total_steps} steps take {duration(hours)} with validation" + (" and the sample replies made there" if probe else ""),
        f"memory  {flags} fits" + (f", and up to about --batch_size {largest}" if largest else ""),
        f"disk    {needed / 1e9:.2f} GB for {config.out_dir}, {free / 1e9:.2f} GB are free",
    ]
    if run.rank == 0:
        print("\n".join(lines))
    if needed > free:
        raise ValueError(f"{config.out_dir} needs {needed / 1e9:.2f} GB, found {free / 1e9:.2f} GB free: make room, or pass another --out_dir")
    if run.rank == 0:
        print("Nothing was written. The same command without --dry_run trains" + ("." if run.config == config else f", if {flags} is added to it."))
    return {
        "hours": hours, "step_seconds": step_seconds, "validation_seconds": validating,
        "tokens_per_second": tokens / sum(seconds), "largest_batch": largest, "disk_bytes": needed,
        "batch_size": run.config.batch_size, "accumulation_steps": run.config.accumulation_steps,
    }  # fmt: skip


def find_fitting(make_run, config):
    """(run, seconds of each step, useful tokens of all) of `config`, or of one with the micro-batch halved until it fits."""
    while True:
        run = make_run(config)
        try:
            return run, *time_steps(run)
        except torch.OutOfMemoryError:
            pass  # here its traceback still holds what has to go
        if config.batch_size == 1:
            raise ValueError("--batch_size 1 does not fit into the memory: try a shorter --max_seq_len, or another --preset")
        print(f"--batch_size {config.batch_size} does not fit into the memory, trying half of it")
        config = replace(config, batch_size=config.batch_size // 2, accumulation_steps=config.accumulation_steps * 2)
        run.model.zero_grad(set_to_none=True)
        device = run.device
        del run
        gc.collect()
        torch.compiler.reset()  # else the next size would be compiled for any size
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


def time_steps(run):
    """(seconds of each step, useful tokens of all of them)."""
    step_model = run.wrap()
    run.take_step(1, step_model)
    run.wait()
    begin, seconds, tokens = time.perf_counter(), [], 0
    for step in range(2, min(STEPS + 1, run.total_steps) + 1):
        start = time.perf_counter()
        tokens += run.take_step(step, step_model)["tokens"]
        run.wait()
        seconds.append(time.perf_counter() - start)
        if time.perf_counter() - begin > MOST_SECONDS:
            break
    if not seconds:
        raise ValueError(f"found a run of {run.total_steps} step, expected at least 2 to be timed: more data, or a smaller --batch_size")
    return seconds, tokens


def hours_of_run(run, step_seconds, validating):
    """All steps and validations, the latter taking `validating` seconds each."""
    validations = math.ceil(run.total_steps / run.config.eval_every)
    return (run.total_steps * step_seconds + validations * validating) / 3600


def validation_seconds(run, step_seconds, validation):
    """One validation, whose rows cost a third of a training row: there is no backward pass."""
    return len(validation) * step_seconds / run.rows_per_step / 3 if validation else 0.0


def seconds_of(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def duration(hours):
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def once_bytes(run):
    """(weights, optimizer states) in bytes."""
    states = [tensor for optimizer in run.optimizers for state in optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor)]
    return 4 * run.model.num_parameters(), sum(tensor.numel() * tensor.element_size() for tensor in states)


def disk_bytes(run):
    """The checkpoint and the state to resume from, which is there twice while a new one is written."""
    weights, states = once_bytes(run)
    return weights + 2 * (weights + states)


def largest_batch(run):
    """Rows of a micro-batch that would fit on the card; None on other devices, whose memory does not tell what took it."""
    if run.device.type != "cuda":
        return None
    weights, states = once_bytes(run)
    once = 2 * weights + states
    total = torch.cuda.mem_get_info(run.device)[0] + torch.cuda.memory_reserved(run.device)
    a_row = max(1, torch.cuda.max_memory_allocated(run.device) - once) / run.config.batch_size
    return max(run.config.batch_size, int((total * SPARE - once) / a_row))


def existing_folder(path):
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
