"""The generated data: right answers, no question in two splits, the same bytes for the same seed."""

import json
import random
import re

import pytest

from infra.scoring import is_right, is_well_formed
from tools.sample_data import FACT_CHECKS, KINDS, make_problem, work, write_sample_data

RESULT = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "compare": lambda a, b: abs(a - b),
    "add_then_subtract": lambda a, b, c: a + b - c,
    "multiply_then_add": lambda a, b, c: a * b + c,
    "subtract_twice": lambda a, b, c: a - b - c,
    "multiply_then_subtract": lambda a, b, c: a * b - c,
}


@pytest.fixture(scope="module")
def conversations(data):
    return {
        name: [json.loads(line)["conversations"] for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in data.items()
        if "pretrain" not in name
    }


def questions(conversations):
    return {
        message["content"] for messages in conversations for message in messages if message["role"] == "user"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_right_when_computed_from_the_question(kind):
    rng = random.Random(3)
    for _ in range(200):
        problem = make_problem(rng, kind)
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert re.findall(r"\d+", problem.answer) == [str(RESULT[kind](*numbers))]
        if kind == "compare":
            first = re.search("小.", problem.question)[0]
            assert problem.answer.startswith(f"{first}{'多' if numbers[0] > numbers[1] else '少'}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_equation_in_the_steps_is_true(kind):
    rng = random.Random(4)
    for _ in range(100):
        for equation in re.findall(r"[\d+×-]+(?:=[\d+×-]+)+", make_problem(rng, kind).steps):
            values = {eval(part.replace("×", "*")) for part in re.sub(r"\b0+(?=\d)", "", equation).split("=")}
            assert len(values) == 1, equation


def single_questions(conversations):
    return {
        messages[-2]["content"]
        for messages in conversations
        if [m["role"] for m in messages][-2:] == ["user", "assistant"] and len(messages) == 2
    }


def test_train_validation_and_test_share_no_question(conversations, data):
    validation = single_questions(conversations["sft_val"]) | single_questions(conversations["r1_val"])
    test = single_questions(conversations["sft_test"]) | single_questions(conversations["r1_test"])
    training = "\n".join(questions(conversations["sft"]) | questions(conversations["r1"]))
    asked = {
        line.split("，", 1)[1]
        if line.startswith(("请", "我想", "你知道", "考考", "老师")) and "，" in line
        else line
        for line in training.split("\n")
    }
    bare = {
        question.split("，", 1)[1]
        if question.startswith(("请问，", "请告诉我，", "我想知道，", "你知道吗，", "考考你，", "老师问我，"))
        else question
        for question in validation
    }
    assert len(validation) > 300 and len(test) == 200
    assert not (bare | validation | test) & (asked | set(training.split("\n")))
    assert not test & validation
    pretrain = data["pretrain"].read_text(encoding="utf-8")
    assert not [
        question
        for question in validation | test
        if len(re.findall(r"\d{2,}", question)) > 1 and question in pretrain
    ]


def test_held_out_sums_are_worked_out_nowhere_in_training(conversations, data):
    operation = re.compile(r"求.：(\d+)([-+×])(\d+)")
    held_out = {
        match for messages in conversations["r1_test"] for match in operation.findall(messages[1]["content"])
    }
    trained = {
        match
        for messages in conversations["r1"]
        for message in messages
        for match in operation.findall(message["content"])
    }
    trained |= set(operation.findall(data["pretrain"].read_text(encoding="utf-8")))
    assert len(held_out) > 250 and len(trained) > 200 and not held_out & trained


def test_both_test_files_ask_the_same_questions_and_agree(conversations):
    for direct, reasoned in zip(conversations["sft_test"], conversations["r1_test"], strict=True):
        assert direct[0] == reasoned[0]
        assert is_right(direct[1]["content"], reasoned[1]["content"])
        assert is_right(reasoned[1]["content"], direct[1]["content"])
        assert is_well_formed(reasoned[1]["content"]) and not is_well_formed(direct[1]["content"])


def test_same_seed_gives_the_same_bytes_and_another_seed_others(data, tmp_path):
    again = write_sample_data(tmp_path / "a", seed=1, scale=0.01)
    other = write_sample_data(tmp_path / "b", seed=2, scale=0.01)
    for name, path in data.items():
        assert again[name].read_bytes() == path.read_bytes()
    assert other["r1"].read_bytes() != data["r1"].read_bytes()


def test_checked_facts_are_taught(conversations):
    for name in ("sft", "r1"):
        assert set(FACT_CHECKS) <= questions(conversations[name])


@pytest.mark.parametrize(
    "calculation, steps",
    [
        (
            ("+", 345, 278),
            "求和：345+278。个位5+8=13，写3进1。十位4+7+1=12，写2进1。百位3+2+1=6，写6。得623。",
        ),
        (
            ("+", 1999, 602),
            "求和：1999+602。个位9+2=11，写1进1。十位9+0+1=10，写0进1。百位9+6+1=16，写6进1。千位1+0+1=2，写2。得2601。",
        ),
        (
            ("+", 999, 102),
            "求和：999+102。个位9+2=11，写1进1。十位9+0+1=10，写0进1。百位9+1+1=11，写1进1。千位1，写1。得1101。",
        ),
        (
            ("-", 503, 278),
            "求差：503-278。个位3-8不够，借1，13-8=5。十位0-1-7不够，借1，10-1-7=2。百位5-1-2=2。得225。",
        ),
        (
            ("-", 1213, 304),
            "求差：1213-304。个位3-4不够，借1，13-4=9。十位1-1-0=0。百位2-3不够，借1，12-3=9。千位1-1-0=0。得909。",
        ),
        (
            ("×", 346, 7),
            "求积：346×7。个位6×7=42，写2进4。十位4×7+4=28+4=32，写2进3。百位3×7+3=21+3=24，写4进2。千位2，写2。得2422。",
        ),
    ],
)
def test_steps_are_those_of_a_calculation_by_hand(calculation, steps):
    assert work([calculation]) == steps
