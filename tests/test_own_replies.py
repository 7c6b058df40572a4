"""Rejection sampling: what is kept of the replies of a model."""

import json

import pytest
from conftest import conversation, tiny_model, write_jsonl

from infra.checkpoint import save_model
from infra.cli import UserError
from tools import own_replies as own

RIGHT, ALSO_RIGHT = "<think>3+4=7</think>\n<answer>7</answer>", "<think>4+3=7</think>\n<answer>7</answer>"
WELL = "<think>想</think>\n<answer>2</answer>"
SAID = {
    "3+4?": [RIGHT, RIGHT, ALSO_RIGHT, "<think>3+4=8</think>\n<answer>8</answer>"],
    "1+1?": ["2", "<think>1+1=3</think>\n<answer>3</answer>", "<think></think><answer>2</answer>", ""],
}


def test_right_and_well_formed_replies_are_kept_once():
    asked = [(question, as_expected) for question, as_expected in zip(SAID, (RIGHT, WELL)) for _ in range(4)]
    found, counts = own.kept(asked, [reply for said in SAID.values() for reply in said])
    assert found == [conversation("3+4?", RIGHT), conversation("3+4?", ALSO_RIGHT)]
    assert counts == {"questions": 2, "sampled": 8, "right": 5, "kept": 2, "solved": 1}


def test_the_file_can_be_learned_from(tokenizer, tmp_path, capsys):
    save_model(tiny_model(vocab_size=len(tokenizer)), tmp_path / "model", tokenizer, 128, True)
    turns = [{"conversations": conversation(question, RIGHT)} for question in ("3+4?", "长" * 500, "1+1?")]
    asked = write_jsonl(tmp_path / "r1.jsonl", turns)
    flags = f"--model_dir {tmp_path}/model --data_path {asked} --out {tmp_path}/new/own.jsonl --device cpu"
    counts = own.main([*flags.split(), "--questions", "2", "--replies", "3", "--max_new_tokens", "4"])
    assert (counts["questions"], counts["sampled"], counts["kept"]) == (1, 3, 0)
    assert (tmp_path / "new/own.jsonl").read_text() == "" and "3 sampled" in capsys.readouterr().out
    (tmp_path / "r1.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(UserError, match="r1.jsonl:1: .*conversations"):
        own.main(flags.split())
