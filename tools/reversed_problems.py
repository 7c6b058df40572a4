"""Word problems reversed: the result is told, and one of the numbers is asked for.

    有4筐苹果，每筐55千克，一共多少千克？   4×55 = 220
    有4筐苹果，每筐多少千克，一共220千克？  220÷4 = 55
    有多少筐苹果，每筐55千克，一共220千克？ 220÷55 = 4

A Chinese question word stands where its answer would, so the two change places. Reverse operation based data
augmentation, Liu et al. 2020, arXiv:2010.01556: one topic, several equations, and which of them is told by
nothing but the place of the question word.
"""

import random
import re

from tools.exact_numbers import FRACTION, CannotSpell
from tools.expressions import TOKEN
from tools.operand_order import in_order_of
from tools.other_numbers import NUMBERS, unbracketed
from tools.problems import Problem
from tools.worked_r1 import checked_steps, use_of

ASKS = re.compile("百分之几|几分之几|多少|(?<![十好])几(?!何)")
OPPOSITE = {"+": "-", "-": "+", "×": "÷", "÷": "×"}


def reversed_problem(problem: Problem, rng: random.Random) -> Problem | None:
    """The problem that asks for one of its numbers; None where none can be asked for."""
    asks = list(ASKS.finditer(problem.question))
    named = [unbracketed(number) for number in NUMBERS.findall(problem.question)]
    used = [unbracketed(token) for token in TOKEN.findall(problem.equation)]
    if len(asks) != 1 or problem.answer in named:
        return None
    once = [number for number in named if named.count(number) == used.count(number) == 1]
    for number in rng.sample(once, len(once)):
        try:
            found = asked_for(number, problem, asks[0])
        except CannotSpell:
            continue
        if use_of(found.question) == "worked":  # the wording is new, and may be one that is held out
            return found
    return None


def asked_for(number: str, problem: Problem, ask: re.Match) -> Problem:
    """The problem with this number and the question word exchanged. Raises CannotSpell."""
    question, answer = problem.question, problem.answer
    word = "百分之几" if number.endswith("%") else "几分之几" if FRACTION.fullmatch(number) else "多少"
    place = next(found for found in NUMBERS.finditer(question) if unbracketed(found[0]) == number)
    told = f"({answer})" if FRACTION.fullmatch(answer) else answer
    for found, text in sorted([(ask, told), (place, word)], key=lambda pair: -pair[0].start()):
        question = question[: found.start()] + text + question[found.end() :]
    equation = in_order_of(question, solved(TOKEN.findall(problem.equation), number, answer))
    checked_steps(equation, number)
    return Problem(question, equation, number)


def solved(tokens: list[str], number: str, result: str) -> str:
    """What a number is where the tokens, which have it once, come to the result: 4×55, '55', '220' -> 220÷4

    Raises CannotSpell for a number within a power.
    """
    if len(tokens) == 1:
        return result
    operators = next((both for both in ("+-", "×÷") if len(parts_of(tokens, both)) > 1), "")
    if not operators:
        if tokens[-1] != ")":
            raise CannotSpell("within a power")
        return solved(tokens[1:-1], number, result)
    joining, undoing = operators
    parts = parts_of(tokens, operators)
    [place] = [index for index, (_, part) in enumerate(parts) if number in map(unbracketed, part)]
    operator, part = parts.pop(place)
    others = [(its, "".join(other)) for its, other in parts]
    if operator == joining:
        others = [(joining, result), *((OPPOSITE[its], text) for its, text in others)]
    else:
        others.append((undoing, result))
    others.sort(key=lambda pair: pair[0] == undoing)
    return solved(part, number, "".join(its + enclosed(text, its) for its, text in others)[1:])


def parts_of(tokens: list[str], operators: str) -> list[tuple[str, list[str]]]:
    """[(operator before it, its tokens)] of what these operators join outside of brackets."""
    parts, depth = [(operators[0], [])], 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth == 0 and token in operators:
            parts.append((token, []))
        else:
            parts[-1][1].append(token)
    return parts


def enclosed(text: str, operator: str) -> str:
    """An expression after an operator, in brackets where it needs them."""
    tokens = TOKEN.findall(text)
    is_sum, is_product = (len(parts_of(tokens, both)) > 1 for both in ("+-", "×÷"))
    is_bare = text[0] != "(" and FRACTION.fullmatch(text) and operator in "×÷"
    needs = is_bare or (is_sum and operator != "+") or (is_product and operator == "÷")
    return f"({text})" if needs else text
