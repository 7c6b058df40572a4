"""`--dry_run`: what a run will need and how long it will take, measured by a few of its steps, of which nothing stays.

Memory is taken to grow with the rows of a micro-batch: weights, gradients and optimizer states are there once, all else is
divided by the rows that were measured.
"""

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

STEPS, MOST_SECONDS = 20, 120  # timed after one step that is not: it compiles, and makes the optimizer's states
SPARE = 0.9                    # of the memory: the rest is lost between allocations


def dry_run(make_run, config, validation):
    """Print what the run of `config` (a TrainConfig) will take; returns it as a dictionary.

    make_run: a function TrainConfig -> Run. Raises ValueError where the disk is too small, or not even one row fits.
    """
    before = process_bytes()
    run, seconds, tokens = None, [], 0
    while run is None:
        run = make_run(config)
        try:
            seconds, tokens = time_steps(run)
        except torch.OutOfMemoryError:
            if config.batch_size == 1:
                raise ValueError("--batch_size 1 does not fit into the memory: try --max_seq_len, or another --preset") from None
            print(f"--batch_size {config.batch_size} does not fit into the memory, trying half of it")
            config, run = replace(config, batch_size=config.batch_size // 2, accumulation_steps=config.accumulation_steps * 2), None
            torch.cuda.empty_cache()
    step_seconds = sum(seconds) / len(seconds)
    hours = hours_of_run(run, step_seconds, validation)
    share = run.flops_share(tokens / sum(seconds))
    say = print if run.rank == 0 else (lambda text: None)
    say(run.describe())
    say(
        f"speed   {len(seconds)} steps of {step_seconds:.3g} seconds, {tokens / sum(seconds):,.0f} useful tokens a second" + (f", MFU {share:.1%}" if share else "")
        + f"\ntime    {run.total_steps} steps take {hours:.2f} hours, validation included"
    )
    needed, free = disk_bytes(run), shutil.disk_usage(existing_folder(Path(config.out_dir))).free
    fits = largest_batch(run, before)
    say(f"memory  --batch_size {config.batch_size} fits" + (f", and up to about {fits} would" if fits else ""))
    say(f"disk    {needed / 1e9:.2f} GB for {config.out_dir}, {free / 1e9:.2f} GB are free")
    if needed > free:
        raise ValueError(f"{config.out_dir} needs {needed / 1e9:.2f} GB, found {free / 1e9:.2f} GB free: make room, or pass another --out_dir")
    say("Nothing was written. The same command without --dry_run trains.")
    return {"hours": hours, "step_seconds": step_seconds, "tokens_per_second": tokens / sum(seconds), "largest_batch": fits, "disk_bytes": needed}


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


def hours_of_run(run, step_seconds, validation):
    """All steps, and validations, whose rows cost a third of a training row: there is no backward pass."""
    config = run.config
    row_seconds = step_seconds / run.rows_per_step
    validations = run.total_steps // config.eval_every + (run.total_steps % config.eval_every > 0)
    return (run.total_steps * step_seconds + (validations * len(validation) * row_seconds / 3 if validation else 0)) / 3600


def once_bytes(run):
    """(weights, optimizer states) in bytes."""
    states = [tensor for optimizer in run.optimizers for state in optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor)]
    return 4 * run.model.num_parameters(), sum(tensor.numel() * tensor.element_size() for tensor in states)


def disk_bytes(run):
    """The checkpoint and the state to resume from, which is there twice while a new one is written."""
    weights, states = once_bytes(run)
    return weights + 2 * (weights + states)


def largest_batch(run, before):
    """Rows of a micro-batch that would fit, None where the system does not tell; `before`: bytes of the process at the start."""
    weights, states = once_bytes(run)
    if run.device.type == "cuda":
        total = torch.cuda.mem_get_info(run.device)[0] + torch.cuda.memory_reserved(run.device)
        once = 2 * weights + states
        used = torch.cuda.max_memory_allocated(run.device)
    elif before and run.device.type == "cpu":
        import resource

        once = before + weights + states  # the weights were there before, their gradients were not
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = process_bytes() + available_bytes()
    else:
        return None
    a_row = max(1, used - once) / run.config.batch_size
    return max(run.config.batch_size, int((total * SPARE - once) / a_row))


def process_bytes():
    """Memory of this process, 0 where the system does not tell."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() and sys.platform == "linux" else 0


def available_bytes():
    """Memory that could still be had, by Linux's own estimate."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def existing_folder(path):
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
