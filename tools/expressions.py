"""Expressions such as 3×(8-2)^2: evaluated one calculation at a time, each written out."""

import re

from tools.arithmetic import result_of, spell
from tools.decimals import quotient
from tools.exact_numbers import NUMBER, CannotSpell, value, written

MOST_BRACKETS = 100  # Python ends at some 200 within each other
TOKEN = re.compile(rf"{NUMBER}|\^[23]|[-+×÷()]")


def spell_chain(expression, allows=lambda index, step: True):
    """'3×(8-2)' -> ['8-2=6', '3×6=18'], '18': the calculations as they are evaluated, and the result.

    Raises CannotSpell as spell does, for the first calculation that is not allowed, and for what is no
    expression of numbers, + - × ÷ ^2 ^3 and brackets.
    """
    tokens = TOKEN.findall(expression)
    if "".join(tokens) != expression or expression.count("(") > MOST_BRACKETS:
        raise CannotSpell("not an expression")
    steps = []

    def add(step):
        if not allows(len(steps), step):
            raise CannotSpell("not allowed")
        steps.append(step)

    result = chain(tokens, add, "+-")
    if tokens:
        raise CannotSpell("not an expression")
    return steps, result.strip("()") if result.startswith("(") else result


def chain(tokens, add, operators):
    """The result of the longest sum ("+-") or product ("×÷") at the front of tokens, taken from them;
    add(step) is called with each of its calculations."""
    result = chain(tokens, add, "×÷") if operators == "+-" else power(tokens, add)
    while tokens and tokens[0] in operators:
        operator = tokens.pop(0)
        other = chain(tokens, add, "×÷") if operators == "+-" else power(tokens, add)
        result = calculate(result, operator, other, add)
    return result


def calculate(a, operator, b, add):
    """The result of one calculation, a fraction in brackets."""
    add(step := spell(a, operator, b))
    result = result_of(step)
    return f"({result})" if "/" in result else result


def power(tokens, add):
    """An operand, or its square or cube, multiplied out."""
    base = result = operand(tokens, add)
    if tokens and tokens[0].startswith("^"):
        for _ in range(int(tokens.pop(0)[1]) - 1):
            result = calculate(result, "×", base, add)
    return result


def operand(tokens, add):
    """A number, or the result of a bracket."""
    if not tokens or not re.fullmatch(rf"{NUMBER}|\(", tokens[0]):
        raise CannotSpell("not an expression")
    if (token := tokens.pop(0)) != "(":
        return token
    result = chain(tokens, add, "+-")
    if not tokens or tokens.pop(0) != ")":
        raise CannotSpell("not an expression")
    return result


def restate(result: str, stated: str) -> list[str]:
    """The steps from a result to the same number as stated: '3/8', '37.5%' -> ['3÷8:...', '0.375=37.5%']"""
    if result == (stated[1:-1] if stated.startswith("(") else stated):
        return []
    decimal, steps = written(value(stated)), []
    if "/" in result and "/" not in decimal:
        steps.append(quotient(*result.split("/")))
        result = decimal
    return steps if result == stated else [*steps, f"{result}={stated}"]
