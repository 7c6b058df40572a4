"""Calculations of several numbers as problems: (12+30)*(4/7)=多少？

The question already says the equation. To copy it takes practice all the same, and few word problems have so
many numbers. No wording is a held-out one, but some of those ask for calculations too: 计算：9*99*999=。
"""

import random
import re
from math import inf

from tools.exact_numbers import CannotSpell, value
from tools.expressions import TOKEN, spell_chain
from tools.other_numbers import NUMBERS, like, unbracketed
from tools.problems import Problem
from tools.reversed_problems import enclosed

EQUATIONS_JOINED = (1, 1, 2, 2, 3)  # one of these, each as likely
LONGEST = 70  # characters
TRIES = 300  # draws of equations and numbers for one calculation
ASKED = ("{}=", "{}=。", "{}=多少？", "算一算：{}=", "脱式计算：{}。", "计算{}的值。")


def long_calculation(equations: list[str], rng: random.Random, most: float = inf) -> Problem | None:
    """Up to three of the equations joined, with other numbers: at least two steps, in `most` characters or
    fewer, and a result above 0. None where TRIES draws found none."""
    for _ in range(TRIES):
        chosen = rng.choices(equations, k=rng.choice(EQUATIONS_JOINED))
        expression, *others = (with_other_numbers(equation, rng) for equation in chosen)
        for other in others:
            expression = joined(expression, rng.choice("+-×÷"), other)
        try:
            steps, result = spell_chain(expression)
        except CannotSpell:
            continue
        is_clear = not re.search(r"\(\d+÷\d+\)", expression)  # asked as (3/4), it would be the fraction
        is_short = len(expression) <= LONGEST and sum(map(len, steps)) <= most
        is_positive = not result.startswith("-") and value(result) > 0
        if len(steps) > 1 and is_short and is_clear and is_positive:
            return Problem(rng.choice(ASKED).format(as_asked(expression)), expression, result)
    return None


def with_other_numbers(equation: str, rng: random.Random) -> str:
    """'3×(8-2)' -> '5×(6-4)'"""

    def other(found):
        number = unbracketed(found[0])
        return found[0].replace(number, like(number, rng))

    return NUMBERS.sub(other, equation)


def joined(a: str, operator: str, b: str) -> str:
    """'3+4', '÷', '5×6' -> '(3+4)÷(5×6)'"""
    return (enclosed(a, "×") if operator in "×÷" else a) + operator + enclosed(b, operator)


def as_asked(expression: str) -> str:
    """'1/2+3÷4' -> '(1/2)+3/4'"""
    bracketed = TOKEN.sub(lambda token: re.sub(r"^\d+/\d+$", r"(\g<0>)", token[0]), expression)
    return bracketed.translate(str.maketrans("×÷", "*/"))
