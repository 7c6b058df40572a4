"""The tool that kills runs sees every difference, and what a killed run was doing."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tools.verify_resume import SmallRun, VerifyConfig, compare


def finished_run(folder, weights=(1.0, 2.0), losses=(3.0, 2.5), seconds=1.0):
    run = SmallRun(folder, VerifyConfig())
    run.out_dir.mkdir(parents=True)
    save_file({"a": torch.tensor(weights)}, run.out_dir / "model.safetensors")
    lines = [{"step": step, "loss": loss, "seconds": seconds} for step, loss in enumerate(losses, 1)]
    (run.out_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_runs_that_differ_in_their_times_alone_are_the_same(tmp_path, capsys):
    assert compare(finished_run(tmp_path / "run_1", seconds=9.0), finished_run(tmp_path / "uninterrupted"))
    assert "run_1: weights" in (told := capsys.readouterr().out) and "identical" in told


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"weights": (1.0, 2.5)}, "largest difference of a weight: 0.5; steps whose lines differ: []"),
        ({"losses": (3.0, 2.4)}, "largest difference of a weight: 0; steps whose lines differ: [2]"),
        ({"losses": (3.0,)}, "1 lines of metrics | DIFFERENT"),
    ],
)
def test_other_weights_or_lines_are_reported(changes, told, tmp_path, capsys):
    assert not compare(finished_run(tmp_path / "run_1", **changes), finished_run(tmp_path / "uninterrupted"))
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    "left, log, moment",
    [
        ("cache/a.cache.tmp", "", "tokenizing"),
        ("out/model.safetensors.tmp", "step 3/12 | loss 4.2\n", "saving"),
        ("out/model.safetensors", "pretrain from random weights\n", "starting"),
        ("out/model.safetensors", "step 1/12 | loss 4.2\nstep 2/12 | loss 4.1\n", "validating"),
        ("out/model.safetensors", "step 2/12 | loss 4.1\nstep 2/12 | val_loss 4.0\n", "training"),
        ("out/model.safetensors", "step 2/12 | val_loss 4.0\nstep 3/12 | loss 4.0\n", "training"),
    ],
)
def test_moment_of_a_kill_is_told_by_what_the_run_left(left, log, moment, tmp_path):
    run = SmallRun(tmp_path / "run_1", VerifyConfig())
    (run.folder / left).parent.mkdir(parents=True)
    (run.folder / left).touch()
    (tmp_path / "run_1.log").write_text(log)
    assert run.moment() == moment
