"""Scores of files: multiple choice and the loss of texts, against formulas written out."""

import json

import numpy as np
import pytest
import torch
from conftest import conversation, small_run, tiny_model, write_jsonl

import eval_model
from dataset import PackedRows, open_tokens, prompt_ids
from infra.checkpoint import save_model
from infra.choices import read_choices
from infra.cli import UserError
from infra.distributed import Process
from infra.likelihood import POSITIONS_TOGETHER, log_likelihoods, text_loss
from trainer import evaluate, prepare

QUESTIONS = [
    {"question": "一年有几天？", "choices": ["三百", "365天", "一"], "answer": 1},
    {"question": " 3+4=\n", "choices": ["7", "8", "九", "10"], "answer": 0, "subject": "math"},
]
TEXTS = ["小明有3个苹果。" * 60, "你好", "Hello, 世界\n" * 9]


def likelihood(model, prompt, continuation):
    """The sum of log-softmax, one forward for each pair."""
    ids = torch.tensor([prompt + continuation])
    with torch.no_grad():
        logs = model(ids[:, :-1])[0].log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + n, id]) for n, id in enumerate(continuation))


def test_log_likelihoods_are_those_of_each_pair_alone(monkeypatch):
    model, shared = tiny_model(), [1, 9, 8]
    pairs = [
        (shared, [50]),
        ([1], [7, 8, 9, 10]),
        (shared, [51]),
        ([1, 60, 61, 62, 63], [5, 6]),
        (shared, [9, 50]),
    ]
    expected = [likelihood(model, *pair) for pair in pairs]
    for together in (POSITIONS_TOGETHER, 7):  # all in one batch, or nearly each alone
        monkeypatch.setattr("infra.likelihood.POSITIONS_TOGETHER", together)
        assert log_likelihoods(model, pairs) == pytest.approx(expected, abs=1e-4)


def test_pair_longer_than_the_context_loses_its_beginning():
    model, prompt = tiny_model(), list(range(10, 210))  # its context is 128
    found = log_likelihoods(model, [(prompt, [7, 8])])[0]
    assert found == pytest.approx(likelihood(model, prompt[-127:], [7, 8]), abs=1e-4)


def test_loss_of_texts_is_that_of_validation(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    model, process = tiny_model(), Process(0, 1, torch.device("cpu"))
    cache = open_tokens(path, tokenizer, "text")
    rows, config = PackedRows(cache, np.arange(len(cache)), 128), small_run(tmp_path)
    expected = evaluate(prepare(model, rows, config, process.device), rows, config, process)
    found, each = text_loss(model, tokenizer, TEXTS)
    names = {"loss": "val_loss", "perplexity": "val_ppl", "bits_per_byte": "val_bpb"}
    assert found["tokens"] > 2 * 128 and sum(one["tokens"] for one in each) == found["tokens"]
    short = likelihood(model, [1], [*tokenizer.encode(TEXTS[1]), 2])
    assert each[1]["loss"] * each[1]["tokens"] == pytest.approx(-short, abs=1e-4)
    assert {name: found[name] for name in names} == pytest.approx({n: expected[v] for n, v in names.items()})


def scored(folder, documents, capsys, *flags):
    """(lines on the screen, the JSON) of eval_model.py --score."""
    path, out = write_jsonl(folder / "file.jsonl", documents), folder / "out.json"
    eval_model.main(
        [f"--model_dir={folder}", "--device=cpu", f"--score={path}", f"--score_out={out}", *flags]
    )
    return capsys.readouterr().out.splitlines(), json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    model = tiny_model()
    save_model(model, tmp_path, tokenizer, context=128)
    return tmp_path, model


@pytest.mark.parametrize("mode", [0, 2])
def test_choices_are_those_of_the_formula_written_out(mode, checkpoint, tokenizer, capsys):
    folder, model = checkpoint
    lines, report = scored(folder, QUESTIONS, capsys, f"--model_mode={mode}")

    def nats(text, continuation):
        asked = [{"role": "user", "content": text}]
        prompt = prompt_ids(tokenizer, asked) if mode else [1, *tokenizer.encode(text)]
        return likelihood(model, prompt, tokenizer.encode(continuation if mode else f" {continuation}"))

    right = {"by_letter": 0, "by_text": 0}
    for item, found in zip(QUESTIONS, report["items"], strict=True):
        question, letters = item["question"].strip(), "ABCD"[: len(item["choices"])]
        options = "".join(f"{letter}. {text}\n" for letter, text in zip(letters, item["choices"]))
        by_letter = [nats(f"{question}\n{options}答案：", letter) for letter in letters]
        texts = [nats(f"{question}\n答案：", text) for text in item["choices"]]
        per_byte = [one / len(text.encode()) for one, text in zip(texts, item["choices"])]
        assert found["letters"] == pytest.approx(by_letter, abs=1e-3)
        assert found["texts"] == pytest.approx(texts, abs=1e-3)
        assert found["by_letter"] == np.argmax(by_letter) and found["by_text"] == np.argmax(per_byte)
        assert found["question"] == item["question"]
        for name in right:
            right[name] += found[name] == item["answer"]
    assert (report["questions"], report["chance"]) == (2, pytest.approx((1 / 3 + 1 / 4) / 2))
    assert {name: report[name] * 2 for name in right} == right
    assert lines[0] == "questions 2" and lines[-1] == "chance 29.2%"
    assert lines[1] == f"by_letter {report['by_letter']:.1%}"


def test_texts_are_scored_by_their_loss(checkpoint, tokenizer, capsys):
    folder, model = checkpoint
    lines, report = scored(folder, [{"text": text} for text in TEXTS], capsys)
    expected, each = text_loss(model, tokenizer, TEXTS)
    assert report["items"] == each
    assert report["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert lines == [
        f"tokens {expected['tokens']}",
        f"loss {report['loss']:.4f}",
        f"perplexity {report['perplexity']:.4f}",
        f"bits_per_byte {report['bits_per_byte']:.4f}",
    ]


def test_question_beyond_the_context_is_refused_before_any_is_asked(checkpoint, tmp_path):
    folder, model = checkpoint
    long = "长" * model.config.max_position_embeddings
    documents = [{"conversations": conversation(text, "7")} for text in ("3+4", long)]
    path, out = write_jsonl(tmp_path / "a.jsonl", documents), tmp_path / "new" / "out.json"
    flags = [f"--model_dir={folder}", "--device=cpu", f"--score_out={out}"]
    with pytest.raises(UserError, match=r"a.jsonl: question 2 has \d+ tokens, expected at most 127"):
        eval_model.main([f"--score={path}", *flags])
    with pytest.raises(UserError, match="--score_out . is a folder, expected the name of a file"):
        eval_model.main([f"--score={path}", *flags[:2], "--score_out=."])
    eval_model.main([f"--score={write_jsonl(path, documents[:1])}", *flags])
    assert json.loads(out.read_text(encoding="utf-8"))["questions"] == 1


BROKEN = [
    {"question": "a", "choices": ["b", "c"], "answer": 2},
    {"question": "a", "choices": ["b", "c"], "answer": "A"},
    {"question": "a", "choices": ["b", "c"], "answer": True},
    {"question": "a", "choices": ["b"], "answer": 0},
    {"question": "a", "choices": ["b"] * 11, "answer": 0},
    {"question": "a", "choices": ["b", 3], "answer": 0},
    {"question": "a", "choices": "bc", "answer": 0},
    {"choices": ["b", "c"], "answer": 0},
    ["a"],
]


@pytest.mark.parametrize("item", BROKEN, ids=range(len(BROKEN)))
def test_line_that_is_no_question_is_named(item, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [QUESTIONS[0], item])
    with pytest.raises(UserError, match=r'a.jsonl:2: expected \{"question": a text, .*, found [\{\[]'):
        read_choices(path)


@pytest.mark.parametrize("text, found", [(" ", "found none"), ("\ud800", "found half of a surrogate pair")])
def test_text_that_is_none_is_named(text, found, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "a", "choices": ["b", text], "answer": 0}))
    with pytest.raises(UserError, match=f"a.jsonl:1: expected .* in the question and its choices, {found}"):
        read_choices(path)
