"""Numbers of the same kind as others, and where in a text they stand."""

import random
import re

import pytest

from tools.exact_numbers import value
from tools.other_numbers import like, with_numbers


def test_numbers_that_are_part_of_others_are_not_exchanged():
    assert with_numbers("3个，13个，3.5米，3%，(3/4)", {"3": "8"}) == "8个，13个，3.5米，3%，(3/4)"
    assert with_numbers("用去(1/4)，即1/4", {"1/4": "2/5"}) == "用去(2/5)，即2/5"


@pytest.mark.parametrize(
    "number", ["7", "36", "2400", "8.4", "0.25", "0.75", "3/4", "7/3", "1(1/2)", "80%", "130%", "2.5%"]
)
def test_another_number_is_of_the_same_kind_and_size(number):
    rng = random.Random(1)
    for _ in range(200):
        new = like(number, rng)
        assert re.sub(r"\d+", "", new) == re.sub(r"\d+", "", number), new
        if "/" not in number:
            assert value(number) / 4 <= value(new) <= 5 * value(number), new
            assert len(new.partition(".")[2]) == len(number.partition(".")[2]), new
        assert value(new) < 1 or value(number) > 1, new
        assert value(new) > 1 or value(number) < 1 or "/" not in number, new
    assert len({like(number, rng) for _ in range(50)}) > 3


def test_nothing_stays_nothing():
    assert like("0", random.Random(1)) == "0" and like("0.0", random.Random(1)) == "0.0"
