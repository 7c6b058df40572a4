"""Grading part by part: equations and calculations in replies, majorities, changed problems."""

import random
from fractions import Fraction

import pytest
from conftest import conversation

from infra.scoring import final_answer
from tools import ladder
from tools.claims import claims
from tools.ladder import (
    changed_problems,
    elected,
    equation_of,
    evaluates_to,
    kinds_of,
    lengthened,
    look_into,
)
from tools.problems import Problem


def reply_of(thought, answer):
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def as_it_was(equation, answer):
    return reply_of("略", f"列式计算：{equation}={answer}。\n答案：{answer}")


PROBLEMS = [
    conversation("每箱24个，12箱共几个？", as_it_was("24×12", "288")),
    conversation("一根绳子长8.4米，用去(1/4)，还剩几米？", as_it_was("8.4×(1-1/4)", "6.3")),
]


def test_an_equation_is_what_follows_its_name_or_the_first_line_of_a_thought():
    assert equation_of("<think>\n6×7\n6×7=42\n</think>\n<answer>\n42\n</answer>") == "6×7"
    assert equation_of(as_it_was("6×7", "42")) == "6×7"
    assert equation_of("<think>\n42\n</think>\n<answer>\n42\n</answer>") == ""
    assert equation_of("<think>6×7</think>") == "6×7"
    assert equation_of("<think>\n6×7\n6×7:没有写完") == "6×7"
    assert equation_of("没有格式 6×7=42") == ""


@pytest.mark.parametrize(
    ("equation", "comes_to"),
    [
        ("6×7", 42),
        ("(" * 2000 + "1", None),
        ("(" * 2000 + "6×7" + ")" * 2000, 42),
        ("1" * 5000, None),
        ("1÷8", Fraction(1, 8)),
        ("3-45", None),
        ("(1+2", None),
        ("", None),
        ("6×7=42", None),
    ],
)
def test_only_an_expression_that_can_be_worked_out_comes_to_something(equation, comes_to):
    assert evaluates_to(equation, Fraction(comes_to or 42)) == (comes_to is not None)


def test_a_reply_is_looked_into_part_by_part():
    replies = [reply_of("24×12\n24×12=278", "278"), reply_of("8.4×(1/4)\n4×2=8", "6.3"), "没有"]
    verdicts = [{"reply": reply, "is_right": right} for reply, right in zip(replies, (False, True, False))]
    questions = [([1], turns[1]["content"]) for turns in (*PROBLEMS, PROBLEMS[0])]
    found = look_into(verdicts, questions, [10, 20, 60])
    assert [verdict["equation_right"] for verdict in verdicts] == [True, False, False]
    assert (found["calculations"], found["calculations_right"]) == (2, 0.5)
    assert found["reply_tokens"] == 30
    kinds = {
        "1 step": [0, 2],
        "2 steps": [1, 1],
        "decimals": [1, 1],
        "fractions": [1, 1],
        "integers": [0, 2],
    }
    assert found["by_kind"] == kinds


def test_kinds_of_a_reply_without_an_equation():
    assert kinds_of(reply_of("想", "7")) == ["no equation"]
    assert kinds_of(as_it_was("1+2+3+4+5+6", "21")) == ["5 or more steps", "integers"]


def test_the_answer_that_most_samples_give_is_taken():
    said = [reply_of("想", answer) for answer in ("7", "288", "288", "6.3", "5", "没有", "没有", "", "无")]
    assert elected([reply_of("想", "288支"), reply_of("想", "7")], 2) == ["288"]  # as is_right reads it
    assert elected(said, 3) == ["288", "63/10", ""]  # of a tie, the first


def test_each_question_is_put_to_the_vote_of_its_own_replies(tokenizer, monkeypatch):
    def count(model, prompts, sampling, shows_progress):
        assert len(prompts) == 2 * ladder.VOTES and sampling.temperature > 0 and sampling.seed == 3
        return [tokenizer.encode(reply_of("想", str(len(prompt)))) for prompt in prompts]

    monkeypatch.setattr(ladder, "generate", count)
    questions = [([7], reply_of("想", "1")), ([7, 8], reply_of("想", "2")), ([7], reply_of("想", "2"))]
    right = {"right": [0, 1], "samples_right": 1.0}
    assert ladder.majority(None, tokenizer, questions[:2], 8, seed=3) == right
    half = {"right": [0], "samples_right": 0.5}
    assert ladder.majority(None, tokenizer, questions[1:], 8, seed=3) == half


def test_changed_problems_are_worked_out_exactly():
    changed = changed_problems(PROBLEMS, random.Random(0))
    assert [len(problems) for problems in changed.values()] == [2, 2, 1, 2]
    more = [final_answer(reply["content"]) for _, reply in changed["two more steps"]]
    assert more == ["915", "69.9"]  # (288+17)x3 and (6.3+17)x3
    for name, asked in (("other numbers", PROBLEMS), ("longer numbers", PROBLEMS[:1])):
        for (question, reply), (before, _) in zip(changed[name], asked):
            assert question["content"] != before["content"]
            assert claims(reply["content"]) and all(is_true for _, is_true in claims(reply["content"]))
    assert "9月17日" in changed["a distraction"][0][0]["content"]
    assert final_answer(changed["a distraction"][0][1]["content"]) == "288"


def test_the_largest_integer_that_the_question_names_is_lengthened():
    problem = lengthened(Problem("每箱24个，12箱共几个？", "24×12", "288"))
    assert (problem.question, problem.equation) == ("每箱2446个，12箱共几个？", "2446×12")
    assert problem.answer == "29352"
    assert lengthened(Problem("一打鸡蛋几个？", "3×4", "12")) is None
    assert lengthened(Problem("12是24的百分之几？", "12÷24", "50%")) is None  # 600/1223
