"""Resuming: a run that was cut off ends as one that never was, or is refused with the difference named."""

import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ChangedRows, conversation, small_run, tiny_model, trained, weights_of, write_jsonl

from dataset import PackedRows, open_tokens
from infra.cli import UserError
from infra.config_json import read_json
from infra.metrics import TIMING_METRICS, read_metrics
from infra.resume import STATE
from model import WeakWater
from trainer import train


class Crash(Exception):
    pass


def metrics_of(config):
    """The metrics of a run but for those that time it."""
    lines = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    return [{name: line[name] for name in line.keys() - set(TIMING_METRICS)} for line in lines]


def state_of(config):
    return torch.load(Path(config.out_dir) / STATE, weights_only=True)


def stopped_at(step, rows, config, validation):
    """Run until a signal stops the run after this step, at which it validates."""

    def send_signal(model):
        send_signal.validations += 1
        if send_signal.validations == step // config.eval_every:
            signal.raise_signal(signal.SIGTERM)
        return {}

    send_signal.validations = 0
    with pytest.raises(SystemExit):
        train(tiny_model(), rows, config, validation, send_signal)
    assert state_of(config)["step"] == step


@pytest.fixture(scope="module")
def whole(rows, validation, tmp_path_factory):
    """(config, weights) of a run that was never cut off, with a checkpoint after every second step."""
    config = small_run(tmp_path_factory.mktemp("whole"), eval_every=1, save_every=2)
    model = tiny_model()
    train(model, rows, config, validation)
    return config, weights_of(model)


# ---- the same to the bit ----


@pytest.fixture(scope="module", params=[1, 3, 6])
def cut_off(request, rows, validation, whole, tmp_path_factory):
    """(config, weights) of a run like `whole` that crashed after this step's update and was resumed."""
    config = replace(whole[0], out_dir=str(tmp_path_factory.mktemp("cut_off")))
    steps = []

    def crash(model):
        steps.append(len(steps) + 1)
        if steps[-1] == request.param:
            raise Crash
        return {}

    with pytest.raises(Crash):
        train(tiny_model(), rows, config, validation, crash)
    if request.param == 1:  # before the first save: it starts again
        model = tiny_model()
    else:  # as if built anew: nothing but the saved state may matter
        model = tiny_model(seed=9)
        assert state_of(config)["step"] == {3: 2, 6: 4}[request.param]
    train(model, rows, replace(config, resume=True), validation)
    return config, weights_of(model)


def test_resumed_run_is_bit_identical(cut_off, whole):
    assert torch.equal(cut_off[1], whole[1])


def test_checkpoint_of_a_resumed_run_is_bit_identical(cut_off, whole):
    files = [(Path(config.out_dir) / "model.safetensors").read_bytes() for config, _ in (cut_off, whole)]
    assert files[0] == files[1]


def test_metrics_of_a_resumed_run_are_those_of_one_never_cut_off(cut_off, whole):
    assert metrics_of(cut_off[0]) == metrics_of(whole[0]) and len(metrics_of(whole[0])) == 20


def test_run_stopped_between_two_lines_of_the_log_goes_on_with_the_same_lines(rows, validation, tmp_path):
    one, two = (small_run(tmp_path / name, log_every=4) for name in ("one", "two"))
    train(tiny_model(), rows, one, validation)
    stopped_at(6, rows, two, validation)
    train(tiny_model(seed=9), rows, replace(two, resume=True), validation)
    assert metrics_of(two) == metrics_of(one)
    assert [line["step"] for line in metrics_of(one) if "loss" in line] == [4, 8, 10]


def test_dropped_updates_of_the_stopped_run_stay_counted(rows, validation, config):
    def plant(number, batch):
        if number == 20:
            batch.loss_weights[-1] = math.nan
        return batch

    broken = ChangedRows(rows, plant)
    whole = small_run(config.out_dir + "_whole")
    train(tiny_model(), broken, whole, validation)
    stopped_at(6, broken, config, validation)
    train(tiny_model(), broken, replace(config, resume=True), validation)
    assert metrics_of(config) == metrics_of(whole) and metrics_of(whole)[-2]["dropped"] == 2


def test_flags_that_change_no_weights_may_differ_in_a_resumed_run(rows, validation, config):
    weights = trained(rows, config)
    config = replace(config, out_dir=config.out_dir + "_cut")
    stopped_at(3, rows, config, validation)
    others = {"log_every": 7, "eval_every": 5, "save_every": 3, "num_workers": 1, "dtype": "fp32"}
    assert torch.equal(trained(rows, config, resume=True, **others), weights)


# ---- crashes in the last save ----


def test_crash_between_state_and_checkpoint_of_the_last_save_is_made_good(rows, validation, config):
    stopped_at(3, rows, config, validation)
    before = shutil.copytree(config.out_dir, config.out_dir + "_before")
    weights = trained(rows, config, resume=True)
    for name in ("model.safetensors", "config.json"):  # as they were when only the state was new
        shutil.copy(Path(before) / name, config.out_dir)
    trained(rows, config, resume=True)
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), weights)
    assert read_json(config.out_dir)["is_finished"] is True


def test_crash_before_the_only_checkpoint_is_made_good(rows, config):
    weights = trained(rows, config)
    for path in Path(config.out_dir).iterdir():
        if path.name not in (STATE, "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    trained(rows, config, resume=True)
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), weights)


def test_resuming_a_finished_run_changes_nothing(rows, config, capsys):
    weights = trained(rows, config)
    checkpoint, metrics = Path(config.out_dir, "model.safetensors").read_bytes(), metrics_of(config)
    assert torch.equal(trained(rows, config, resume=True), weights)
    assert Path(config.out_dir, "model.safetensors").read_bytes() == checkpoint
    assert metrics_of(config) == metrics
    assert f"finished: {config.out_dir} is at step 10/10" in capsys.readouterr().out


# ---- another run ----


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2},
        {"accumulation_steps": 4},
        {"epochs": 3},
        {"seed": 6},
        {"max_steps": 3},
        {"learning_rate": 1e-4},
        {"grad_clip": 2.0},
        {"stage": "SFT"},
    ],
)
def test_resuming_another_run_is_refused_by_name(change, rows, whole):
    ((name, value),) = change.items()
    stopped = getattr(whole[0], name)
    with pytest.raises(UserError, match=f"the stopped run had {name} {stopped}, this one has {value}: use"):
        trained(rows, whole[0], resume=True, **change)


def test_resuming_in_another_arithmetic_is_refused_by_name(rows, whole):
    with pytest.raises(UserError, match="had dtype float32, this one has bfloat16"):
        trained(rows, whole[0], resume=True, dtype="bf16")


def test_resuming_with_another_model_is_refused_by_name(rows, whole):
    with pytest.raises(UserError, match="had model num_hidden_layers 3, this one has 2"):
        train(tiny_model(num_hidden_layers=2), rows, replace(whole[0], resume=True))


def test_resuming_with_other_data_is_refused_by_name(tokenizer, whole, tmp_path):
    document = {"conversations": conversation("1+1?", "2")}
    cache = open_tokens(write_jsonl(tmp_path / "other.jsonl", [document] * 9), tokenizer, "conversations")
    with pytest.raises(UserError, match="the stopped run had data "):
        trained(PackedRows(cache, np.arange(9), 128), whole[0], resume=True)


def test_resuming_with_rows_packed_otherwise_is_refused_by_name(rows, whole):
    with pytest.raises(UserError, match="the stopped run had rows "):
        trained(PackedRows(rows.cache, rows.documents, 128, seed=1), whole[0], resume=True)


def test_refused_run_leaves_the_stopped_one_as_it_was(rows, config):
    trained(rows, config, max_steps=1)
    before = {path: path.read_bytes() for path in Path(config.out_dir).rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        trained(rows, config, max_steps=1, seed=6, resume=True)
    assert {path: path.read_bytes() for path in Path(config.out_dir).rglob("*") if path.is_file()} == before


def test_other_number_of_processes_is_told(rows, validation, config, capsys):
    stopped_at(3, rows, config, validation)
    torch.save({**state_of(config), "processes": 2}, Path(config.out_dir) / STATE)
    trained(rows, config, resume=True)
    assert "the stopped run had 2 processes, this one has 1" in capsys.readouterr().out


# ---- the state ----


@pytest.mark.parametrize("content", [b"", b"not a state", bytes(100)])
def test_state_that_is_not_whole_is_refused(content, rows, config):
    trained(rows, config, max_steps=1)
    (Path(config.out_dir) / STATE).write_bytes(content)
    advice = "delete it to start anew, or begin at its weights with"
    found = f"{STATE}: not a whole training state of this version: {advice}"
    with pytest.raises(UserError, match=found):
        trained(rows, config, max_steps=1, resume=True)


def test_state_cut_short_is_refused(rows, config):
    trained(rows, config, max_steps=1)
    path = Path(config.out_dir) / STATE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a whole training state"):
        trained(rows, config, max_steps=1, resume=True)


def test_training_state_holds_no_code_and_no_temporary_file_stays(whole):
    assert state_of(whole[0])["step"] == 10  # read with weights_only
    assert not list(Path(whole[0].out_dir).rglob("*.tmp"))


def test_state_keeps_the_master_weights_in_float32(whole):
    assert {tensor.dtype for tensor in state_of(whole[0])["model"].values()} == {torch.float32}


# ---- without a state, or without --resume ----


def test_resume_without_a_state_starts_at_the_first_step(rows, config, capsys):
    weights = trained(rows, replace(config, out_dir=config.out_dir + "_whole"))
    assert torch.equal(trained(rows, config, resume=True), weights)
    assert f"nothing to resume in {config.out_dir}: starting at step 1" in capsys.readouterr().out


def test_fresh_run_keeps_the_files_of_the_run_before(rows, config, capsys):
    trained(rows, config)
    folder = Path(config.out_dir)
    before = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", STATE)}
    trained(rows, config, seed=9)
    assert (folder / "metrics.before.jsonl").read_bytes() == before["metrics.jsonl"]
    assert (folder / "training_state.before.pt").read_bytes() == before[STATE]
    assert f"kept in {folder / 'training_state.before.pt'}" in capsys.readouterr().out
    second = (folder / STATE).read_bytes()
    trained(rows, config, seed=10)
    assert (folder / "training_state.before.pt").read_bytes() == before[STATE]
    assert (folder / "training_state.before1.pt").read_bytes() == second


def test_report_of_a_finished_run_is_its_own(rows, config):
    trained(rows, config)
    report = Path(config.out_dir) / "report.html"
    finished = report.read_bytes()
    trained(rows, config, resume=True, log_every=7)  # nothing is left to train
    assert report.read_bytes() == finished
    with pytest.raises(KeyboardInterrupt):
        trained(ChangedRows(rows, interrupt), config, seed=9)
    assert not report.exists() and report.with_name("report.before.html").read_bytes() == finished


def interrupt(number, row):
    raise KeyboardInterrupt


def test_fresh_run_is_not_resumed_from_the_run_before(rows, config):
    weights = trained(rows, replace(config, out_dir=config.out_dir + "_alone"))
    trained(rows, config, seed=9)
    assert torch.equal(trained(rows, config), weights)
    assert [line["step"] for line in metrics_of(config)] == list(range(1, 11))
