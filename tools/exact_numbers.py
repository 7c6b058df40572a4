"""Numbers as a calculation writes them, and the exact fractions that they stand for."""

import re
from fractions import Fraction
from functools import lru_cache

MAX_DECIMALS = 6
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
