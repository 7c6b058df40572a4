"""Problems and calculations with other numbers of the same kinds.

An integer stays an integer, a share stays below one, and so does each result on the way.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator

from tools.arithmetic import result_of, spell
from tools.exact_numbers import FRACTION, NUMBER, CannotSpell, value, written
from tools.expressions import restate, spell_chain
from tools.other_numbers import NUMBERS, like, result_kinds, unbracketed, with_numbers
from tools.problems import Problem, conversation_of

KEPT = {"1", "100%", "3.14"}  # numbers that belong to no problem
OF_FORMULAS = {"2", "3", "4", "6", "7", "10", "12", "24", "30", "60", "100", "1000"}  # (length + width)×2
TRIES = 300  # draws of new numbers for one variant
MOST_CHARACTERS = 400  # of a worked reply: longer ones fit no short row
STEP = re.compile(rf"({NUMBER})([-+×÷])({NUMBER})")


def variant(problem: Problem, rng: random.Random) -> Problem | None:
    """The problem with other numbers; None where TRIES draws found none that keep every kind."""
    exchanged = exchangeable(problem)
    if not exchanged:
        return None
    kinds = result_kinds([*spell_chain(problem.equation)[0], problem.answer])
    is_like = lambda index, step: result_kinds([step]) == [kinds[index]]
    for _ in range(TRIES):
        new = {number: like(number, rng) for number in exchanged}
        equation = with_numbers(problem.equation, new)
        try:
            steps, result = spell_chain(equation, is_like)
            answer = stated_like(result, problem.answer)
            is_alike = is_like(-1, answer) and value(result) > 0
            steps += restate(result, answer)
        except CannotSpell:
            continue
        question = with_numbers(problem.question, new)
        if is_alike and question != problem.question and sum(map(len, steps)) <= MOST_CHARACTERS:
            return Problem(question, equation, answer)
    return None


def exchangeable(problem: Problem) -> list[str]:
    """The numbers of the equation that the question names. One that the equation has more often, and that
    formulas have, may be theirs and stays: the 2 of (18+2)×2, around a field 18 long and 2 wide. One that is
    part of a fraction that the question does not name stays too: the 180 of 180+9 beside (180/4)."""
    asked, used = (
        Counter(map(unbracketed, NUMBERS.findall(text))) for text in (problem.question, problem.equation)
    )
    is_theirs = lambda number: number in OF_FORMULAS and used[number] > asked[number]
    parts = {part for number in used.keys() - asked.keys() if "/" in number for part in number.split("/")}
    return sorted(number for number in (used.keys() & asked.keys()) - KEPT - parts if not is_theirs(number))


def stated_like(result: str, answer: str) -> str:
    """The result in the form of an answer: '3/8', '50%' -> '37.5%'; '3/8', '0.5' -> '0.375'"""
    if answer.endswith("%"):
        return written(value(result) * 100) + "%"
    return result if "/" in answer else written(value(result))


def drill(a: str, operator: str, b: str, rng: random.Random) -> list[dict] | None:
    """A calculation like a∘b with other numbers: 'a∘b=' and its steps; None where TRIES draws found none."""
    a, b = unbracketed(a), unbracketed(b)
    was = result_of(spell(a, operator, b))
    kinds = result_kinds([was])
    for _ in range(TRIES):
        x, y = (like(number, rng) if number != "1" or rng.random() < 0.2 else number for number in (a, b))
        if operator == "÷" and kinds == ["integer"] and "/" not in x + y:
            x = written(value(y) * value(like(was, rng)))
        if operator == "-" and value(x) < value(y):
            x, y = y, x
        x, y = (
            f"({number})" if FRACTION.fullmatch(number) and operator in "×÷" else number for number in (x, y)
        )
        try:
            step = spell(x, operator, y)
        except CannotSpell:
            continue
        if result_kinds([step]) == kinds and len(step) <= MOST_CHARACTERS // 2:
            return conversation_of(f"{x}{operator}{y}=", [step], result_of(step))
    return None


def calculations(problem: Problem) -> Iterator[tuple[str, str, str]]:
    """(a, operator, b) of each step of a problem."""
    for step in spell_chain(problem.equation)[0]:
        yield STEP.match(step).groups()
