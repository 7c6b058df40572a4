"""tools/spellings.py: each spelling by hand, and a table at the end."""

import pytest

from infra.cli import UserError
from tools import spellings
from tools.spellings import CHARACTERS, SPELLINGS, rows

BY_HAND = {
    "at once": ["", "", ""],
    "backwards first": ["~326", "~522", "~2242"],
    "columns": ["~583472326", "~385072522", "~642432324"],
    "columns, apart": ["~583,472,326", "~385,072,522", "~642,432,324"],
    "columns as calculations": [
        ":5+8=13,4+7+1=12,3+2+1=6",
        ":13-8=5,10-7-1=2,5-2-1=2",
        ":6×7=42,4×7+4=32,3×7+3=24",
    ],
    "columns of one width, carries marked": ["~583进472进326", "~385借072借522", "~64242,42832,32124"],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_calculations_are_spelled_as_by_hand(name):
    calculations = [(345, "+", 278), (503, "-", 278), (346, "×", 7)]
    assert [SPELLINGS[name](*each) for each in calculations] == BY_HAND[name]


def test_only_what_follows_a_calculation_is_learned():
    ids, labels, weights = rows(SPELLINGS["backwards first"], [(95, "+", 7), (3, "+", 4)])
    texts = ["".join(CHARACTERS[i] for i, weight in zip(*pair) if weight) for pair in zip(labels, weights)]
    assert texts == ["~201=102\n", "~7=7\n"]
    assert "".join(CHARACTERS[i] for i in ids[0]) == "\n95+7~201=102"


@pytest.mark.slow
def test_what_is_learned_shows_in_the_table(monkeypatch, capsys):
    few = [(a, operator, 7) for operator in "+-×" for a in (12, 345, 6789)]
    monkeypatch.setattr(spellings, "SPELLINGS", {"backwards first": SPELLINGS["backwards first"]})
    monkeypatch.setattr(spellings, "draw", lambda rng: rng.choice(few))
    monkeypatch.setattr(spellings, "STEP_TOKENS", 200)
    monkeypatch.setattr(spellings, "TESTED", 90)
    spellings.main(["--tokens", "10000"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| backwards first | `~326` `~522` `~2242` |" + " 100%, 100%, 100% |" * 3


def test_too_few_tokens_are_refused():
    with pytest.raises(UserError, match="found --tokens 0, expected at least 1"):
        spellings.main(["--tokens", "0"])
