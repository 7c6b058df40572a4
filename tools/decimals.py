"""Calculations with integers and decimals: these as integers, after which the point is set. And reducing."""

import math
from fractions import Fraction

from tools.digits import add, divide, multiply, subtract
from tools.exact_numbers import decimal_places, evaluate, value, written


def decimal_steps(a, operator, b):
    """'13.5', '+', '2.75' -> '13.5+2.75:1350+275~055,572进326,101=1625得16.25'"""
    head, result = f"{a}{operator}{b}", written(evaluate(value(a), operator, value(b)))
    if operator == "÷":
        return quotient(a, b)
    if operator == "×":
        whole_a, whole_b = (int(text.replace(".", "")) for text in (a, b))
        inner = multiply(whole_a, whole_b)
    else:
        places = max(decimal_places(value(a)), decimal_places(value(b)))
        whole_a, whole_b = (int(value(text) * 10**places) for text in (a, b))
        if operator == "+":
            inner = add(whole_a, whole_b)
        else:
            inner = subtract(max(whole_a, whole_b), min(whole_a, whole_b))
    if f"{whole_a}{operator}{whole_b}" == head and not result.startswith("-"):
        return inner
    return f"{head}:{inner}得{result}"


def quotient(a, b):
    """'12', '0.375' -> '12÷0.375:12000÷375:...得32'; '1.84', '2' -> '1.84÷2:184÷2:...得92得0.92'

    The divisor becomes an integer. The point of the dividend is set in the result.
    '7', '12' -> '7÷12:7/12得7/12': where no decimal ends. '43', '100' -> '43÷100=0.43': only the point moves.
    """
    x, y = value(a), value(b)
    head, result = f"{a}÷{b}", written(x / y)
    scale = 10 ** decimal_places(y)
    whole_a, whole_b = x * scale, int(y * scale)
    shift = 10 ** decimal_places(whole_a)
    whole_a = int(whole_a * shift)
    while shift == 1 and whole_a and whole_a % 10 == 0 and whole_b % 10 == 0:
        whole_a, whole_b = whole_a // 10, whole_b // 10
    if whole_a == 0 or str(whole_b).rstrip("0") == "1":  # a power of ten
        return f"{head}={result}"
    if "/" in result:
        return f"{head}:{reduce(whole_a, whole_b * shift)}得{Fraction(whole_a, whole_b * shift)}"
    if whole_b < 10 and whole_a < 10 * whole_b and whole_a % whole_b == 0:
        inner = f"{whole_a}÷{whole_b}={whole_a // whole_b}"
    else:
        inner = f"{whole_a}÷{whole_b}:{divide(whole_a, whole_b)}得{written(Fraction(whole_a, whole_b))}"
    if inner.startswith((f"{head}=", f"{head}:")):
        return inner
    if shift == 1:  # only rewritten: one 得 closes both
        return f"{head}:{inner}" if ":" in inner else f"{head}:{inner}得{result}"
    return f"{head}:{inner}得{result}"


def reduce(top, bottom):
    """80, 60 -> '80/60约10,80÷10=8,60÷10=6,8/6约2,8÷2=4,6÷2=3,4/3': both are divided until it is reduced.

    A fraction is written down before it is decided whether it is: what follows can be 约 or 得.
    """
    steps, common = [], math.gcd(top, bottom)
    while common > 1:
        factor = next((f for f in (10, 9, 8, 7, 6, 5, 4, 3, 2) if common % f == 0), common)
        steps += [f"{top}/{bottom}约{factor}", *(quotient(str(n), str(factor)) for n in (top, bottom))]
        top, bottom, common = top // factor, bottom // factor, common // factor
    return ",".join(steps if bottom == 1 else [*steps, f"{top}/{bottom}"])
