"""Calculations with fractions p/q: multiplied, by the reciprocal, over a common denominator."""

import math
from fractions import Fraction

from tools.decimals import decimal_steps, quotient, reduce
from tools.digits import add, multiply, subtract
from tools.exact_numbers import value, written


def fraction_steps(a, operator, b):
    """The steps of a calculation in which at least one number is a fraction p/q."""
    if operator == "÷":
        top, bottom = fraction_parts(b)
        inverse = written(Fraction(bottom, top)) if top == 1 else f"{bottom}/{top}"
        if "/" not in a and "/" not in inverse:
            return [decimal_steps(a, "×", inverse)]
        first, *rest = fraction_steps(a, "×", inverse) or [""]
        return [f"{a}×{inverse}:{first}".removesuffix(":"), *rest]
    if operator == "×":
        return product_steps(a, b)
    return sum_steps(a, operator, b)


def fraction_parts(text):
    """'7/12' -> (7, 12); '0.25' -> (1, 4)"""
    if "/" in text:
        return tuple(map(int, text.split("/")))
    return value(text).numerator, value(text).denominator


def product_steps(a, b):
    """Divide by a bottom first where that comes out, else multiply first. Two fractions: both parts."""
    if "/" in a and "/" in b:
        (top, bottom), (other_top, other_bottom) = fraction_parts(a), fraction_parts(b)
        steps = [multiply(top, other_top), multiply(bottom, other_bottom)]
        return steps + reducing(top * other_top, bottom * other_bottom)
    if "/" in a:
        a, b = b, a
    top, bottom = fraction_parts(b)
    first = value(a) / bottom
    if first.denominator == 1:
        steps = [quotient(a, str(bottom))]
        return steps + ([decimal_steps(written(first), "×", str(top))] if top != 1 else [])
    product = value(a) * top
    steps = [decimal_steps(a, "×", str(top))] if top != 1 else []
    last = [quotient(written(product), str(bottom))] if "." in a else reducing(product, bottom)
    return steps + last


def sum_steps(a, operator, b):
    """Over a common denominator: what makes it of each bottom, then the tops that go with it."""
    (top, bottom), (other_top, other_bottom) = fraction_parts(a), fraction_parts(b)
    common = math.lcm(bottom, other_bottom)
    factor, other_factor = common // bottom, common // other_bottom
    steps = [f"{text}={value(text)}" for text in (a, b) if "." in text]
    if min(bottom, other_bottom) > 1:
        bottoms = [(bottom, factor), (other_bottom, other_factor)]
        is_product = factor == other_bottom  # and the other way round: it is said once
        steps += [multiply(*pair) for pair in bottoms[: 1 if is_product else 2] if pair[1] > 1]
    steps += [
        multiply(part, times)
        for part, times in ((top, factor), (other_top, other_factor))
        if min(part, times) > 1
    ]
    tops = (top * factor, other_top * other_factor)
    if operator == "+":
        steps.append(add(*tops))
        total = sum(tops)
    else:
        steps.append(subtract(max(tops), min(tops)))
        total = tops[0] - tops[1]
    return steps + reducing(total, common)


def reducing(top, bottom):
    """[] of an integer, and of what is not above 0."""
    return [reduce(int(top), bottom)] if top > 0 and bottom > 1 else []
