"""What a run writes down: lines, charts, and what is said of its length and speed."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_run, tiny_model, trained

from Config import LLMConfig
from infra.charts import draw_charts
from infra.distributed import Process
from infra.extent import Extent, extent_of, mean_context, token_flops
from infra.metrics import Log, number_text, read_metrics, short_count
from model import WeakWater
from trainer import train

CPU = torch.device("cpu")
ALONE = Process(rank=0, world=1, device=CPU)


def log_of(folder, total_steps=100, steps_per_epoch=40, peak=None, rank=0):
    extent = Extent(total_steps, steps_per_epoch, peak)
    folder.mkdir(exist_ok=True)  # as the lock on a run's folder does
    return Log(small_run(folder), Process(rank, 2 if rank else 1, CPU), extent)


def lines_of(log):
    return read_metrics(log.path)


# ---- a line of the log ----


def test_loss_of_an_interval_is_the_mean_over_its_tokens_without_what_is_no_number(tmp_path):
    log = log_of(tmp_path)
    for loss, weight in (2.0, 10.0), (math.nan, 7.0), (5.0, 20.0), (math.inf, 1.0):
        log.add(torch.tensor(loss), weight, tokens=1)
    log.interval(4, 1e-3, 1.0, dropped=2)
    assert lines_of(log)[0]["loss"] == (2 * 10 + 5 * 20) / 30


def test_what_is_no_number_is_null_in_metrics(tmp_path, capsys):
    log = log_of(tmp_path)
    log.add(torch.tensor(math.nan), 1.0, tokens=1)
    log.interval(1, 1e-3, math.inf, dropped=1)
    line = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["grad_norm"] is None
    assert "loss nan | lr 1.00e-03 | grad inf" in capsys.readouterr().out


def test_each_interval_begins_anew_and_tokens_add_up(tmp_path):
    log = log_of(tmp_path)
    for step, loss in (1, 2.0), (2, 3.0):
        log.add(torch.tensor(loss), 1.0, tokens=30)
        log.interval(step, 1e-3, 1.0, dropped=0)
    assert [(line["loss"], line["tokens"]) for line in lines_of(log)] == [(2.0, 30), (3.0, 60)]


def test_speed_is_of_training_without_validating_and_saving(tmp_path):
    log = log_of(tmp_path)
    time.sleep(0.2)
    with log.paused():
        time.sleep(0.5)
    time.sleep(0.1)
    log.add(torch.tensor(1.0), 1.0, tokens=600)
    log.interval(1, 1e-3, 1.0, dropped=0)
    (line,) = lines_of(log)
    assert line["seconds"] == pytest.approx(0.3, abs=0.1)
    assert line["tokens_per_second"] == 600 / line["seconds"]


def test_minutes_left_are_those_of_the_steps_left_at_the_speed_of_the_interval(tmp_path, capsys):
    log = log_of(tmp_path, total_steps=100, steps_per_epoch=40)
    time.sleep(0.1)
    for _ in range(10):
        log.add(torch.tensor(1.0), 1.0, tokens=1)
    log.interval(50, 1e-3, 1.0, dropped=0)
    (line,) = lines_of(log)
    assert line["epoch"] == 2 and line["epoch_minutes_left"] == pytest.approx(30 * line["seconds"] / 10 / 60)
    assert "| 0.0 min left" in capsys.readouterr().out


def test_minutes_left_in_the_epoch_end_with_the_run(tmp_path):
    log = log_of(tmp_path, total_steps=50, steps_per_epoch=40)
    log.add(torch.tensor(1.0), 1.0, tokens=1)
    log.interval(50, 1e-3, 1.0, dropped=0)
    assert lines_of(log)[0]["epoch_minutes_left"] == 0


def test_mfu_is_the_share_of_the_peak_and_is_left_out_where_that_is_not_known(tmp_path, capsys):
    for peak in (None, 1e6):
        log = log_of(tmp_path / str(peak), peak=peak)
        time.sleep(0.01)
        log.add(torch.tensor(1.0), 1.0, tokens=600)
        log.interval(1, 1e-3, 1.0, dropped=0)
        (line,) = lines_of(log)
        assert ("mfu" in line) == ("MFU" in capsys.readouterr().out) == (peak is not None)
    assert line["mfu"] == line["tokens_per_second"] / 1e6


def test_only_the_first_process_prints_and_writes(tmp_path, capsys):
    log = log_of(tmp_path, rank=1)
    log.add(torch.tensor(1.0), 1.0, tokens=1)
    log.interval(1, 1e-3, 1.0, dropped=0)
    log.stopped(1, "")
    log.close()
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


def test_line_of_a_validation_shows_each_number_in_its_way(tmp_path, capsys):
    log = log_of(tmp_path)
    with log.paused():
        log.validation(7, {"val_loss": 1.23456, "val_ppl": 3.43672, "well_formed": 0.255, "questions": 40})
    expected = "step 7/100 | val_loss 1.2346 | val_ppl 3.44 | well_formed 25.5% | questions 40\n"
    assert capsys.readouterr().out == expected
    assert lines_of(log)[0]["val_loss"] == 1.23456


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("val_loss", 2.0, "2.0000"),
        ("val_bpb", 0.98765, "0.9877"),
        ("val_ppl", 12.345, "12.35"),
        ("reasoning_accuracy", 0.5, "50.0%"),
        ("reasoning_accuracy", 3, "3"),
    ],
)
def test_number_text(name, value, text):
    assert number_text(name, value) == text


@pytest.mark.parametrize(
    "number, text", [(999.6, "1000"), (9999, "9999"), (10_000, "10k"), (182_400, "182k"), (1.234e6, "1.23M")]
)
def test_short_count(number, text):
    assert short_count(number) == text


# ---- metrics.jsonl ----


def test_a_step_is_written_with_its_metrics(rows, config):
    trained(rows, config)
    first, *_, last = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    learning = {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "dropped"}
    assert set(first) == learning | {"seconds", "tokens_per_second", "epoch_minutes_left"}
    assert last["step"] == 10 and last["epoch"] == 2 and last["epoch_minutes_left"] == 0


def test_tokens_are_the_useful_ones_and_not_padding(rows, config):
    last = train(tiny_model(), rows, config)
    of_rows = [int((rows[number].document_ids > 0).sum()) for number in range(len(rows))]
    assert last["tokens"] == 2 * sum(of_rows) < 2 * 29 * 128


def test_log_every_averages_the_steps_between_and_ends_with_the_run(rows, config):
    trained(rows, config)
    each = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    trained(rows, config, log_every=4)
    lines = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 10]
    losses = [line["loss"] for line in each[:4]]
    assert min(losses) < lines[0]["loss"] < max(losses) and lines[2]["tokens"] == each[-1]["tokens"]


def test_half_written_last_line_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"ste')
    assert read_metrics(path) == [{"step": 1}]


def test_no_file_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_restored_log_cuts_the_metrics_back_to_its_step(tmp_path):
    log = log_of(tmp_path)
    for step in (1, 2, 3):
        log.add(torch.tensor(float(step)), 1.0, tokens=10)
        log.interval(step, 1e-3, 1.0, dropped=0)
        if step == 2:
            with log.paused():
                state = log.state()
    log.path.write_text(log.path.read_text() + '{"ste')  # what a crash left
    restored = log_of(tmp_path)
    restored.restore(state, step=2)
    restored.add(torch.tensor(4.0), 1.0, tokens=10)
    restored.interval(3, 1e-3, 1.0, dropped=0)
    assert [(line["loss"], line["tokens"]) for line in lines_of(log)] == [(1.0, 10), (2.0, 20), (4.0, 30)]


# ---- charts ----


def test_charts_are_drawn_for_the_stage(rows, validation, config):
    train(tiny_model(), rows, replace(config, stage="SFT"), validation)
    charts = sorted((Path(config.out_dir) / "charts").iterdir())
    assert [path.name for path in charts] == ["epoch_Time_SFT.png", "loss_SFT.png", "lr_SFT.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in charts)


def test_charts_pass_over_losses_that_are_no_numbers(tmp_path):
    lines = [
        {"step": 1, "loss": None, "lr": 0.1},
        {"step": 2, "loss": 3.0, "lr": 0.2, "epoch_minutes_left": 1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_charts(tmp_path, "test")
    assert len(list((tmp_path / "charts").glob("*.png"))) == 3


# ---- the length of a run, and the arithmetic of a token ----


def test_arithmetic_of_a_token_by_hand():
    """3 (forward, and twice that backward) x (2 for each of 28,975,616 parameters, and for each of 8 layers
    and 512 channels 2 to compare and 2 to gather each of 100 positions)."""
    flops = token_flops(WeakWater(LLMConfig()), mean_context=100.0)
    assert flops == 3 * (57_951_232 + 8 * 512 * 4 * 100) == 178_768_896


def test_attention_counts_only_the_positions_that_tokens_see(rows):
    seen = []
    for number in range(len(rows)):
        ids = rows[number].document_ids
        sees = (ids[:, None] == ids[None]) & torch.ones(128, 128, dtype=torch.bool).tril()
        seen.append(sees.sum(1)[ids > 0])
    assert mean_context(rows.lengths) == pytest.approx(torch.cat(seen).double().mean().item())
    assert mean_context(rows.lengths) < 40  # in rows of 128


def test_extent_of_a_run(rows, config):
    extent = extent_of(tiny_model(), rows, replace(config, max_steps=7), ALONE, torch.float32)
    assert (extent.total_steps, extent.steps_per_epoch, extent.peak_tokens_per_second) == (7, 5, None)


def test_first_line_names_the_model_the_data_and_the_steps(rows, config, capsys):
    trained(rows, config)
    line = capsys.readouterr().out.splitlines()[0]
    padding = 1 - sum(rows.lengths) / (29 * 128)
    assert line == (
        "test from random weights: 69,072 parameters on cpu in float32 | 29 rows of 128,"
        f" {padding:.1%} padding, 0 documents truncated, 0 bad lines skipped"
        " | 10 steps of 6 rows, 1 of warm-up"
    )
