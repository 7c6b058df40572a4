"""report.json: what a run of many parts remembers."""

import time

import pytest

from infra.report import Report


def test_report_counts_the_time_of_what_was_interrupted(tmp_path):
    def interrupted():
        time.sleep(0.3)
        raise KeyboardInterrupt

    report = Report(tmp_path, {"seed": 1}, anew="--fresh")
    report.do("first", "first", dict)
    with pytest.raises(KeyboardInterrupt):
        report.do("second", "second", interrupted)
    again = Report(tmp_path, {"seed": 1}, anew="--fresh")
    assert 0.3 <= again.parts["seconds"] < 5 and set(again.parts) == {"settings", "seconds", "first"}


def test_report_does_no_part_twice_and_forgets_what_it_is_told_to(tmp_path):
    done = []
    Report(tmp_path, {}, anew="").do("first", "first", lambda: done.append(1) or {"value": 5})
    again = Report(tmp_path, {}, anew="")
    assert not again.do("first", "first", lambda: done.append(2) or {}) and again.parts["first"]["value"] == 5
    again.forget("first")
    assert Report(tmp_path, {}, anew="").do("first", "first", lambda: done.append(3) or {}) and done == [1, 3]


def test_report_of_other_settings_is_refused_unless_they_may_change(tmp_path):
    Report(tmp_path, {"seed": 1, "device": "cpu"}, anew="--fresh").add_seconds(1.0)
    with pytest.raises(ValueError, match="a run with seed 1, here it is 2: .* --fresh to start over"):
        Report(tmp_path, {"seed": 2, "device": "cpu"}, anew="--fresh")
    other = Report(tmp_path, {"seed": 1, "device": "cuda"}, anew="--fresh", may_change=("device",))
    assert other.parts["settings"]["device"] == "cuda" and other.parts["seconds"] == 1.0
