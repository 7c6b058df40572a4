"""`train(model, rows, config)`: the one training loop, which knows nothing of stages.

A *step* is one optimizer update over `accumulation_steps` micro-batches of `batch_size` rows, over all processes together.
Its loss is the weighted sum over all its tokens divided by the step's total weight, so that neither the number of
micro-batches nor of processes changes the update. Where a run stands is its number of steps, counted from 1: the learning
rate, the order of the data and the place to resume from follow from it alone.

The checkpoint's folder holds a Llama checkpoint to use (`model.safetensors` and what belongs to it) and, complete in a file
of its own, the state to resume from (`training_state.pt`). Each file is replaced whole, so that a crash leaves the old one
or the new one.
"""

import json
import math
import os
import pickle
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from Config import LLMConfig, named_disk_errors, write_atomically
from dataset import Batch, check_vocabulary, count_kinds
from dry_run import dry_run
from model import document_mask, has_fast_bf16, pick_device
from optimizer import make_optimizers

MOST_SKIPPED_IN_A_ROW = 5
DIVERGED = 2  # times the loss of guessing, log(vocabulary): an update from there on would only do harm
PEAK_FLOPS = {  # of dense bf16 matrix products, from the maker's data sheets
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
TIMED_METRICS = ("seconds", "tokens_per_second", "epoch_minutes_left", "mfu")  # those that no two runs share
MAY_DIFFER_ON_RESUME = {  # flags that change neither the weights nor the order of the data
    "val_path", "tokenizer", "preset", "init_from", "out_dir", "cache_dir", "device", "compile", "num_workers",
    "log_every", "eval_every", "save_every", "resume", "dry_run", "skip_bad_lines", "use_wandb", "data_path",
}  # fmt: skip


def train(model, rows, config, validation=None, probe=None):
    """Train `model` (a WeakWater) on `rows` (PackedRows) as `config` (a TrainConfig) says; returns the last value of each metric.

    validation: PackedRows; probe: a function model -> {name: number}, called at each validation and logged with it.
    Raises ValueError when a resumed run differs from the one that was stopped, or when losses stop being numbers.
    Ctrl-C and SIGTERM save and leave with the usual exit codes.
    """
    with processes(config) as (rank, world, device):
        if config.dry_run:
            return dry_run(lambda changed: Run(model.to(device), rows, changed, rank, world, device), config, validation, probe)
        run = Run(model.to(device), rows, config, rank, world, device)
        log = Log(run)
        if config.resume:
            run.load(log)
            if int(run.over_all(torch.tensor(run.step))) != run.step * world:
                raise ValueError(f"{config.out_dir}: found different steps in different processes: copy it to every machine before --resume")
            if run.step == run.total_steps:
                run.save(run.step, log)  # the stopped run may have been killed between the state and the checkpoint
        step_model = run.wrap()
        with stop_signals() as stopped:
            for step in range(run.step + 1, run.total_steps + 1):
                log.add(run.take_step(step, step_model))
                last = step == run.total_steps
                stop = run.over_all(torch.tensor(len(stopped))) > 0  # one process's signal stops all at the same step
                if step % config.log_every == 0 or last:
                    log.line(step)
                validates = validation and (step % config.eval_every == 0 or last)
                saves = step % config.save_every == 0 or last or stop
                with log.paused() if validates or saves else nullcontext():
                    if validates:
                        log.validation(step, evaluate(run, validation), probe(model) if probe else {})
                    saved = saves and run.save(step, log)
                if last and not saved:
                    raise Diverged(f"step {step}: {run.no_sense()}")
                if stop:
                    log.say(f"stopped at step {step}/{run.total_steps}" + (
                        f", saved in {config.out_dir}: the same command with --resume goes on from here"
                        if saved else f": {run.no_sense()}"))
                    sys.exit(128 + (stopped or [signal.SIGTERM])[0])
        log.say(f"the model is in {config.out_dir}")
        log.close()
        return log.last


class Diverged(ValueError):
    """The loss or the gradients of a run make no sense any more."""


class Run:
    """What a training run carries from step to step."""

    def __init__(self, model, rows, config, rank, world, device):
        check_run(config, model, rows.cache.tokenizer, world)
        self.model, self.rows, self.config = model, rows, config
        self.rank, self.world, self.device = rank, world, device
        self.rows_per_step = config.batch_size * config.accumulation_steps
        self.steps_per_epoch = math.ceil(len(rows) / self.rows_per_step)
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.warmup_steps = config.warmup_steps if config.warmup_steps >= 0 else math.ceil(0.03 * self.total_steps)
        self.dtype = pick_dtype(config.dtype, device)
        self.compiled = wants_compile(config.compile, device)
        muon_dtype = torch.bfloat16 if self.dtype != torch.float32 and has_fast_bf16(device) else torch.float32
        self.optimizers = make_optimizers(model, config.learning_rate, config.weight_decay, muon_dtype, config.embedding_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step, self.tokens = 0, 0
        self.dropped = torch.zeros(2, dtype=torch.long, device=device)  # updates: in all, in a row
        self.scale_is_large = self.scaler.is_enabled()  # fp16's loss scale, when last looked at
        self.is_asynchronous = device.type == "cuda"
        self.worst_loss = DIVERGED * math.log(model.config.vocab_size)
        self.batches = None
        self.forward = torch.compile(model) if self.compiled else model  # shares its parameters with model

    # ---- one step ----

    def take_step(self, step, step_model):
        """One update. Returns {loss, weight, lr, grad_norm, tokens}: of the whole step, over all processes.

        loss and grad_norm are tensors: on CUDA nothing here waits for the device, so that its queue never runs dry, except at
        the steps that are logged.
        """
        if self.batches is None:
            self.batches = iter(self.loader(step))
        micro_batches = [next(self.batches) for _ in range(self.config.accumulation_steps // self.world)]
        sums = torch.tensor([[float(b.weights.sum()), float((b.document_ids > 0).sum())] for b in micro_batches], dtype=torch.float64)
        weight, tokens = self.over_all(sums.sum(0)).tolist()
        lr = self.set_learning_rate(step)
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches, 1):
            is_last = number == len(micro_batches)
            with nullcontext() if is_last or self.world == 1 else step_model.no_sync():
                part = self.loss_sum(step_model, batch) / weight
                # DistributedDataParallel divides the sum of the gradients by the number of processes
                self.scaler.scale(part * self.world).backward()
            loss += part.detach()
        loss = self.over_all(loss)
        grad_norm = self.update(loss)
        self.step = step
        self.tokens += int(tokens)
        if not self.is_asynchronous or step % self.config.log_every == 0:
            self.scale_is_large = self.scaler.is_enabled() and self.scaler.get_scale() > 1
            if self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
                self.give_up(step, micro_batches, float(loss), float(grad_norm))
        return {"loss": loss, "weight": weight, "lr": lr, "grad_norm": grad_norm, "tokens": int(tokens)}

    def set_learning_rate(self, step):
        lr = learning_rate(step, self.total_steps, self.warmup_steps, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("rate_scale", 1)
        return lr

    def update(self, loss):
        """Clip and apply the gradients, or drop them if they make no sense. Returns their norm before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        loss_makes_sense = torch.isfinite(loss) & (loss < self.worst_loss)
        applies = loss_makes_sense & torch.isfinite(grad_norm)
        for optimizer in self.optimizers:
            if self.is_asynchronous:
                optimizer.found_inf = (~applies).float()  # the device decides whether the step changes anything
                optimizer.step()
            elif applies:
                optimizer.step()
        # a loss scale that is still too large is how fp16 finds its range, not a failure
        fails = ~loss_makes_sense if self.scale_is_large else ~applies
        self.dropped[0] += ~applies
        self.dropped[1] = torch.where(applies, 0, self.dropped[1] + fails)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        return grad_norm

    @property
    def skipped(self):
        """Updates dropped so far. To ask for this or `skipped_in_a_row` is to wait for the device."""
        return int(self.dropped[0])

    @property
    def skipped_in_a_row(self):
        return int(self.dropped[1])

    def give_up(self, step, micro_batches, loss, grad_norm):
        """Leave what tools/replay.py needs to repeat the step, then raise Diverged with what is known of it."""
        found = f"step {step}: loss {loss:.4g}, gradient norm {grad_norm:.4g}, the update dropped for the {self.skipped_in_a_row}th time in a row. {likely_cause(loss, self)}."
        try:
            kept = f"To repeat the step: python tools/replay.py {self.keep_step(step, micro_batches, loss, grad_norm)}"
        except OSError as error:
            kept = f"(The step could not be kept: {error})"
        advice = f" To go on from it with other flags: --init_from {self.config.out_dir} and another --out_dir." if self.has_checkpoint() else ""
        raise Diverged(f"{found} {self.what_is_kept()}.{advice} {kept}")

    def keep_step(self, step, micro_batches, loss, grad_norm):
        """Write the weights and the micro-batches of all processes to failed_step.pt; its path."""
        path = Path(self.config.out_dir) / "failed_step.pt"
        batches = [[tensor.clone() for tensor in batch] for batch in micro_batches]
        if self.world > 1:
            of_all = [None] * self.world
            dist.all_gather_object(of_all, batches)
            batches = [batch for of_one in of_all for batch in of_one]
        if self.rank == 0:
            about = {"step": step, "loss": loss, "grad_norm": grad_norm, "dtype": str(self.dtype).removeprefix("torch.")}
            state = {**about, "model_config": asdict(self.model.config), "model": self.model.state_dict(), "micro_batches": batches}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda path: write_state(state, path))
        return path

    @torch.no_grad()
    def is_sound(self):
        """False where the weights have diverged: a step's loss is of the weights before its update, so the first rows are graded."""
        batch = stack([self.rows[row] for row in range(min(len(self.rows), self.config.batch_size))], self.config.batch_size, self.rows.row_length)
        return float(self.loss_sum(self.forward, batch)) / float(batch.weights.sum()) < self.worst_loss

    def has_checkpoint(self):
        return (Path(self.config.out_dir) / "model.safetensors").is_file()

    def what_is_kept(self):
        return f"{self.config.out_dir} keeps the last good checkpoint" if self.has_checkpoint() else f"{self.config.out_dir} has no checkpoint yet"

    def no_sense(self):
        return f"weights with which the loss is more than {DIVERGED} times that of guessing are not saved; {self.what_is_kept()}: lower --learning_rate (now {self.config.learning_rate:g})"

    def loss_sum(self, model, batch):
        batch = Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        mask = document_mask(batch.document_ids, in_blocks=self.compiled and self.device.type == "cuda")
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return model(batch.input_ids, mask, batch.labels, batch.weights)

    def wait(self):
        """Until the device has done all that it was told to: a clock read before would not count it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def over_all(self, tensor):
        """The sum over all processes, of numbers of the host or of the device."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def wrap(self):
        """`forward` as training calls it: with gradients summed over all processes."""
        if self.world == 1:
            return self.forward
        return DistributedDataParallel(self.forward, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def loader(self, first_step):
        return DataLoader(
            self.rows,
            batch_sampler=self.micro_batches(first_step),
            collate_fn=partial(stack, rows=self.config.batch_size, row_length=self.rows.row_length),
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )

    def micro_batches(self, first_step):
        """The row numbers of each of this process's micro-batches, from a step on: a seeded permutation per epoch."""
        size, accumulate = self.config.batch_size, self.config.accumulation_steps
        for step in range(first_step, self.total_steps + 1):
            epoch, step_in_epoch = divmod(step - 1, self.steps_per_epoch)
            if step == first_step or step_in_epoch == 0:
                order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.rows))
            begin = step_in_epoch * self.rows_per_step
            step_rows = order[begin : begin + self.rows_per_step]
            for number in range(self.rank, accumulate, self.world):
                yield step_rows[number * size : (number + 1) * size].tolist()

    # ---- what is told ----

    def describe(self):
        """One line on the model, the data and the steps."""
        rows, kinds = self.rows, self.rows.cache.about["bad_kinds"]
        bad_lines = f"{sum(kinds.values())} bad lines" + (f" ({count_kinds(kinds)})" if kinds else "")
        return (
            f"{self.config.stage} from {self.config.init_from or 'random weights'}: {self.model.num_parameters():,} parameters on {self.device} in {str(self.dtype).removeprefix('torch.')}"
            f"{', compiled' if self.compiled else ''} | {len(rows):,} rows of {rows.row_length}, {rows.padding_share:.1%} padding, "
            f"{rows.truncated} documents truncated, {bad_lines} skipped | "
            f"{self.total_steps} steps of {self.rows_per_step} rows, {self.warmup_steps} of warm-up"
        )

    def flops_share(self, tokens_per_second):
        """The share of the card's matrix arithmetic in use (MFU, Chowdhery et al. 2022, arXiv:2204.02311), None if its peak is unknown."""
        if self.device.type != "cuda" or self.dtype == torch.float32:
            return None
        peak = PEAK_FLOPS.get(torch.cuda.get_device_name(self.device))
        c = self.model.config
        matrices = self.model.num_parameters()  # a tied embedding counts once, as the head
        causal_attention = c.num_hidden_layers * c.hidden_size * self.config.max_seq_len / 2 * 2
        return tokens_per_second * (6 * matrices + 6 * causal_attention) / (peak * self.world) if peak else None

    # ---- what is kept ----

    def identity(self):
        """What a resumed run must share with the one that was stopped: {what: value}."""
        flags = {name: value for name, value in asdict(self.config).items() if name not in MAY_DIFFER_ON_RESUME}
        data = {"data": self.rows.cache.about["sha256"], "rows": self.rows.fingerprint}
        shape = {f"model {name}": value for name, value in asdict(self.model.config).items()}
        return {**flags, "dtype": str(self.dtype), **data, **shape}

    def save(self, step, log):
        """Write the state to resume from, then the checkpoint to use, then the charts. False if the weights are not worth it."""
        if self.rank > 0:
            return True
        if not self.is_sound():
            return False
        folder = Path(self.config.out_dir)
        state = {
            "identity": self.identity(),
            "finished": step == self.total_steps,
            "step": step,
            "processes": self.world,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "log": log.state(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "training_state.pt", lambda path: write_state(state, path))
        self.rows.cache.tokenizer.save_pretrained(folder, self.rows.row_length)
        self.model.save_pretrained(folder, self.rows.cache.tokenizer.vocabulary_hash)
        draw_charts(folder, self.config.stage)
        return True

    def load(self, log):
        """Go on from `training_state.pt`, if it is there. Raises ValueError when it belongs to another run."""
        path = Path(self.config.out_dir) / "training_state.pt"
        if not path.is_file():
            log.say(f"nothing to resume in {path.parent}: starting at step 1")
            log.begin_file()
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except (RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
            advice = f", or begin at its weights with --init_from {path.parent} and another --out_dir" if self.has_checkpoint() else ""
            raise ValueError(f"{path}: not a whole training state: delete it to start anew{advice}") from None
        here = self.identity()
        for name, stored in identity.items():
            if stored != here.get(name):
                raise ValueError(f"{path}: the stopped run had {name} {stored}, this one has {here.get(name)}: use the same, or leave out --resume to start anew")
        self.model.load_state_dict(state["model"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.dropped[0] = state["skipped"]
        log.restore(state["log"])
        log.say(f"{'finished' if state['finished'] else 'resumed'}: {self.config.out_dir} is at step {self.step}/{self.total_steps}")
        before = state.get("processes", self.world)
        if before != self.world and not state["finished"]:
            log.say(f"the stopped run had {before} processes, this one has {self.world}: from here on it equals an uninterrupted one to rounding, not to the bit")


def likely_cause(loss, run):
    """A sentence on why updates were dropped again and again."""
    lower = f"a lower --learning_rate (now {run.config.learning_rate:g}) or --grad_clip, or more --warmup_steps, may help"
    if math.isfinite(loss) and loss >= run.worst_loss:
        return f"Likely cause: it has diverged (guessing would cost {math.log(run.model.config.vocab_size):.1f}): {lower}"
    if run.dtype == torch.float16:
        return "Likely cause: numbers too large for fp16: --dtype bf16 or fp32"
    return f"Likely cause: weights grown too large, or a broken batch: {lower}"


def check_run(config, model, tokenizer, world=None):
    """What can be told before the data is read. Raises ValueError for flags that this model, or this machine, cannot follow."""
    world = world or world_size()
    pick_dtype(config.dtype, pick_device(config.device))
    if config.max_seq_len > model.config.max_position_embeddings:
        raise ValueError(f"--max_seq_len ({config.max_seq_len}) must be at most the model's max_position_embeddings ({model.config.max_position_embeddings})")
    if config.accumulation_steps % world:
        raise ValueError(f"--accumulation_steps ({config.accumulation_steps}) must be a multiple of the number of processes ({world})")
    if config.init_from:
        check_vocabulary(config.init_from, tokenizer)
    check_out_dir(Path(config.out_dir), model, tokenizer)


def check_out_dir(folder, model, tokenizer):
    """Raises ValueError rather than let a checkpoint of another model be overwritten file by file."""
    if not (folder / "model.safetensors").is_file():
        return
    advice = "pass another --out_dir, or delete it"
    stored, here = asdict(LLMConfig.load(folder)), asdict(model.config)
    for name in here:
        if stored[name] != here[name]:
            raise ValueError(f"{folder} holds another model's checkpoint ({name} {stored[name]}, here {here[name]}): {advice}")
    try:
        check_vocabulary(folder, tokenizer)
    except ValueError as error:
        raise ValueError(f"{error}, or {advice}") from None


def write_state(state, path):
    """torch.save into a file of Python's, whose errors tell why."""
    with open(path, "wb") as file:
        torch.save(state, file)


def ignore_interrupts(worker):
    """Ctrl-C reaches every process of a terminal; a worker must live on until its trainer has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stack(batch, rows, row_length):
    """Rows -> a micro-batch of exactly `rows` rows; what is missing is padding, so that its shape never changes."""
    nothing = torch.zeros(row_length, dtype=torch.long)
    padding = Batch(input_ids=nothing, labels=nothing, weights=nothing.float(), document_ids=nothing)
    return default_collate(batch + [padding] * (rows - len(batch)))


def learning_rate(step, total_steps, warmup_steps, config):
    """Linear warm-up, then a cosine from the peak to `min_lr_ratio` of it at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    if step <= warmup_steps:
        return config.learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def pick_dtype(name, device):
    """The torch dtype for --dtype. Raises ValueError for fp16 anywhere else than on CUDA."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        name = "bf16" if has_fast_bf16(device) else "fp16"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"--dtype fp16 needs a CUDA device, found {device.type}: expected fp32 or bf16")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def wants_compile(asked, device):
    """--compile if it was given; else on CUDA, where Triton can be imported and the card is recent enough for it."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    if not has_triton():
        print("torch.compile is off: Triton is not available here", file=sys.stderr)
    return has_triton()


@torch.no_grad()
def evaluate(run, validation):
    """{val_loss, val_ppl, val_bpb}: nats per graded token, its exponential, and bits per byte of graded text."""
    size = run.config.batch_size if run.compiled else min(run.config.batch_size, len(validation))  # a new shape is compiled anew
    batches = [range(begin, min(begin + size, len(validation))) for begin in range(0, len(validation), size)]
    token_bytes = torch.from_numpy(validation.cache.tokenizer.token_bytes)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, weight, bytes
    for rows in batches[run.rank :: run.world]:
        batch = stack([validation[row] for row in rows], size, validation.row_length)
        sums += torch.tensor([
            float(run.loss_sum(run.forward, batch)),
            float(batch.weights.sum()),
            float((token_bytes[batch.labels] * (batch.weights > 0)).sum()),
        ])  # fmt: skip
    nats, weight, bytes = run.over_all(sums).tolist()
    loss = nats / weight
    return {"val_loss": loss, "val_ppl": math.exp(min(loss, 700)), "val_bpb": nats / math.log(2) / max(bytes, 1)}


def world_size():
    return int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


@contextmanager
def processes(config):
    """(rank, number of processes, device); under torchrun the processes are joined into a group."""
    if world_size() == 1:
        yield 0, 1, pick_device(config.device)
        return
    local_rank = os.environ.get("LOCAL_RANK", "0")
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = pick_device(f"cuda:{local_rank}" if name.startswith("cuda") else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
    rank = dist.get_rank()
    try:
        yield rank, dist.get_world_size(), device
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ValueError(
            f"process {rank}: another process of this run has ended ({str(error).splitlines()[0]}). "
            f"{config.out_dir} keeps the last checkpoint: the same command with --resume goes on from there, with any number of processes"
        ) from None
    finally:
        dist.destroy_process_group()


def is_lost_connection(error):
    """True for what collective operations raise when a peer has gone; gloo's are plain RuntimeErrors."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, dist.DistNetworkError) or any(word in str(error) for word in words)


@contextmanager
def stop_signals():
    """A list that stays empty until Ctrl-C or SIGTERM puts its number there; a second signal acts as it always does."""
    received = []

    def remember(number, frame):
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the log ----


class Log:
    """One line per interval on the screen and in metrics.jsonl, both from the first process only."""

    def __init__(self, run):
        self.run = run
        self.is_first = run.rank == 0
        self.path = Path(run.config.out_dir) / "metrics.jsonl"
        self.last = {}      # the newest value of everything that was written
        self.measured = {}  # what the newest step returned
        self.losses, self.tokens = [], 0  # of the interval: (loss, weight) of each step, and useful tokens
        self.seconds = 0.0                # of training, without validation and saving
        self.interval_start = time.perf_counter()
        self.interval_seconds = 0.0       # when it was last paused
        self.wandb = start_wandb(run.config) if self.is_first and run.config.use_wandb else None
        if not run.config.resume:
            self.begin_file()
        self.bar = tqdm(total=run.total_steps, unit="step", disable=None if self.is_first else True, leave=False)
        self.say(run.describe())

    def begin_file(self):
        """A new run begins a new file and must not be resumed from the run before, whose files are kept beside it."""
        if not self.is_first:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "training_state.pt"):
            path = self.path.with_name(name)
            if path.is_file():
                os.replace(path, path.with_stem(path.stem + ".before"))
                if name == "training_state.pt":
                    self.say(f"without --resume this run starts anew; the state of the one before is kept in {path.with_stem(path.stem + '.before')}")

    def say(self, text):
        if self.is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def add(self, measured):
        self.measured = measured
        self.losses.append((measured["loss"], measured["weight"]))
        self.tokens += measured["tokens"]
        self.bar.update(self.run.step - self.bar.n)

    def line(self, step):
        """The interval's mean loss and its speed; both start anew afterwards."""
        run = self.run
        run.wait()
        skipped, grad_norm = run.skipped, float(self.measured["grad_norm"])
        seconds = time.perf_counter() - self.interval_start
        self.seconds += seconds
        steps = len(self.losses)
        finite = [(loss, weight) for loss, weight in self.step_losses() if math.isfinite(loss)]
        left_in_epoch = min(-step % run.steps_per_epoch, run.total_steps - step)  # max_steps may end the run first
        metrics = {
            "step": step,
            "epoch": (step - 1) // run.steps_per_epoch + 1,
            "loss": sum(loss * weight for loss, weight in finite) / sum(weight for _, weight in finite) if finite else None,
            "lr": self.measured["lr"],
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens": run.tokens,
            "skipped": skipped,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / seconds,
            "epoch_minutes_left": left_in_epoch * seconds / steps / 60,
        }
        share = run.flops_share(self.tokens / seconds)
        text = (
            f"step {step}/{run.total_steps} | loss {metrics['loss'] if finite else math.nan:.4f} | lr {metrics['lr']:.2e} | "
            f"grad {grad_norm:.2f} | {short_count(metrics['tokens_per_second'])} tok/s | "
            + (f"MFU {share:.1%} | " if share else "")
            + f"{(run.total_steps - step) * seconds / steps / 60:.1f} min left"
            + (f" | {skipped} skipped" if skipped else "")
        )
        self.write({**metrics, "mfu": share} if share else metrics, text)
        self.losses, self.tokens, self.interval_start = [], 0, time.perf_counter()

    def step_losses(self):
        """[(loss, weight)] of the interval's steps, as numbers."""
        return [(float(loss), weight) for loss, weight in self.losses]

    def validation(self, step, measured, probed):
        text = f"step {step}/{self.run.total_steps} | val_loss {measured['val_loss']:.4f} | val_ppl {measured['val_ppl']:.2f} | val_bpb {measured['val_bpb']:.4f}"
        text += "".join(f" | {name} {value:.1%}" if isinstance(value, float) else f" | {name} {value}" for name, value in probed.items())
        self.write({"step": step, **measured, **probed}, text)

    @contextmanager
    def paused(self):
        """Time spent inside does not count against the speed of training."""
        self.run.wait()
        self.interval_seconds = time.perf_counter() - self.interval_start
        yield
        self.interval_start = time.perf_counter() - self.interval_seconds

    def write(self, metrics, text):
        self.last = {**self.last, **metrics}
        self.say(text)
        if not self.is_first:
            return
        with named_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.wandb:
            self.wandb.log(metrics, step=metrics["step"])

    def state(self):
        """What a resumed run needs to write the same lines: the losses of an unfinished interval, and the last metrics."""
        return {"losses": self.step_losses(), "tokens": self.tokens, "last": self.last, "seconds": self.seconds, "interval_seconds": self.interval_seconds}

    def restore(self, state):
        """Take over the state, and cut metrics.jsonl back to the step that it belongs to."""
        self.losses, self.tokens, self.last, self.seconds = state["losses"], state["tokens"], state["last"], state["seconds"]
        self.interval_start = time.perf_counter() - state["interval_seconds"]
        if self.is_first and self.path.is_file():
            lines = read_metrics(self.path)
            kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= self.run.step)
            write_atomically(self.path, lambda path: path.write_text(kept, encoding="utf-8"))

    def close(self):
        self.bar.close()
        if self.wandb:
            self.wandb.finish()


def start_wandb(config):
    """A run of Weights & Biases. Raises ValueError where that asks for a login."""
    import wandb

    try:
        return wandb.init(project="WeakWater", name=config.stage, config=asdict(config))
    except wandb.Error as error:
        raise ValueError(f"--use_wandb: {error}: log in with `wandb login`, or set WANDB_MODE=offline") from None


def short_count(number):
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:.0f}"


def read_metrics(path):
    """The lines of a metrics.jsonl, none if there is none yet; a last line that a crash cut short is left out."""
    lines = []
    if not path.is_file():
        return lines
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def draw_charts(folder, stage):
    """charts/loss_<stage>.png, lr_<stage>.png and epoch_Time_<stage>.png from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(folder / "metrics.jsonl")
    charts = {
        "loss": ({"loss": "training", "val_loss": "validation"}, "loss (nats per token)"),
        "lr": ({"lr": "lr"}, "learning rate"),
        "epoch_Time": ({"epoch_minutes_left": "left"}, "minutes left in the epoch"),
    }
    (folder / "charts").mkdir(exist_ok=True)
    for name, (curves, label) in charts.items():
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for key, legend in curves.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                axes.plot(*zip(*points), label=legend, marker="o" if len(points) < 30 else None, markersize=3, linewidth=1.2)
        axes.set(xlabel="step", ylabel=label, title=f"{name}_{stage}")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
        write_atomically(folder / "charts" / f"{name}_{stage}.png", lambda path: figure.savefig(path, format="png", dpi=120))
        pyplot.close(figure)
