"""tools/speedrun.py: the loop is the trainer's, changes are what they say, the documented tables are true."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import optimizer
from Config import LLMConfig
from dataset import PackedRows, open_tokens
from infra.metrics import read_metrics
from model import WeakWater
from optimizer import orthogonalize
from tools import speedrun
from tools.speedrun import RECIPE, CutRows, table, train_changed
from tools.speedrun_changes import CHANGES, Change, change_named
from trainer import train

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def cache(data, tokenizer, tmp_path_factory):
    return open_tokens(data["pretrain"], tokenizer, "text", cache_dir=str(tmp_path_factory.mktemp("cache")))


def small_model():
    torch.manual_seed(0)
    return WeakWater(LLMConfig(**SMALL, num_hidden_layers=2, vocab_size=400))


def trained(name, cache, steps=4):
    """The weights after so many steps with a change of CHANGES, in one vector, and the losses."""
    model, config = small_model(), replace(RECIPE, device="cpu", compile=False, **CHANGES[name].config)
    _, losses = train_changed(CHANGES[name], model, cache, config, positions=steps * 8 * 512)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), losses


def test_baseline_takes_the_steps_of_the_trainer(cache, tmp_path):
    config = replace(
        RECIPE, device="cpu", compile=False, batch_size=3, max_seq_len=64, seed=3, epochs=9, max_steps=20,
        log_every=1, dtype="fp32", out_dir=str(tmp_path),
    )  # fmt: skip
    ours, theirs = small_model(), small_model()
    run, losses = train_changed(CHANGES["baseline"], ours, cache, config, positions=20 * 3 * 64)
    rows = PackedRows(cache, np.arange(len(cache)), 64, config.seed)
    assert len(rows) > 2 * 20 * 3 / config.epochs  # it begins a second epoch, and never ends by itself
    train(theirs, rows, config)
    expected = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == len(expected) == 20 and losses[0] > losses[-1]
    assert losses == pytest.approx(expected, abs=1e-5) and run.watch.dropped == 0


@pytest.mark.parametrize(
    "name",
    [
        "AdamW alone, 2e-3",
        "3 iterations",
        "momentum 0.9",
        "cosine to 0",
        "constant, last 60% linear to 0",
        "half the batch",
        "pieces of 128, then 512",
        "dropout 0.1",
    ],
)
def test_change_learns_something_else_than_the_baseline(name, cache):
    baseline, _ = trained("baseline", cache)
    weights, losses = trained(name, cache)
    assert losses[-1] < losses[0] and not torch.equal(weights, baseline)
    assert len(losses) == (8 if name == "half the batch" else 4)


def test_changes_together_make_the_differences_of_each():
    half_dropped = replace(CHANGES["dropout 0.1"], config={"batch_size": 4})
    assert change_named("dropout 0.1 + half the batch") == half_dropped
    falling = change_named("half the batch + decay 0.4, to 0")
    assert falling.config == {"batch_size": 4, "weight_decay": 0.4} and falling.decay(0.25) == 0.75
    assert change_named("baseline") == CHANGES["baseline"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dropout 0.1 + dropout 0.2", "two changes of dropout"),
        ("decay 0.2, to 0 + decay 0.4, to 0", "two changes of .*weight_decay"),
        ("all + dropout 0.1", "'all' is unknown"),
        ("dropout", "'dropout' is unknown, expected .*dropout 0.1"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_before_anything_is_trained(name, told):
    with pytest.raises(ValueError, match=told):
        speedrun.main(["--change", "baseline", name, "--data_path", "none.jsonl"])


def test_optimizers_and_dropped_updates_outlast_a_switch_of_the_rows(cache):
    switching = Change(longest=lambda progress: 512 if progress < 1 / 2 else 256)
    config = replace(RECIPE, device="cpu", compile=False)
    run, _ = train_changed(switching, small_model(), cache, config, positions=4 * 8 * 512)
    assert int(run.optimizers[1].state[run.model.model.norm.weight]["step"]) == 4


def test_schedule_takes_over_where_the_warm_up_ends():
    config = replace(RECIPE, learning_rate=2.0, warmup_steps=4)
    change = CHANGES["constant, last 40% linear to 0"]
    found = [speedrun.learning_rate(change, step, 24, config) for step in (1, 4, 16, 20, 24)]
    assert found == pytest.approx([0.5, 2.0, 2.0, 1.0, 0.0])


def test_texts_are_cut_and_lose_nothing(cache):
    rows, whole = CutRows(cache, 512, 1, 128), PackedRows(cache, np.arange(len(cache)), 512)
    assert rows.useful == whole.useful and rows.lengths.max() == 128 < whole.lengths.max()


def updates(change, cache, monkeypatch, steps=4):
    """The decays of each update, and the model in the end."""
    model, seen = small_model(), []

    def update(optimizers, lr, is_sound):
        optimizer.update(optimizers, lr, is_sound)
        seen.append(sorted(group["weight_decay"] for each in optimizers for group in each.param_groups))

    monkeypatch.setattr(speedrun, "update", update)
    config = replace(RECIPE, device="cpu", compile=False, **change.config)
    train_changed(change, model, cache, config, positions=steps * 8 * 512)
    return seen, model


def test_decay_falls_with_progress_and_not_where_there_is_none(cache, monkeypatch):
    seen, _ = updates(CHANGES["decay 0.4, to 0"], cache, monkeypatch)
    assert seen == [pytest.approx([0, x, x]) for x in (0.4, 0.3, 0.2, 0.1)]


def test_dropout_ends_with_training(cache, monkeypatch):
    _, model = updates(CHANGES["dropout 0.2"], cache, monkeypatch, steps=1)
    ids = torch.arange(7, 20)[None]
    assert torch.equal(model(ids), model(ids)) and not torch.equal(model(ids), model.train()(ids))


def test_dropout_is_not_lost_where_a_compiled_run_was_before(data, tokenizer, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(
        RECIPE, device="cpu", compile=True, preset="tiny", batch_size=2, max_seq_len=64, dtype="fp32",
        data_path=str(data["pretrain_val"]), val_path=str(data["pretrain_val"]), tokenizer=tokenizer.folder,
    )  # fmt: skip
    first, dropped = (speedrun.measure(name, config, 4 * 128) for name in ("baseline", "dropout 0.2"))
    assert first["compiled"] and dropped["compiled"] and first["val_loss"] != dropped["val_loss"]


@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, torch.float32))
    assert float(values.mean()) == pytest.approx(1, abs=0.2) and float((values - 1).abs().max()) < 0.35


@pytest.mark.slow
def test_command_adds_a_line_with_the_validation_loss(data, tokenizer, tmp_path, capsys):
    results = tmp_path / "new" / "results.jsonl"
    flags = {
        "data_path": data["pretrain_val"], "val_path": data["pretrain_val"], "tokenizer": tokenizer.folder,
        "tokens": 8 * 512, "results": results, "seeds": 2,
    }  # fmt: skip
    speedrun.main(
        [f"--{name}={value}" for name, value in flags.items()] + ["--change", "baseline", "momentum 0.9"]
    )
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["change"], line["seed"], line["steps"]) for line in lines] == [
        ("baseline", 2, 1),
        ("momentum 0.9", 2, 1),
    ]
    assert all(3 < line["val_loss"] < 7 for line in lines) and capsys.readouterr().out == results.read_text()


def test_help_names_every_change(capsys):
    with pytest.raises(SystemExit):
        speedrun.main(["--help"])
    told = "".join(capsys.readouterr().out.split())
    assert all("".join(name.split()) in told for name in CHANGES)  # among them one with a %


# ---- the tables ----


def write_results(path, *results):
    path.write_text("\n".join(json.dumps(result) for result in results))
    return path


@pytest.mark.parametrize("name", ["parameters", "tokens"])
def test_table_does_not_mix_sizes_nor_lengths(name, tmp_path):
    results = [{"change": "baseline", "seed": 1, "val_loss": 5.0, name: value} for value in (10, 20)]
    with pytest.raises(ValueError, match=f"runs with {name} 10 and 20"):
        table(write_results(tmp_path / "results.jsonl", *results))


def test_table_compares_with_the_baseline_of_the_same_seeds(tmp_path):
    losses = [("baseline", 1, 5.0), ("baseline", 2, 6.0), ("a", 1, 4.5), ("a", 2, 5.9), ("b", 2, 6.25)]
    results = [{"change": change, "seed": seed, "val_loss": loss} for change, seed, loss in losses]
    lines = table(write_results(tmp_path / "results.jsonl", *results)).splitlines()
    found = [line.split("|")[1:3] for line in lines[2:]]
    assert found == [[" a ", " -0.300 "], [" baseline ", " +0.000 "], [" b ", " +0.250 "]]


PATHS = sorted((ROOT / "benchmarks").glob("speedrun*.jsonl"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_documented_tables_are_those_of_their_files(path):
    told = (ROOT / "docs/speedrun.md").read_text(encoding="utf-8")
    rows = table(path).splitlines()[2:]
    assert len(rows) >= 2
    if "long" not in path.stem:
        assert all(row in told for row in rows)
        return
    lines = told.partition("Three and nine times")[2].splitlines()
    for change, difference, _, loss in (re.split(r" \| |: ", row.strip("| ")) for row in rows):
        row = next(line for line in lines if f"| {change} |" in line)
        assert (loss if change == "baseline" else f"{loss} ({difference})") in row, row


def test_documented_changes_can_be_run_or_are_said_to_be_in_the_history():
    told = (ROOT / "docs/speedrun.md").read_text(encoding="utf-8")
    history = next(line for line in told.splitlines() if "in the history" in line)
    lines = [json.loads(line) for path in PATHS for line in path.read_text().splitlines()]
    measured = {change for line in lines for change in line["change"].split(" + ")}
    assert all(change in CHANGES or f'"{change}"' in history for change in measured)
    assert not any(f'"{change}"' in history for change in CHANGES)
