"""Word problems reversed: the result is told, and one of the numbers is asked for.

    有4筐苹果，每筐55千克，一共多少千克？   4×55 = 220
    有4筐苹果，每筐多少千克，一共220千克？  220÷4 = 55
    有多少筐苹果，每筐55千克，一共220千克？ 220÷55 = 4

A Chinese question word stands where its answer would, so the two change places. Reverse operation based data
augmentation, Liu et al. 2020, arXiv:2010.01556: one topic, several equations, and only the place of the
question word tells which one.
"""

import random
import re

from tools.exact_numbers import FRACTION, CannotSpell, value
from tools.expressions import TOKEN
from tools.other_numbers import NUMBERS, unbracketed
from tools.problems import Problem
from tools.variants import exchangeable
from tools.worked_r1 import in_questions_order, use_of

ASKS = re.compile("百分之几|几分之几|多少钱?|(?<![十好])几(?!何)")
ASKS_TWICE = re.compile("求|谁|哪|什么|吗|怎|能否|够|解法|方程")  # or asks whether
UNIT = re.compile(  # how it begins
    "[千万米人个吨棵天页平分本厘只元立倍台名张次克块套种岁件公箱辆升袋朵根秒盆道度瓶盒筐毫组条面支枚户年册头位颗株份级枝"
    "周场包双粒题幅排层段亩杯步圈座桶斤节罐把顶cdkm]|小时"
)
ALONE = re.compile("[？，。]|$")
OPPOSITE = {"+": "-", "-": "+", "×": "÷", "÷": "×"}


def reversed_problem(problem: Problem, rng: random.Random) -> Problem | None:
    """The problem that asks for one of its numbers; None where none can be asked for."""
    question, asks = problem.question, list(ASKS.finditer(problem.question))
    named = [unbracketed(number) for number in NUMBERS.findall(question)]
    used = [unbracketed(token) for token in TOKEN.findall(problem.equation)]
    if len(asks) != 1 or ASKS_TWICE.search(question) or problem.answer in named:
        return None
    if asks[0][0] in ("多少", "几") and not any(it.match(question, asks[0].end()) for it in (UNIT, ALONE)):
        return None  # 多少水 would be 40水
    once = [number for number in exchangeable(problem) if named.count(number) == used.count(number) == 1]
    for number in rng.sample(once, len(once)):
        try:
            found = asked_for(number, problem, asks[0])
        except CannotSpell:
            continue
        if use_of(found.question) == "worked":  # the wording is new, and may be one that is held out
            return found
    return None


def asked_for(number: str, problem: Problem, ask: re.Match) -> Problem:
    """The problem with this number and the question word exchanged.

    Raises CannotSpell for a number within a power, and where a step cannot be spelled, such as 3-5.
    """
    question, answer = problem.question, problem.answer
    place = next(found for found in NUMBERS.finditer(question) if unbracketed(found[0]) == number)
    is_part = FRACTION.fullmatch(number) and value(number) < 1 and not UNIT.match(question, place.end())
    word = "百分之几" if number.endswith("%") else "几分之几" if is_part else "多少"
    told = (f"({answer})" if FRACTION.fullmatch(answer) else answer) + "元" * (ask[0] == "多少钱")
    for found, text in sorted([(ask, told), (place, word)], key=lambda pair: -pair[0].start()):
        question = question[: found.start()] + text + question[found.end() :]
    equation = solved(TOKEN.findall(problem.equation), number, answer)
    return Problem(question, in_questions_order(question, equation, number), number)


def solved(tokens: list[str], number: str, result: str) -> str:
    """`tokens` = `result` solved for the number that they have once: 4×55, '55', '220' -> 220÷4

    Raises CannotSpell for a number within a power.
    """
    tokens = unwrapped(tokens)
    if len(tokens) == 1:
        return result
    operators = operators_of(tokens)
    if not operators:
        raise CannotSpell("within a power")
    joining, undoing = operators
    parts = parts_of(tokens, operators)
    [place] = [index for index, (_, part) in enumerate(parts) if number in map(unbracketed, part)]
    operator, part = parts.pop(place)
    others = [(its, "".join(unwrapped(other))) for its, other in parts]
    if operator == joining:
        others = [(joining, result), *((OPPOSITE[its], text) for its, text in others)]
    else:
        others.append((undoing, result))
    others.sort(key=lambda pair: pair[0] == undoing)  # 1+3-5, where 3-5+1 would come to less than nothing
    return solved(part, number, "".join(its + enclosed(text, its) for its, text in others)[1:])


def unwrapped(tokens: list[str]) -> list[str]:
    """The tokens without brackets around all of them."""
    while len(tokens) > 1 and tokens[0] == "(" and tokens[-1] == ")" and not operators_of(tokens):
        tokens = tokens[1:-1]
    return tokens


def operators_of(tokens: list[str]) -> str:
    """The operators of a sum, "+-", or of a product, "×÷"; "" for a number, a power or a bracket."""
    return next((both for both in ("+-", "×÷") if len(parts_of(tokens, both)) > 1), "")


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
    own = operators_of(TOKEN.findall(text))
    is_bare = text[0] != "(" and FRACTION.fullmatch(text) and operator in "×÷"
    return f"({text})" if is_bare or (own and operator in {"+-": "-×÷", "×÷": "÷"}[own]) else text
