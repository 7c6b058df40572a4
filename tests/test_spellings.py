"""tools/spellings.py: each spelling by hand, what is kept from learning, and what a model learns."""

import random
import re

import pytest
import torch.nn.functional as F

from infra.cli import UserError
from tools.spellings import (
    CHARACTERS,
    SPELLINGS,
    draw,
    is_kept_from_learning,
    learn,
    main,
    rows,
    spelled_right,
)

CALCULATIONS = [(345, "+", 278), (95, "+", 7), (503, "-", 278), (1000, "-", 998), (346, "×", 7)]
BY_HAND = {
    "at once": ["", "", "", "", ""],
    "backwards": ["~326", "~201", "~522", "~2", "~2242"],
    "each column a calculation": [
        ":5+8=13,4+7+1=12,3+2+1=6",
        ":5+7=12,9+0+1=10",
        ":13-8=5,10-7-1=2,5-2-1=2",
        ":10-8=2,10-9-1=0,10-9-1=0,1-0-1=0",
        ":6×7=42,4×7+4=32,3×7+3=24",
    ],
    "columns": ["~583,472,326", "~572,90,1", "~385,072,522", "~082,090,090,10", "~642,432,324"],
    "columns of one width": [
        "~583,472,326",
        "~572,900,1",
        "~385,072,522",
        "~082,090,090,100",
        "~642,432,324",
    ],
    "and carries, products": [
        "~583进472进326",
        "~572进900进1",
        "~385借072借522",
        "~082借090借090借100",
        "~64242,42832,32124",
    ],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_calculations_are_spelled_as_by_hand(name):
    assert [SPELLINGS[name](*each) for each in CALCULATIONS] == BY_HAND[name]


def test_columns_of_one_width_write_the_zeros():
    in_both = [(5, "+", 12), (21, "×", 3)]
    assert [SPELLINGS["columns"](*each) for each in in_both] == ["~527,11", "~13,26"]
    assert [SPELLINGS["columns of one width"](*each) for each in in_both] == ["~527,011", "~103,206"]


def test_what_is_tested_is_not_learned():
    rng = random.Random(1)
    learned = {draw(rng, for_learning=True) for _ in range(3000)}
    tested = {draw(rng, for_learning=False) for _ in range(3000)}
    assert not learned & tested and not any(is_kept_from_learning(*each) for each in learned)
    few = [(a, "×", b) for a in range(10, 100) for b in range(2, 10)]
    assert 50 < sum(is_kept_from_learning(*each) for each in few) < 100  # of 720


def test_only_what_follows_a_calculation_is_learned():
    ids, labels, weights = rows(SPELLINGS["backwards"], [(95, "+", 7), (3, "+", 4)])
    texts = ["".join(CHARACTERS[i] for i, weight in zip(*pair) if weight) for pair in zip(labels, weights)]
    assert texts == ["~201=102\n", "~7=7\n"]
    assert "".join(CHARACTERS[i] for i in ids[0]) == "\n95+7~201=102"


def test_one_wrong_character_is_a_mistake():
    spelling = SPELLINGS["backwards"]

    def one_that_cannot_add(ids):
        a, operator, b = re.match(r"\n(\d+)([-+×])(\d+)", "".join(CHARACTERS[i] for i in ids[0])).groups()
        labels = rows(spelling, [(int(a), operator, int(b))])[1].clone()
        labels[0, -2] += operator == "+"
        return F.one_hot(labels, len(CHARACTERS))

    assert spelled_right(one_that_cannot_add, spelling) == {"+": [0, 0, 0], "-": [1, 1, 1], "×": [1, 1, 1]}


@pytest.mark.slow
def test_a_model_learns_from_calculations_it_does_not_know():
    spelling, rng = SPELLINGS["columns"], random.Random(2)
    ids, labels, weights = rows(spelling, [draw(rng, for_learning=False) for _ in range(100)])
    models = [learn(spelling, tokens, seed=0) for tokens in (1, 30_000)]
    first, last = ((model(ids, None, labels, weights) / weights.sum()).item() for model in models)
    assert last < first - 0.5  # nats


def test_too_few_tokens_are_refused():
    with pytest.raises(UserError, match="found --tokens 0, expected at least 1"):
        main(["--tokens", "0"])
