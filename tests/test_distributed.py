"""Several processes that train as one, and the signals that stop them."""

import json
import os
import signal
import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import small_run, tiny_model, weights_of

from infra.cli import UserError
from infra.distributed import (
    Process,
    all_reduce_sum,
    exit_code,
    gradients_stay_here,
    ignore_interrupts,
    is_lost_connection,
    processes,
    stop_signals,
    world_size,
    wrap_ddp,
)
from infra.metrics import read_metrics
from infra.resume import STATE
from model import WeakWater
from trainer import evaluate, prepare, train

CPU = torch.device("cpu")


# ---- two processes ----


def gradients_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def observe_ddp(process):
    """What DDP does to a model whose tables and gradients differ between the processes."""
    model = tiny_model()
    ddp_model = wrap_ddp(model, process)
    model.model.cos += process.rank
    norms = []
    for is_last in (False, True):
        with gradients_stay_here(ddp_model, is_last):
            ids = torch.full((1, 3), 7 + process.rank)
            (ddp_model(ids).sum() * (1 + process.rank)).backward()
        norms.append(float(gradients_of(model).norm()))
    return {"table": float(model.model.cos[0, 0]), "norms": norms}


def observe_stop(rows, validation, config):
    """A run of which the first process is stopped in the validation of step 3."""
    validations = []

    def stop(model):
        validations.append(1)
        signal.raise_signal(signal.SIGTERM)
        return {}

    try:
        train(tiny_model(), rows, config, validation, stop)
    except SystemExit as error:
        return {"code": error.code, "probes": len(validations)}


def observe_resume(rows, config):
    """A run that is resumed where only the first process finds a state."""
    try:
        train(tiny_model(), rows, replace(config, resume=True))
    except UserError as error:
        return str(error)


def one_of_two(rank, ports, rows, validation, folder):
    """Write what this process observes. Each group has a port of its own: the last may still be in use."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    config = small_run(folder / "run")
    os.environ["MASTER_PORT"] = str(ports[0])
    with processes("cpu", config.out_dir) as process:
        run = prepare(tiny_model(), rows, config, CPU)
        seen = {
            "process": [process.rank, process.world],
            "sum": float(all_reduce_sum(torch.tensor(10.0 + rank))),
            "ddp": observe_ddp(process),
            "validation": evaluate(run, validation, config, process),
        }
    seen["is_left"] = not dist.is_initialized()
    os.environ["MASTER_PORT"] = str(ports[1])
    seen["stop"] = observe_stop(rows, validation, config)
    os.environ["MASTER_PORT"] = str(ports[2])
    seen["resume"] = observe_resume(rows, replace(config, out_dir=f"{config.out_dir}{rank or ''}"))
    (folder / f"{rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen(rows, validation, tmp_path_factory):
    """What each of two processes observed, and the folder of their run."""
    folder = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    both = torch.multiprocessing.spawn(one_of_two, (ports, rows, validation, folder), nprocs=2, join=False)
    while not both.join():  # where one fails, the other is ended too
        pass
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], folder / "run"


def test_processes_are_numbered_and_leave_their_group(seen):
    assert [one["process"] for one in seen[0]] == [[0, 2], [1, 2]]
    assert all(one["is_left"] for one in seen[0])


def test_sum_is_over_all_processes(seen):
    assert [one["sum"] for one in seen[0]] == [21.0, 21.0]


def test_tables_of_the_model_are_not_sent_from_process_to_process(seen):
    assert [one["ddp"]["table"] for one in seen[0]] == [1.0, 2.0]


def test_gradients_are_averaged_at_the_last_micro_batch_only(seen):
    first, last = zip(*(one["ddp"]["norms"] for one in seen[0]))
    assert first[0] != first[1] and last[0] == last[1]


def test_averaged_gradient_is_the_mean_of_those_of_the_processes(seen):
    gradients = []
    for rank in (0, 1):
        model = tiny_model()
        model.model.cos += rank
        (model(torch.full((1, 3), 7 + rank)).sum() * (1 + rank) * 2).backward()  # of two micro-batches
        gradients.append(gradients_of(model))
    mean = sum(gradients) / 2
    assert seen[0][0]["ddp"]["norms"][1] == pytest.approx(float(mean.norm()), rel=1e-4)


def test_validation_of_two_processes_is_that_of_one(seen, rows, validation):
    config = small_run("nowhere")
    alone = evaluate(prepare(tiny_model(), rows, config, CPU), validation, config, Process(0, 1, CPU))
    for one in seen[0]:
        assert one["validation"] == pytest.approx(alone, rel=1e-6)


def test_signal_to_one_process_stops_all_at_the_same_step(seen):
    assert [one["stop"]["code"] for one in seen[0]] == [128 + signal.SIGTERM] * 2
    assert torch.load(seen[1] / STATE, weights_only=True)["step"] == 3


def test_probe_is_called_in_the_first_process_alone(seen):
    assert [one["stop"]["probes"] for one in seen[0]] == [1, 0]


def test_each_line_is_written_once(seen):
    steps = [line["step"] for line in read_metrics(seen[1] / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]


def test_two_processes_leave_the_weights_of_one(seen, rows, tmp_path):
    model = tiny_model()
    config = small_run(tmp_path)

    class Enough(Exception):
        pass

    def stop(model):
        raise Enough

    with pytest.raises(Enough):
        train(model, rows, config, rows, stop)  # after step 3
    saved = weights_of(WeakWater.from_pretrained(seen[1]))
    torch.testing.assert_close(saved, weights_of(model), rtol=1e-3, atol=1e-5)


def test_resuming_where_not_all_processes_find_the_state_is_refused(seen):
    for one in seen[0]:
        assert "found different steps in different processes: copy it to every machine" in one["resume"]


# ---- one process ----


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_size() == 1
    with processes("cpu", "out") as process:
        assert process == Process(0, 1, CPU) and not dist.is_initialized()


def test_one_process_trains_the_model_itself():
    model = tiny_model()
    assert wrap_ddp(model, Process(0, 1, CPU)) is model
    assert all_reduce_sum(torch.tensor(3.0)) == 3.0


@pytest.mark.parametrize(
    "message, expected",
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", True),
        ("writev: Broken pipe", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_lost_process_is_told_from_a_bug(message, expected):
    assert is_lost_connection(RuntimeError(message)) == expected


# ---- signals ----


def test_signal_is_remembered_and_the_program_goes_on():
    with stop_signals() as received:
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT]


def test_second_signal_acts_as_usual():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), stop_signals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("received, code", [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([], 143)])
def test_exit_code_is_that_of_the_signal(received, code):
    assert exit_code(received) == code


def test_workers_outlive_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts(worker=0)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
