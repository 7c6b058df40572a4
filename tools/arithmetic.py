"""One language in which a calculation is written out, in steps that a small model can learn.

Integers are written out digit by digit (tools/digits.py):
    6×7=42   345+278~583进472进326=623   195÷5:19÷5商3余4,45÷5商9余0得39
Decimals as integers, then the point:
    13.5+2.75:1350+275~055,572进326,101=1625得16.25
Fractions: divide where it comes out, else multiply first; the reciprocal; a common denominator:
    600×(7/12):600÷12:60÷12商5,12×5~21010,10506=60,60-60=0得50,50×7:5×7=35得350得350
    350÷(7/10):350×10/7:350÷7:35÷7商5余0得50,50×10=500得500
    7/12-1/5:7×5=35,35-12~523,312=23得23/60
Reducing, and percentages:
    80/60约10=8/6约2=4/3   20%=0.2

A colon opens the steps of what stands before it, 得 closes them with the result: an integer, a decimal where
it ends within MAX_DECIMALS places, else a reduced fraction; of fractions without a decimal no decimal. A
calculation rewritten at once as another shares its 得:
    12÷0.5:120÷5:12÷5商2余2,20÷5商4余0得24
"""

import math
import re
from fractions import Fraction
from functools import lru_cache

from tools.digits import add, divide, multiply, subtract

MAX_DECIMALS = 6
MAX_DIGITS = 12
MOST_CHARACTERS = 1000  # of a number

NUMBER = r"(?:\d+\(\d+/\d+\)|\(\d+/\d+\)|\d+/\d+|\d+(?:\.\d+)?%?)"
DECIMAL = re.compile(r"\d+(?:\.\d+)?")
MIXED = re.compile(r"(\d+)\((\d+)/(\d+)\)")
FRACTION = re.compile(r"\(?(\d+)/(\d+)\)?")


class CannotSpell(ValueError):
    """The calculation has no spelling; the message is the reason, the same for all of its kind."""


@lru_cache(maxsize=100_000)
def value(text):
    """'37.5%' -> Fraction(3, 8); '1(1/2)' -> Fraction(3, 2). Raises CannotSpell for other texts."""
    if len(text) > MOST_CHARACTERS:  # of which int() takes 4300
        raise CannotSpell("too many digits")
    try:
        if mixed := MIXED.fullmatch(text):
            whole, top, bottom = map(int, mixed.groups())
            return whole + Fraction(top, bottom)
        if fraction := FRACTION.fullmatch(text):
            return Fraction(int(fraction[1]), int(fraction[2]))
        if DECIMAL.fullmatch(text.removesuffix("%")):
            return Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ZeroDivisionError:
        raise CannotSpell("division by zero") from None
    raise CannotSpell("not a number")


def written(number):
    """Fraction(1, 8) -> '0.125'; Fraction(1, 3) -> '1/3'; Fraction(-4) -> '-4'"""
    number = Fraction(number)
    if number.denominator == 1:
        return str(number.numerator)
    places = decimal_places(number)
    if places is None:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number) * 10**places).rjust(places + 1, "0")
    return "-" * (number < 0) + f"{digits[:-places]}.{digits[-places:]}"


def decimal_places(number):
    """How many digits after the point, or None where they do not end within MAX_DECIMALS."""
    fitting = (places for places in range(MAX_DECIMALS + 1) if 10**places % number.denominator == 0)
    return next(fitting, None)


def evaluate(a, operator, b):
    """The exact result of two Fractions. Raises CannotSpell for a division by zero."""
    if operator == "÷" and b == 0:
        raise CannotSpell("division by zero")
    exactly = {"+": Fraction.__add__, "-": Fraction.__sub__, "×": Fraction.__mul__, "÷": Fraction.__truediv__}
    return exactly[operator](a, b)


def spell(a, operator, b):
    """'9.1', '×', '0.3' -> '9.1×0.3:91×3~10303,92727=273得2.73'

    A negative result is that of the difference the other way round. Raises CannotSpell for negative operands,
    division by zero, and numbers of more than MAX_DIGITS digits or MAX_DECIMALS decimals.
    """
    number = evaluate(value(a), operator, value(b))
    if None in (decimal_places(value(text)) for text in (a, b) if "." in text):
        raise CannotSpell("too many decimals")
    if max(sum(map(str.isdigit, text)) for text in (a, b, written(number))) > MAX_DIGITS:
        raise CannotSpell("too many digits")
    (steps, plain_a), (steps_b, plain_b) = simplify(a), simplify(b)
    steps, operands = steps + steps_b, (plain_a, plain_b)
    if operator in "+-" and any("." in text for text in operands):
        for index, (text, decimal) in enumerate(zip(operands, map(written, map(value, operands)))):
            if "/" in text and "/" not in decimal:
                steps.append(quotient(*text.split("/")))
                operands = (decimal, plain_b) if index == 0 else (plain_a, decimal)
    if not any("/" in text for text in operands):
        inner = decimal_steps(operands[0], operator, operands[1])
        return f"{a}{operator}{b}:{','.join([*steps, inner])}得{written(number)}" if steps else inner
    steps += fraction_steps(operands[0], operator, operands[1])
    result = written(number) if any("." in text for text in operands) else str(number)
    return f"{a}{operator}{b}:{','.join(steps)}得{result}" if steps else f"{a}{operator}{b}={result}"


def result_of(spelled):
    """'66×52:...得3432' -> '3432': what a spelled calculation comes to, as written there"""
    return re.split("[=得]", spelled)[-1]


def simplify(operand):
    """'20%' -> (['20%=0.2'], '0.2'); '(2/7)' -> ([], '2/7')
    '1(1/2)' -> (['1×2=2', '2+1=3', '1(1/2)=3/2'], '3/2')
    """
    if operand.endswith("%"):
        plain = written(value(operand))
        return [f"{operand}={plain}"], plain
    if mixed := MIXED.fullmatch(operand):
        whole, top, bottom = map(int, mixed.groups())
        steps = [multiply(whole, bottom), add(whole * bottom, top)]
        plain = f"{whole * bottom + top}/{bottom}"
        return [*steps, f"{operand}={plain}"], plain
    return [], operand.strip("()")


# ------------------------------------------------------------------------------------------------------------
# Decimals and fractions
# ------------------------------------------------------------------------------------------------------------


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
    '7', '12' -> '7÷12=7/12': where no decimal ends. '43', '100' -> '43÷100=0.43': only the point moves.
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
        number = Fraction(whole_a, whole_b * shift)
        steps = reduce(whole_a, whole_b * shift)
        return f"{head}={steps}" if steps.startswith(f"{a}/{b}") else f"{head}:{steps}得{number}"
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
    """80, 60 -> '80/60约10=8/6约2=4/3'"""
    text, common = f"{top}/{bottom}", math.gcd(top, bottom)
    while common > 1:
        factor = next((f for f in (10, 9, 8, 7, 6, 5, 4, 3, 2) if common % f == 0), common)
        top, bottom, common = top // factor, bottom // factor, common // factor
        text += f"约{factor}={top}/{bottom}".removesuffix("/1")
    return text


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
    """Over a common denominator."""
    (top, bottom), (other_top, other_bottom) = fraction_parts(a), fraction_parts(b)
    common = math.lcm(bottom, other_bottom)
    steps, tops = [], []
    for text, part, whole in ((a, top, bottom), (b, other_top, other_bottom)):
        factor = common // whole
        if "/" not in text and "." in text:
            steps.append(f"{text}={part}/{whole}")
        if factor > 1 and part != 1:
            steps.append(multiply(part, factor))
        tops.append(part * factor)
    if operator == "+":
        steps.append(add(*tops))
        total = sum(tops)
    else:
        steps.append(subtract(max(tops), min(tops)))
        total = tops[0] - tops[1]
    return steps + reducing(total, common)


def reducing(top, bottom):
    """[] where top/bottom is reduced, or not above 0."""
    return [reduce(int(top), bottom)] if top > 0 and math.gcd(int(top), bottom) > 1 else []
