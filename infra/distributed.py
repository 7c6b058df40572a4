"""Several processes that train as one (torchrun), and signals that stop them all at the same step."""

import inspect
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from infra.cli import UserError
from infra.device import pick_device
from infra.locks import alone_in


@dataclass(frozen=True)
class Process:
    """One of `world` processes, numbered by `rank`, and the device that it trains on."""

    rank: int
    world: int
    device: torch.device


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


@contextmanager
def processes(device: str, out_dir: str) -> Iterator[Process]:
    """This process. Under torchrun it joins the others in a group; losing one of them raises UserError.

    The first of them holds the lock of `out_dir`.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    with (
        alone_in(Path(out_dir)) if is_first else nullcontext(),
        joined(pick_device(device), out_dir) as process,
    ):
        yield process


@contextmanager
def joined(device: torch.device, out_dir: str) -> Iterator[Process]:
    if world_size() == 1:
        yield Process(0, 1, device)
        return
    has_nccl = device.type == "cuda" and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_nccl else "gloo")
    rank = dist.get_rank()
    try:
        yield Process(rank, dist.get_world_size(), device)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(
            f"process {rank}: another process of this run has ended ({str(error).splitlines()[0]}). {out_dir}"
            " keeps the last checkpoint: the same command with --resume goes on from there,"
            " with any number of processes"
        ) from None
    finally:
        # gloo's threads need Python's global lock to let go of the last tensors. Freeing the group holds that
        # lock and joins the threads, so they must be done before.
        time.sleep(0.1)
        dist.destroy_process_group()


def is_lost_connection(error: RuntimeError) -> bool:
    """True for what collective operations raise when a peer has gone; gloo's are plain RuntimeErrors."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, dist.DistNetworkError) or any(word in str(error) for word in words)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, of numbers of the host or of the device."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def wrap_ddp(model: torch.nn.Module, process: Process) -> torch.nn.Module:
    """The model as training calls it: its gradients are averaged over all processes."""
    if process.world == 1:
        return model
    # the only buffers are RoPE's tables, the same everywhere, which need no exchange at each forward pass
    newer, older = "forward_sync_buffers", "broadcast_buffers"  # the name until torch 2.12
    name = newer if newer in inspect.signature(DistributedDataParallel).parameters else older
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, **{name: False})


def gradients_stay_here(model: torch.nn.Module, is_last: bool):
    """A context in which gradients are added up but not averaged, until the step's last micro-batch."""
    is_averaged = is_last or not isinstance(model, DistributedDataParallel)
    return nullcontext() if is_averaged else model.no_sync()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM puts its number there; a second signal acts as usual."""
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


def exit_code(received: list[int]) -> int:
    """The usual code of a program that a signal ended; that of SIGTERM where another process received it."""
    return 128 + (received or [signal.SIGTERM])[0]


def ignore_interrupts(worker: int) -> None:
    """For a DataLoader's worker: Ctrl-C reaches it too, but it must live on until its trainer has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
