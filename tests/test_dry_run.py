"""`--dry_run`: what it promises, and that it leaves nothing behind."""

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import small_run, tiny_model

from infra.cli import UserError
from infra.dry_run import check_disk, dry_run, duration, rehearse
from infra.extent import describe
from infra.resume import STATE
from trainer import learning_rate, train

STEP, VALIDATION, START = 0.02, 0.1, 0.3  # seconds of a clockwork run
STATE_BYTES, MODEL_BYTES = 5000, 20000


def clockwork(model, rows, config, validation=None, probe=None, seconds=lambda step: step * STEP):
    """In place of `train`: a run that takes known times and leaves files of known sizes."""
    steps = config.total_steps(len(rows))
    print(f"a clockwork of {steps} steps of {config.rows_per_step} rows")
    time.sleep(START + steps * STEP + (VALIDATION if validation else 0))
    folder = Path(config.out_dir)
    lines = [
        {"step": step, "loss": 1.0, "seconds": seconds(step), "tokens": step * 100}
        for step in range(1, steps + 1)
    ]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(metrics)
    (folder / STATE).write_bytes(bytes(STATE_BYTES))
    (folder / "model.safetensors").write_bytes(bytes(MODEL_BYTES - len(metrics)))
    return {"step": steps, **({"val_seconds": VALIDATION} if validation else {})}


@pytest.fixture(scope="module")
def promised(rows, validation, tmp_path_factory):
    """What is promised for a clockwork run of 30 steps, with a validation after every tenth."""
    out_dir = tmp_path_factory.mktemp("promised") / "run"
    config = small_run(out_dir, epochs=6, eval_every=10, dry_run=True)
    assert config.total_steps(len(rows)) == 30
    return dry_run(clockwork, tiny_model(), rows, config, validation)


def test_hours_are_those_of_all_steps_all_validations_and_the_start(promised):
    assert promised["hours"] * 3600 == pytest.approx(30 * STEP + 3 * VALIDATION + START, rel=0.1)


@pytest.mark.parametrize("epochs", [1, 10**9])
def test_a_long_run_is_timed_compiled_as_it_will_be(epochs, rows, tmp_path):
    compiled = []

    def look(model, rows, config, *rest):
        compiled.append(config.compile)
        return clockwork(model, rows, config, *rest)

    rehearse(look, tiny_model(), rows, small_run(tmp_path / "run", epochs=epochs, compile=None), steps=2)
    assert compiled == [epochs > 1]


def test_speed_is_that_of_the_steps_without_start_and_validation(promised):
    assert promised["step_seconds"] == pytest.approx(STEP)
    assert promised["tokens_per_second"] == pytest.approx(100 / STEP)


def test_speed_is_that_of_the_later_half_since_a_processor_at_rest_is_fast_at_first(rows, config):
    slower = partial(clockwork, seconds=lambda step: STEP * (step / 2 if step <= 11 else step - 5.5))
    found = rehearse(slower, tiny_model(), rows, replace(config, epochs=30), steps=21)
    assert found.step_seconds == pytest.approx(STEP)


@pytest.mark.parametrize("seconds, steps", [(1.0, 30), (3.0, 20), (10.0, 12)])
def test_half_a_minute_and_20_steps_are_timed_within_two_minutes(seconds, steps, rows, config):
    asked = []

    def remember(model, rows, config, *rest):
        asked.append(config.max_steps)
        return clockwork(model, rows, config, *rest, seconds=lambda step: step * seconds)

    dry_run(remember, tiny_model(), rows, replace(config, epochs=30, dry_run=True))
    assert asked[-1] == steps + 1


def test_disk_has_room_for_the_checkpoint_and_for_a_new_state_beside_the_old_one(promised):
    assert promised["disk_bytes"] == MODEL_BYTES + 2 * STATE_BYTES


def test_disk_that_is_promised_is_what_a_run_takes(rows, config):
    promised = train(tiny_model(), rows, replace(config, dry_run=True))
    train(tiny_model(), rows, config)
    sizes = {path.name: path.stat().st_size for path in Path(config.out_dir).rglob("*") if path.is_file()}
    assert promised["disk_bytes"] == pytest.approx(sum(sizes.values()) + sizes[STATE], rel=0.02)


def test_time_of_the_probe_counts_once_for_each_validation(rows, validation, config):
    asked = []

    def probe(model):
        asked.append(model)
        time.sleep(0.5)
        return {}

    promised = train(tiny_model(), rows, replace(config, dry_run=True), validation, probe)
    assert len(asked) == 1 and 0.5 < promised["validation_seconds"] < 1.5
    assert promised["hours"] * 3600 > math.ceil(10 / config.eval_every) * 0.5


def test_nothing_is_written(rows, validation, config, capsys):
    before = sorted(Path(config.out_dir).parent.rglob("*"))
    train(tiny_model(), rows, replace(config, dry_run=True), validation)
    assert sorted(Path(config.out_dir).parent.rglob("*")) == before
    assert "Nothing was written. The same command without --dry_run trains." in capsys.readouterr().out


def test_first_line_is_that_of_the_run_itself(rows, config, capsys):
    config = replace(config, epochs=10, batch_size=8, accumulation_steps=1, warmup_steps=-1)
    train(tiny_model(), rows, replace(config, dry_run=True))
    line = capsys.readouterr().out.splitlines()[0]
    assert line == describe(tiny_model(), rows, config, "cpu in float32")
    assert line.endswith("| 40 steps of 8 rows, 2 of warm-up")


def test_steps_that_are_timed_are_the_first_of_the_run(rows, config):
    """Otherwise a peak rate that needs its warm-up would end the dry run."""
    seen = []

    def remember(model, rows, config, validation, probe):
        seen.append([learning_rate(step, config.total_steps(len(rows)), config) for step in (1, 2, 3)])
        return clockwork(model, rows, config, validation, probe)

    dry_run(remember, tiny_model(), rows, replace(config, epochs=30, warmup_steps=-1, dry_run=True))
    expected = [learning_rate(step, 150, config) for step in (1, 2, 3)]
    assert seen == [pytest.approx(expected)] * 2


def test_checkpoint_of_a_run_before_is_left_alone(rows, config):
    train(tiny_model(), rows, replace(config, max_steps=1))
    before = {path: path.read_bytes() for path in Path(config.out_dir).rglob("*") if path.is_file()}
    train(tiny_model(), rows, replace(config, dry_run=True, resume=True))
    assert {path: path.read_bytes() for path in Path(config.out_dir).rglob("*") if path.is_file()} == before


# ---- memory ----


def train_in_little_memory(model, rows, config, validation=None, probe=None):
    """`train` where no more than two rows fit."""
    if config.batch_size > 2:
        raise torch.OutOfMemoryError("planted")
    return train(model, rows, config, validation, probe)


def test_micro_batch_is_halved_until_it_fits_in_steps_of_as_many_rows(rows, config, capsys):
    config = replace(config, batch_size=8, dry_run=True)
    promised = dry_run(train_in_little_memory, tiny_model(), rows, config)
    said = capsys.readouterr().out
    assert (promised["batch_size"], promised["accumulation_steps"]) == (2, 8)
    for size in (8, 4):
        assert f"--batch_size {size} does not fit into the memory, trying half of it" in said
    assert "--batch_size 2 --accumulation_steps 8 fits" in said and "steps of 16 rows" in said
    assert said.endswith("trains, if --batch_size 2 --accumulation_steps 8 is added.\n")


def test_steps_of_an_odd_micro_batch_are_counted_as_the_fitting_one_takes_them(rows, config, capsys):
    config = replace(config, batch_size=5, accumulation_steps=1, dry_run=True)
    dry_run(train_in_little_memory, tiny_model(), rows, config)
    assert len(rows) == 29 and "16 steps of 4 rows" in capsys.readouterr().out  # 8 in each epoch


def test_one_row_that_does_not_fit_is_a_mistake_of_the_user(rows, config):
    def no_memory(model, rows, config, validation, probe):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(
        UserError, match="--batch_size 1 does not fit into the memory: try a shorter --max_seq"
    ):
        dry_run(no_memory, tiny_model(), rows, config)


def test_error_of_a_run_that_is_not_for_lack_of_memory_comes_through(rows, config):
    def broken(model, rows, config, validation, probe):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        dry_run(broken, tiny_model(), rows, config)
    assert not list(Path(config.out_dir).parent.iterdir())


# ---- what cannot be promised ----


def test_disk_that_is_too_small_is_refused():
    check_disk(needed=2 * 10**9, free=2 * 10**9, out_dir="out/SFT")
    found = "out/SFT needs 2.00 GB, found 1.50 GB free: make room, or pass another --out_dir"
    with pytest.raises(UserError, match=found):
        check_disk(needed=2 * 10**9, free=15 * 10**8, out_dir="out/SFT")


def test_run_of_one_step_cannot_be_timed(rows, config):
    with pytest.raises(UserError, match="found a run of 1 step, expected at least 2 to be timed"):
        train(tiny_model(), rows, replace(config, max_steps=1, dry_run=True))


def test_run_of_two_steps_can_be_timed(rows, config):
    assert train(tiny_model(), rows, replace(config, max_steps=2, dry_run=True))["hours"] > 0


def test_rehearsal_asks_for_no_more_than_training(rows, config):
    """No login to Weights & Biases, no state to resume from."""
    seen = []

    def remember(model, rows, config, validation, probe):
        seen.append(config)
        return clockwork(model, rows, config, validation, probe)

    asked = replace(config, use_wandb=True, resume=True, dry_run=True)
    rehearse(remember, tiny_model(), rows, asked, steps=3)
    assert not (seen[0].use_wandb or seen[0].resume or seen[0].dry_run) and seen[0].out_dir != config.out_dir


@pytest.mark.parametrize("seconds, text", [(30, "0.5 minutes"), (3599, "60.0 minutes"), (5400, "1.5 hours")])
def test_duration_in_words(seconds, text):
    assert duration(seconds) == text
