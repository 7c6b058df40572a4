"""report.html: what a finished run leaves on one page, and the picture of its curves."""

import html
import json
import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import conversation, small_run, tiny_model, write_jsonl

import SFT
from dataset import PackedRows, open_tokens
from generate import Sampling, example_replies, generate
from infra.charts import histogram, line_chart, smooth, svg, thin
from infra.cli import parse_args
from infra.html_page import body_of, element, page
from infra.lens import NAME_OF_MASK
from infra.metrics import read_metrics
from infra.pipeline_report import heard, write_pipeline_report
from infra.run_report import command_of, last_values, samples
from trainer import train

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def report_of(config):
    return (Path(config.out_dir) / "report.html").read_text(encoding="utf-8")


def metrics_of(config):
    return read_metrics(Path(config.out_dir) / "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(rows, validation, tmp_path_factory):
    """The config of a run of ten steps with replies at each validation, and its model."""
    config, model = small_run(tmp_path_factory.mktemp("finished") / "run"), tiny_model()
    train(model, rows, config, validation, partial(example_replies, rows=validation, max_new_tokens=5))
    return config, model


# ---- a run's report ----


def test_page_has_the_last_value_of_each_metric(finished):
    config, _ = finished
    lines, text = metrics_of(config), report_of(config)
    shown = dict(re.findall(r"<tr><th>(\w+)</th><td>([^<]+)</td></tr>", text.partition("<h2>Data")[0]))
    assert shown["val_loss"] == f"{lines[-1]['val_loss']:.4f}" and shown["loss"] == f"{lines[-2]['loss']:.4f}"
    assert shown["tokens"] == f"{lines[-2]['tokens']:,}" and text.count("<svg") == 5


def test_mask_of_the_document_is_that_of_the_cache_token_by_token(finished, sums):
    shown = re.findall(r'<span class="(ignored|counted|tag|cut-off)">', report_of(finished[0]))
    expected = [NAME_OF_MASK[mask] for mask in sums.document(0)[1]]
    assert shown == ["ignored", "counted", "tag", "cut-off", *expected]  # the legend first


def test_replies_are_those_of_plain_generate(validation):
    model, decode = tiny_model(), validation.cache.tokenizer.decode
    told, replies = example_replies(model, validation, max_new_tokens=5), []
    for number, document in enumerate(validation.documents[:2], 1):
        ids, mask = validation.cache.document(document)
        prompt = ids[: np.flatnonzero(mask)[0]].tolist()
        (reply,) = generate(model, [prompt], Sampling(max_new_tokens=5))
        assert (told[f"prompt_{number}"], told[f"reply_{number}"]) == (decode(prompt), decode(reply))
        replies.append(reply)
    assert len(told) == 4 and replies[0] != replies[1]


def test_replies_of_each_validation_are_logged_and_shown(finished, validation):
    config, model = finished
    told, text = [line for line in metrics_of(config) if "val_loss" in line], report_of(config)
    assert [line["step"] for line in told] == [3, 6, 9, 10]
    assert example_replies(model, validation, max_new_tokens=5).items() <= told[-1].items()
    for line in told:
        for number in 1, 2:
            assert f"<th>{line['step']}</th>{element('td', line[f'reply_{number}'])}" in text
            assert element("pre", line[f"prompt_{number}"]) in text


def test_replies_are_not_printed_on_the_line(rows, validation, config, capsys):
    train(tiny_model(), rows, replace(config, max_steps=1), validation, lambda model: {"reply_1": "words"})
    assert "words" not in capsys.readouterr().out and metrics_of(config)[-1]["reply_1"] == "words"


def test_texts_are_continued_after_their_first_sixteen_tokens(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}, {"text": "12" * 30}])
    cache = open_tokens(path, tokenizer, "text")
    told = example_replies(tiny_model(), PackedRows(cache, np.arange(2), 64), max_new_tokens=1)
    assert (told["prompt_1"], told["prompt_2"]) == ("1", "12" * 7 + "1")  # after <s>


def test_documents_that_leave_no_room_are_not_asked(tokenizer, tmp_path):
    documents = [
        {"conversations": conversation("长" * 200, "好")},
        {"conversations": conversation("短", "好")},
    ]
    cache = open_tokens(write_jsonl(tmp_path / "a.jsonl", documents), tokenizer, "conversations")
    told = example_replies(tiny_model(), PackedRows(cache, np.arange(2), 128), max_new_tokens=1)
    assert set(told) == {"prompt_1", "reply_1"} and "短" in told["prompt_1"]


def test_text_of_a_file_becomes_no_markup_and_bad_lines_are_named(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"conversations": conversation(HOSTILE, "好")}] * 3)
    with open(path, "a") as file:
        file.write(HOSTILE + "\n" + json.dumps({"conversations": [{"role": "<b>"}]}))
    cache = open_tokens(path, tokenizer, "conversations", skip_bad_lines=True)
    rows, config = PackedRows(cache, np.arange(3), 128), small_run(tmp_path / "run", max_steps=1)
    train(tiny_model(), rows, config, rows, partial(example_replies, rows=rows))
    text = report_of(config)
    assert "<script" not in text and "<b>" not in text and "\x1b" not in text
    assert "1 not JSON, 1 unknown role" in text
    assert f"{path}:4: expected a JSON object" in text and f"{path}:5: expected the role" in html.unescape(
        text
    )


def test_page_needs_nothing_from_elsewhere(finished):
    text = report_of(finished[0])
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)|url\((?!#)|@import|<script""", text)
    assert len(text) < 1e6


def test_run_that_was_stopped_or_rehearsed_leaves_none(rows, validation, config):
    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), rows, replace(config, save_every=1), validation, stop)
    train(tiny_model(), rows, replace(config, dry_run=True), validation)
    assert (Path(config.out_dir) / "model.safetensors").is_file()
    assert not list(Path(config.out_dir).parent.rglob("report.html"))


def test_command_makes_the_same_run_again():
    """With a number that SFT.py has another default for, and a name that a shell would split."""
    config = replace(SFT.RECIPE, batch_size=80, data_path="my file.jsonl", compile=False, skip_bad_lines=True)
    words = shlex.split(" ".join(command_of(config)))
    assert words[:2] == ["python", "SFT.py"] and parse_args(SFT.RECIPE, "", words[2:]) == config


def test_report_without_validation_or_steps_is_no_error():
    assert last_values([]) == {} and samples([]) == ""
    assert last_values([{"step": 1, "loss": None, "seconds": 0.0, "tokens": 5}]) == {
        "tokens": "5",
        "seconds": "0",
    }


# ---- pictures ----


def test_smooth_line_by_hand():
    points = [(1, 6.0), (2, 3.0), (3, 0.0), (4, 3.0)]
    assert smooth(points) == [(1, 6.0), (2, 3.0), (3, 2.0), (4, 3.0)]
    assert smooth([]) == [] and smooth([(7, 1.5)]) == [(7, 1.5)]


def test_smooth_line_reaches_a_twentieth_of_the_points_to_either_side():
    points = [(step, float(step == 60)) for step in range(120)]
    assert [step for step, value in smooth(points) if value] == list(range(54, 67))
    assert smooth(points)[60][1] == pytest.approx(1 / 13)


def test_curve_lies_over_its_dots_and_one_without_points_is_left_out():
    dots, curve = [(1, 5.0), (2, 4.0), (3, 6.0)], [(1, 5.0), (3, 5.5)]
    figure = line_chart({"none": [], "loss": curve}, "loss", dots={"loss": dots})
    assert [list(zip(*line.get_data())) for line in figure.axes[0].lines] == [dots, curve]


def test_long_curves_are_thinned_and_end_where_they_ended():
    points = [(step, 1.0) for step in range(1, 5001)]
    assert len(thin(points)) <= 1001 and thin(points)[-1] == points[-1] and thin(points[:9]) == points[:9]


def test_same_figure_gives_the_same_svg_in_the_ink_of_the_page():
    first, again = (svg(line_chart({"a": [(1, 2.0), (2, 1.0)]}, "loss")) for _ in range(2))
    assert first == again and first.startswith("<svg") and "currentColor" in first and "#000000" not in first


@pytest.mark.parametrize("lengths", [[5], [3, 3, 900]])
def test_histogram_counts_every_document(lengths):
    figure = histogram(np.array(lengths), 8, "a row")
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == len(lengths)


# ---- of many stages ----


def test_report_of_many_stages_holds_the_page_of_each(tmp_path, capsys):
    told = heard(print, f"\033[2m{HOSTILE}\033[0m")
    assert HOSTILE in capsys.readouterr().out and told == f"{HOSTILE}\n"
    (tmp_path / "SFT").mkdir()
    (tmp_path / "SFT/report.html").write_text(page("SFT", "<p>its curves</p>"), encoding="utf-8")
    rows = {"sft": {"val_loss": 1.25}, "gone": {}}
    path = write_pipeline_report(tmp_path, rows, ("val_loss",), told, ["SFT", "no"])
    text = path.read_text(encoding="utf-8")
    assert "<th>sft</th><td>1.2500</td>" in text and "<th>gone</th><td>-</td>" in text
    assert '<a href="SFT/report.html">SFT</a>' in text and '<section class="stage"><p>its curves</p>' in text
    assert "<script" not in text and "&lt;script&gt;" in text and body_of(page("a", "b")) == "b"
