"""Expressions such as 3×(8-2)^2: evaluated one calculation at a time, each written out.

The result of the one that comes first takes its place, and what is left is an expression again.
"""

import re
from collections.abc import Iterator

from tools.arithmetic import result_of, spell
from tools.decimals import quotient
from tools.exact_numbers import NUMBER, CannotSpell, value, written

TOKEN = re.compile(rf"{NUMBER}|\^[23]|[-+×÷()]")
IS_NUMBER = re.compile(rf"-?{NUMBER}|\(-\d+/\d+\)").fullmatch  # also one below zero, where each chain ends
BINDS = {"+": 1, "-": 1, "×": 2, "÷": 2, "^2": 3, "^3": 3}  # the higher, the earlier


def spell_chain(expression, allows=lambda index, step: True):
    """'3×(8-2)' -> ['8-2=6', '3×6=18'], '18': the calculations as they are evaluated, and the result.

    Raises CannotSpell as spell does, for the first calculation that is not allowed, and for what is no
    expression of numbers, + - × ÷ ^2 ^3 and brackets.
    """
    steps, left = [], tokens_of(expression)
    for step, rest in evaluated(left):
        if not allows(len(steps), step):
            raise CannotSpell("not allowed")
        steps.append(step)
        left = rest
    return steps, result_in(left)


def lines_of_chain(expression):
    """'(3+5)×2-6' -> ['3+5=8', '8×2-6', '8×2:...得16', '16-6=10'], '10': the calculations, with what is left
    after each, while that is more than one calculation, and the result. Raises CannotSpell."""
    lines, left = [], tokens_of(expression)
    for step, rest in evaluated(left):
        lines += [step, "".join(rest)] if sum(token in BINDS for token in rest) > 1 else [step]
        left = rest
    return lines, result_in(left)


def result_in(left) -> str:
    """The only token that is left at last, without the brackets of a fraction."""
    [result] = left
    return result.strip("()") if result.startswith("(") else result


def tokens_of(expression) -> list[str]:
    tokens = TOKEN.findall(expression)
    if "".join(tokens) != expression:
        raise CannotSpell("not an expression")
    return unwrapped(tokens)


def evaluated(tokens) -> Iterator[tuple[str, list[str]]]:
    """(step, the tokens that are left) of each calculation."""
    while len(tokens) != 1 or not IS_NUMBER(tokens[0]):
        place = first_calculation(tokens)
        a, sign, *rest = tokens[place:]
        step = spell(a, "×", a) if sign.startswith("^") else spell(a, sign, rest.pop(0))
        result = result_of(step)
        found = [f"({result})" if "/" in result else result]
        if sign == "^3":
            found = ["(", *found, "×", a, ")"]
        tokens = unwrapped([*tokens[:place], *found, *rest])
        yield step, tokens


def first_calculation(tokens) -> int:
    """The place of its first number: the leftmost sign that binds no less than the ones beside it."""
    around = ["", *tokens, "", ""]
    for place, (before, a, sign, b, after) in enumerate(zip(*(around[start:] for start in range(5)))):
        is_first = BINDS.get(before, 0) < BINDS.get(sign, 0) >= BINDS.get(after, 0)
        if is_first and IS_NUMBER(a) and (sign.startswith("^") or IS_NUMBER(b)):
            return place
    raise CannotSpell("not an expression")


def unwrapped(tokens) -> list[str]:
    """The tokens without brackets around a single number."""
    place = 0
    while place + 2 < len(tokens):
        opening, number, closing = tokens[place : place + 3]
        if (opening, closing) == ("(", ")") and IS_NUMBER(number):
            tokens = [*tokens[:place], number, *tokens[place + 3 :]]
            place = max(0, place - 1)  # there may be brackets around it
        else:
            place += 1
    return tokens


def restate(result: str, stated: str) -> list[str]:
    """The steps from a result to the same number as stated: '3/8', '37.5%' -> ['3÷8:...', '0.375=37.5%']"""
    if result == (stated[1:-1] if stated.startswith("(") else stated):
        return []
    decimal, steps = written(value(stated)), []
    if "/" in result and "/" not in decimal:
        steps.append(quotient(*result.split("/")))
        result = decimal
    return steps if result == stated else [*steps, f"{result}={stated}"]
