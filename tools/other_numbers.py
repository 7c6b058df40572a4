"""Other numbers of the same kind: an integer stays an integer, a share below one."""

import math
import random
import re

from tools.arithmetic import result_of
from tools.exact_numbers import NUMBER, value

NUMBERS = re.compile(rf"(?<!\^){NUMBER}")  # the 2 of 3^2 is none


def like(number: str, rng: random.Random) -> str:
    """A number of the same kind, of about as many digits: 2400 -> 1800, 10 -> 70, 3/4 -> 2/5, 20% -> 40%"""
    if number.endswith("%"):
        new = like(number[:-1], rng)
        return (new if float(new) < 100 or float(number[:-1]) >= 100 else number[:-1]) + "%"
    if "(" in number:
        whole, fraction = number[:-1].split("(")
        return f"{like(whole, rng)}({like(fraction, rng)})"
    if "/" in number:
        return like_fraction(*map(int, number.split("/")), rng)
    if value(number) == 0:
        return number
    digits = number.replace(".", "")
    places = len(number.partition(".")[2])
    zeros = 0 if places else len(digits) - len(digits.rstrip("0"))
    core = int(digits) // 10**zeros
    low, high = (2, 9) if core < 10 else (max(11, core // 2), core * 2)
    if value(number) < 1:
        high = min(high, 10**places - 1)
    drawn = rng.randint(low, high) * 10**zeros
    return written_with_places(drawn, places)


def like_fraction(top: int, bottom: int, rng: random.Random) -> str:
    """Another reduced fraction, below one if this is."""
    while True:
        new_bottom = rng.randint(max(2, bottom // 2), bottom + 4)
        low, high = (1, new_bottom - 1) if top < bottom else (new_bottom + 1, new_bottom * 3)
        new_top = rng.randint(low, high)
        if math.gcd(new_top, new_bottom) == 1:
            return f"{new_top}/{new_bottom}"


def written_with_places(digits: int, places: int) -> str:
    """1250, 2 -> '12.50'"""
    text = str(digits).rjust(places + 1, "0")
    return f"{text[:-places]}.{text[-places:]}" if places else text


def result_kinds(steps: list[str]) -> list[str]:
    """'integer', 'decimal' or 'fraction' of what each step comes to, and whether that is below one."""
    results = [result_of(step).removeprefix("-") for step in steps]
    kinds = ["fraction" if "/" in text else "decimal" if "." in text else "integer" for text in results]
    return [kind + " below one" * (value(text) < 1) for kind, text in zip(kinds, results)]


def with_numbers(text: str, new: dict[str, str]) -> str:
    """The text with each number that is a key of new replaced, brackets around fractions kept."""

    def replaced(match):
        number = unbracketed(match[0])
        return match[0].replace(number, new.get(number, number))

    return NUMBERS.sub(replaced, text)


def unbracketed(number: str) -> str:
    """'(2/7)' -> '2/7'"""
    return number.strip("()") if number.startswith("(") else number
