"""Reversed problems: the result told, one of the numbers asked for, the equation solved for it."""

import random

import pytest

from tools import reversed_problems
from tools.exact_numbers import CannotSpell
from tools.expressions import TOKEN
from tools.problems import Problem
from tools.reversed_problems import reversed_problem, solved

APPLES = Problem("有4筐苹果，每筐55千克，一共多少千克？", "4×55", "220")


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
    "equation, result, inverse",
    [
        ("7+12-5", "4", "4+5-7"),  # not 4-7+5
        ("20-12-5", "3", "20-5-3"),
        ("20-(12-5)", "13", "20-13+5"),
        ("9-(12+2)×2", "1", "(9-1)÷2-2"),
        ("3×12÷9", "4", "4×9÷3"),
        ("90÷12÷5", "1.5", "90÷5÷1.5"),
        ("90÷(12×5)", "1.5", "90÷1.5÷5"),
        ("100÷(90÷12)", "40/3", "90÷(100÷(40/3))"),
        ("12÷(6×26)", "25", "25×6×26"),
        ("12÷(6÷2)", "4", "4×6÷2"),
        ("2×(12+5)-7", "27", "(27+7)÷2-5"),
        ("3÷12", "1/4", "3÷(1/4)"),
        ("9-(2/7)×12", "3", "(9-3)÷(2/7)"),
        ("100-(30-12÷3)×2", "48", "(30-(100-48)÷2)×3"),
        ("2^2×12", "48", "48÷2^2"),
        ("(12)+(3+4)", "19", "19-(3+4)"),
    ],
)
def test_an_equation_is_solved_for_its_number(equation, result, inverse):
    assert solved(TOKEN.findall(equation), "12", result) == inverse


def test_a_fraction_in_brackets_is_found():
    assert solved(TOKEN.findall("(12/7)×5"), "12/7", "60/7") == "(60/7)÷5"


def test_a_number_within_a_power_is_not_solved_for():
    with pytest.raises(CannotSpell, match="within a power"):
        solved(TOKEN.findall("3×(12+1)^2"), "12", "507")


@pytest.mark.parametrize(
    "question, equation, answer",
    [
        ("有4筐苹果，每筐55千克？", "4×55", "220"),  # asks for nothing
        ("有4筐，每筐多少千克？一共多少？", "4×55", "220"),  # for two things
        ("有4筐，每筐55千克，求一共多少千克？", "4×55", "220"),  # twice for one
        ("有4筐，每筐4千克，一共多少千克？", "4×4", "16"),  # which of the two?
        ("有4筐，220元，每筐55千克，一共多少千克？", "4×55", "220"),  # the answer would stand there twice
        ("有4筐，每筐55升，一共多少水？", "4×55", "220"),  # 220水
    ],
)
def test_what_cannot_be_reversed_is_left(any_wording, question, equation, answer):
    assert reversals(Problem(question, equation, answer)) == {None}


@pytest.mark.parametrize(
    "question, equation, answer, asked",
    [
        ("6（1）班有36人，走了25%，剩下几人？", "36×(1-25%)", "27", {"36", "25%"}),  # a 1 may be anything's
        ("小红有36张，小明比她多25%，小明有几张？", "36×25%+36", "45", {"25%"}),  # 36 stands there twice
        ("3天行180千米，照这样5天行多少千米？", "5×(180/3)", "300", {"5"}),  # 180/3 is read as one number
    ],
)
def test_numbers_that_stay_are_not_asked_for(any_wording, question, equation, answer, asked):
    assert {problem.answer for problem in reversals(Problem(question, equation, answer))} == asked


def test_money_is_told_in_yuan_and_parts_of_a_unit_are_asked_for_by_their_amount(any_wording):
    rope = Problem("一根绳子长(3/4)米，每米8元，一共多少钱？", "(3/4)×8", "6")
    assert reversals(rope) == {
        Problem("一根绳子长多少米，每米8元，一共6元？", "6÷8", "3/4"),
        Problem("一根绳子长(3/4)米，每米多少元，一共6元？", "6÷(3/4)", "8"),
    }


def test_a_wording_that_is_held_out_is_not_made(monkeypatch):
    kept = "有4筐苹果，每筐多少千克，一共220千克？"
    monkeypatch.setattr(reversed_problems, "use_of", lambda text: "problems" if text == kept else "worked")
    assert {problem.answer for problem in reversals(APPLES)} == {"4"}
