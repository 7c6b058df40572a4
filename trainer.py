"""`train(model, rows, config)`: the one training loop, which knows nothing of stages.

A *step* is one optimizer update over `accumulation_steps` micro-batches of `batch_size` rows, over all
processes together. Its loss is the weighted sum over its tokens divided by the step's total weight, so that
neither the number of micro-batches nor of processes changes the update. Steps are counted from 1; learning
rate and order of the data follow from the number of the step alone.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from Config import TrainConfig
from dataset import Batch, PackedRows, collate_rows
from infra import charts, checkpoint, distributed, extent, resume, run_report
from infra import device as devices
from infra.distributed import Process, all_reduce_sum, processes, stop_signals
from infra.divergence import CHECK_EVERY, Diverged, Watch, not_saved
from infra.dry_run import dry_run
from infra.metrics import Log
from model import WeakWater, document_mask
from optimizer import make_optimizers, update


@dataclass
class Run:
    """What a training run carries from step to step."""

    model: WeakWater  # its weights stay float32
    forward: Callable  # the model, compiled where that works
    mask: Callable  # document_mask, by blocks where attention has a kernel for that
    optimizers: list
    precision: devices.Precision
    watch: Watch  # for losses and gradients that make no sense
    fingerprint: dict  # what a resumed run must share with this one
    step: int = 0  # updates done


def train(model: WeakWater, rows: PackedRows, config: TrainConfig, validation=None, probe=None) -> dict:
    """Train `model` on `rows` as `config` says; returns the last value of each metric.

    validation: PackedRows. probe: a function model -> {name: number or text}, called at each validation and
    logged with it. Raises UserError when a resumed run differs from the stopped one, or when losses stop
    making sense. Ctrl-C and SIGTERM save and exit with code 130 or 143.
    """
    if config.dry_run:
        return dry_run(train, model, rows, config, validation, probe)
    with processes(config.device, config.out_dir) as process, stop_signals() as stopped:
        run, log = start(model, rows, config, process)
        total_steps, scaler = config.total_steps(len(rows)), run.precision.scaler
        if run.step == total_steps:  # finished, but perhaps killed between two files of its last save
            save(run, log, rows, validation or rows, config)
        ddp_model = distributed.wrap_ddp(run.forward, process)
        batches = iter(load_batches(rows, config, process, run.step + 1))
        for step in range(run.step + 1, total_steps + 1):
            micro_batches = [next(batches) for _ in range(config.accumulation_steps // process.world)]
            weight, tokens = step_totals(micro_batches)
            loss = torch.zeros((), device=process.device)
            for number, batch in enumerate(micro_batches, 1):
                with distributed.gradients_stay_here(ddp_model, is_last=number == len(micro_batches)):
                    with run.precision.autocast:
                        part = summed_loss(ddp_model, batch.to(process.device), run.mask) / weight
                    scaler.scale(part * process.world).backward()  # DDP averages; times world, it sums
                loss += part.detach()
            loss = all_reduce_sum(loss)
            for optimizer in run.optimizers:
                scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            lr = learning_rate(step, total_steps, config)
            is_sound = run.watch.accepts(loss, grad_norm)
            update(run.optimizers, lr, is_sound)  # not scaler.step, which waits for the device
            scaler.update()
            model.zero_grad(set_to_none=True)
            run.step = step

            log.add(loss, weight, tokens)
            is_last = step == total_steps
            if step % config.log_every == 0 or is_last:
                log.interval(step, lr, float(grad_norm), run.watch.dropped)
            if step % min(config.log_every, CHECK_EVERY) == 0 or is_last:  # seldom: it waits for the device
                run.watch.check(step, loss, grad_norm, config)
            if validation and (step % config.eval_every == 0 or is_last):
                with log.paused():
                    measured = evaluate(run, validation, config, process)
                    log.validation(step, measured | (probe(model) if probe and process.rank == 0 else {}))
            is_stopped = all_reduce_sum(torch.tensor(len(stopped))) > 0  # one process's signal stops all
            if step % config.save_every == 0 or is_last or is_stopped:
                with log.paused():
                    is_saved = save(run, log, rows, validation or rows, config)
                if is_last and not is_saved:
                    raise Diverged(f"step {step}: {not_saved(config)}")
            if is_stopped:
                log.stopped(step, "" if is_saved else not_saved(config))
                sys.exit(distributed.exit_code(stopped))
        log.close()
        return log.last


def start(model, rows, config, process) -> tuple[Run, Log]:
    """A run before its first step or, with --resume, where the last save left it."""
    run = prepare(model, rows, config, process.device)
    log = Log(config, process, extent.extent_of(model, rows, config, process, run.precision.dtype))
    where = f"{process.device} in {devices.dtype_name(run.precision.dtype)}"
    log.print(extent.describe(model, rows, config, where + ", compiled" * (run.forward is not model)))
    resume.resume_run(run, log, config, process.world)
    return run, log


def prepare(model, rows, config, device) -> Run:
    """A run at its beginning; neither reads nor writes out_dir."""
    precision = devices.pick_precision(config.dtype, device)
    run = Run(
        model.to(device),
        forward=model,
        mask=document_mask,
        optimizers=make_optimizers(
            model, config.weight_decay, config.embedding_rate, precision.muon_dtype, config.optimizer
        ),
        precision=precision,
        watch=Watch(model.config.vocab_size, device, is_fp16=precision.dtype == torch.float16),
        fingerprint=resume.resume_fingerprint(config, model.config, rows, precision.dtype),
    )
    if devices.wants_compile(config.compile, device, extent.is_long(model, rows, config)):
        mask = partial(document_mask, in_blocks=device.type == "cuda")
        batch = collate_rows([], config.batch_size, rows.row_length).to(device)
        with precision.autocast:
            run.forward = devices.compile_if_it_works(
                model, lambda it: summed_loss(it, batch, mask).backward()
            )
        run.mask = document_mask if run.forward is model else mask
    return run


def summed_loss(model, batch: Batch, mask: Callable) -> torch.Tensor:
    """The summed loss of a micro-batch, whose documents do not see each other."""
    return model(batch.input_ids, mask(batch.document_ids), batch.labels, batch.loss_weights)


def step_totals(micro_batches: list[Batch]) -> tuple[float, int]:
    """(loss weight, useful tokens) of a step, over all processes; of negative weights the absolute value."""
    sums = [[float(b.loss_weights.abs().sum()), float((b.document_ids > 0).sum())] for b in micro_batches]
    weight, tokens = all_reduce_sum(torch.tensor(sums, dtype=torch.float64).sum(0)).tolist()
    return weight or 1.0, int(tokens)  # a step in which nothing teaches has a loss of 0


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to the floor (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    warmup = config.warmup(total_steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def load_batches(rows: PackedRows, config: TrainConfig, process: Process, first_step: int) -> DataLoader:
    """This process's micro-batches from a step on."""
    return DataLoader(
        rows,
        batch_sampler=row_numbers(len(rows), config, process, first_step),
        collate_fn=partial(collate_rows, rows=config.batch_size, row_length=rows.row_length),
        num_workers=config.num_workers,
        pin_memory=process.device.type == "cuda",
        worker_init_fn=distributed.ignore_interrupts,
    )


def row_numbers(num_rows: int, config: TrainConfig, process: Process, first_step: int) -> Iterator[list[int]]:
    """The rows of each of this process's micro-batches: a seeded permutation per epoch, dealt out in turn."""
    size, per_epoch = config.batch_size, config.steps_per_epoch(num_rows)
    for step in range(first_step, config.total_steps(num_rows) + 1):
        epoch, step_in_epoch = divmod(step - 1, per_epoch)
        if step == first_step or step_in_epoch == 0:
            order = np.random.default_rng([config.seed, epoch]).permutation(num_rows)
        step_rows = order[step_in_epoch * config.rows_per_step :][: config.rows_per_step]
        for number in range(process.rank, config.accumulation_steps, process.world):
            yield step_rows[number * size : (number + 1) * size].tolist()


@torch.no_grad()
def evaluate(run: Run, rows: PackedRows, config: TrainConfig, process: Process, most_batches=None) -> dict:
    """{val_loss, val_ppl, val_bpb}: nats per token of the loss, their exponential, bits per byte of text."""
    is_compiled = run.forward is not run.model  # for one size: each other one would be compiled again
    size = config.batch_size if is_compiled else min(config.batch_size, len(rows))
    batches = np.split(np.arange(len(rows)), range(size, len(rows), size))[:most_batches]
    token_bytes = torch.from_numpy(rows.cache.tokenizer.token_bytes)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, weight, bytes
    for numbers in batches[process.rank :: process.world]:
        batch = collate_rows([rows[row] for row in numbers], size, rows.row_length)
        with run.precision.autocast:
            nats = float(summed_loss(run.forward, batch.to(process.device), run.mask))
        num_bytes = (token_bytes[batch.labels] * (batch.loss_weights > 0)).sum()
        sums += torch.tensor([nats, batch.loss_weights.sum(), num_bytes], dtype=torch.float64)
    nats, weight, num_bytes = all_reduce_sum(sums).tolist()
    loss, bits = nats / weight, nats / math.log(2)
    perplexity = math.exp(min(loss, 700))  # of more than 709, a float has no exponential
    return {"val_loss": loss, "val_ppl": perplexity, "val_bpb": bits / max(num_bytes, 1)}


def save(run: Run, log: Log, rows: PackedRows, checked: PackedRows, config: TrainConfig) -> bool:
    """Write training_state.pt, the Llama checkpoint, the charts and, at the end, report.html. Where the
    weights have diverged, as the loss of a batch of `checked` tells, nothing, and return False.
    """
    if not evaluate(run, checked, config, log.process, most_batches=1)["val_loss"] < run.watch.worst_loss:
        return False
    if log.process.rank == 0:
        is_finished = run.step == config.total_steps(len(rows))
        resume.save_run(config.out_dir, run, log, log.process.world, is_finished)
        checkpoint.save_model(run.model, config.out_dir, rows.cache.tokenizer, rows.row_length, is_finished)
        charts.draw_charts(config.out_dir, config.stage)
        if is_finished and not (Path(config.out_dir) / "report.html").is_file():
            run_report.write_report(config, rows, run.model)
    return True
