"""tools/compare_runs.py: several runs on one page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import UserError
from infra.html_page import element, page
from tools.compare_runs import main

ROOT = Path(__file__).resolve().parents[1]


def write_run(folder, losses, tokens=100, **config):
    """A run whose steps have so many tokens, validated at the last."""
    folder.mkdir()
    lines = [
        {"step": step, "loss": loss, "lr": 0.1, "tokens": step * tokens, "seconds": 2.0 * step,
         "tokens_per_second": tokens / 2}
        for step, loss in enumerate(losses, 1)
    ]  # fmt: skip
    lines.append({"step": len(losses), "val_loss": losses[-1] + 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))


def compared(tmp_path):
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out.html")])
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    return text, {
        row[0]: row[1:] for row in re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>", text)
    }


def test_last_values_and_what_differs_stand_side_by_side(tmp_path):
    write_run(tmp_path / "a", [5.0, 4.0], hidden_size=64, rope_theta=1e4)
    write_run(tmp_path / "b", [5.0, 3.0, 2.0], hidden_size=96, rope_theta=1e4)
    flags = ("--learning_rate 0.1<2", "--skip_bad_lines", "--out_dir b")
    command = "".join(element("span", flag, "flag") for flag in flags)
    (tmp_path / "b/report.html").write_text(page("b", command))
    text, rows = compared(tmp_path)
    assert rows["val_loss"] == ("5.0000", "3.0000") and rows["loss"] == ("4.0000", "2.0000")
    assert rows["tokens"] == ("200", "300") and rows["tokens per second"] == ("50", "50")
    assert rows["hidden_size"] == ("64", "96") and "rope_theta" not in rows
    assert rows["--learning_rate"] == ("-", "0.1&lt;2") and rows["--skip_bad_lines"] == ("-", "on")
    assert "--out_dir" not in rows
    assert text.count("<svg") == 4 and "By tokens" not in text


def test_curves_are_drawn_over_tokens_too_where_steps_hold_different_numbers_of_them(tmp_path):
    write_run(tmp_path / "a", [5.0, 4.0], tokens=100)
    write_run(tmp_path / "b", [5.0, 3.0], tokens=110)
    text, _ = compared(tmp_path)
    assert text.count("<svg") == 8 and "By tokens" in text and "Nothing that the folders tell" in text


def test_name_of_a_folder_becomes_no_markup(tmp_path):
    write_run(tmp_path / "<i>", [5.0])
    main([str(tmp_path / "<i>"), "--out", str(tmp_path / "out.html")])
    assert "<i>" not in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_folder_without_metrics_is_named(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/compare_runs.py"), "out/no"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    path = Path("out/no/metrics.jsonl")
    assert result.returncode == 2 and f"{path}: not found, expected what" in result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val_loss": 2}\n')
    with pytest.raises(UserError, match="found no step in it"):
        main([str(tmp_path)])
