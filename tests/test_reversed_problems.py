"""Reversed problems: the result told, one of the numbers asked for, the equation solved for it."""

import random
import re
from fractions import Fraction

import pytest

from tools import reversed_problems
from tools.exact_numbers import CannotSpell
from tools.expressions import TOKEN
from tools.problems import Problem
from tools.reversed_problems import asked_for, reversed_problem, solved

APPLES = Problem("有4筐苹果，每筐55千克，一共多少千克？", "4×55", "220")


def exactly(expression):
    exact = expression.replace("×", "*").replace("÷", "/").replace("^", "**")
    exact = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", exact)
    return eval(re.sub(r"(?<!\*)(?<![.\d])(\d+(?:\.\d+)?)", r"Fraction('\1')", exact), {"Fraction": Fraction})


@pytest.fixture
def any_wording(monkeypatch):
    monkeypatch.setattr(reversed_problems, "use_of", lambda question: "worked")


def reversals(problem):
    return {reversed_problem(problem, random.Random(seed)) for seed in range(30)}


def test_question_word_and_number_change_places(any_wording):
    assert reversals(APPLES) == {
        Problem("有4筐苹果，每筐多少千克，一共220千克？", "220÷4", "55"),
        Problem("有多少筐苹果，每筐55千克，一共220千克？", "220÷55", "4"),
    }


def test_a_share_is_asked_for_as_a_share_and_told_as_the_data_tells_it(any_wording):
    road = Problem("修了全长的(3/5)，还剩60千米，全长几千米？", "60÷(1-3/5)", "150")
    assert reversals(road) == {
        Problem("修了全长的几分之几，还剩60千米，全长150千米？", "1-60÷150", "3/5"),
        Problem("修了全长的(3/5)，还剩多少千米，全长150千米？", "(1-3/5)×150", "60"),
    }
    part = Problem("有36人，走了25%，剩下的是全部的几分之几？", "1-25%", "3/4")
    assert reversals(part) == {Problem("有36人，走了百分之几，剩下的是全部的(3/4)？", "1-3/4", "25%")}


@pytest.mark.parametrize(
    "equation",
    [
        "7+12-5", "20-12-5", "20-(12-5)", "3×12÷9", "90÷12÷5", "90÷(12×5)", "2×(12+5)-7", "7-12÷5",
        "60÷(12-5)", "(2+3)×12-40", "12×25%+8", "(12)", "100-(30-12÷3)×2", "5×(2/7)÷12", "2^2×12",
        "9-(2/7)×12",
    ],
)  # fmt: skip
def test_an_equation_is_solved_for_its_number(equation):
    inverse = solved(TOKEN.findall(equation), "12", "1000")
    assert exactly(equation.replace("12", f"({inverse})")) == 1000


def test_a_number_within_a_power_is_not_solved_for():
    with pytest.raises(CannotSpell, match="within a power"):
        solved(TOKEN.findall("3×(12+1)^2"), "12", "507")


@pytest.mark.parametrize(
    "question, equation, answer",
    [
        ("有4筐苹果，每筐55千克？", "4×55", "220"),  # asks for nothing
        ("有4筐，每筐多少千克？一共多少？", "4×55", "220"),  # for two things
        ("有4筐，每筐4千克，一共多少千克？", "4×4", "16"),  # which of the two?
        ("有4筐，220元，一共多少千克？", "4×55", "220"),  # the answer would stand there twice
    ],
)
def test_what_cannot_be_reversed_is_left(any_wording, question, equation, answer):
    assert reversals(Problem(question, equation, answer)) == {None}


def test_a_wording_that_is_held_out_is_not_made(monkeypatch):
    kept = "有4筐苹果，每筐多少千克，一共220千克？"
    monkeypatch.setattr(reversed_problems, "use_of", lambda text: "problems" if text == kept else "worked")
    assert {problem.answer for problem in reversals(APPLES)} == {"4"}


def test_the_words_are_the_question_s_own(any_wording):
    problem = asked_for("55", APPLES, reversed_problems.ASKS.search(APPLES.question))
    assert sorted(re.sub(r"\d", "", problem.question)) == sorted(re.sub(r"\d", "", APPLES.question))
