"""python tools/more_problems.py --data_path data/worked/worked.jsonl --out data/worked/more.jsonl

More problems from the worked ones of tools/worked_r1.py: the problems as they are; variants of each, its
numbers exchanged in question, equation and steps alike, some asked for their equation alone, and some of
these reversed (tools/reversed_problems.py); long calculations, some asked for their equation alone too
(tools/long_calculations.py); drills, single calculations of the kinds and lengths that the problems need; and
the other conversations, which are in words. Shuffled, and by a seed the same.

A problem for which no numbers of the same kinds are found (tools/variants.py) has fewer variants.
"""

import os
import random
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from multiprocessing import get_context, parent_process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.cli import Flags, UserError, flag, parse_args, run_script
from infra.questions import read_conversations
from tools.long_calculations import long_calculation
from tools.problems import Problem, equation_alone, read_problem, worked
from tools.reversed_problems import reversed_problem
from tools.variants import MOST_CHARACTERS, calculations, drill, variant
from tools.worked_r1 import write_conversations

ENOUGH_FOR_CORES = 2000  # to be made: fewer are sooner made by one


@dataclass(frozen=True)
class Amounts(Flags):
    """How many conversations of which kind."""

    variants: int = flag(4, "of each word problem, at most", least=0)
    equations: float = flag(0.5, "share of variants and long calculations without steps", least=0, most=1)
    reversed: float = flag(0.0, "share of these that are reversed, if they can be", least=0, most=1)
    long_calculations: int = flag(0, "calculations of several numbers", least=0)
    drills: int = flag(40_000, "single calculations", least=0)
    words: float = flag(1.0, "share of the conversations without an equation", least=0, most=1)
    seed: int = flag(42, "of all random draws", least=0)


@dataclass(frozen=True)
class MoreConfig(Amounts):
    data_path: Path = flag(Path("data/worked/worked.jsonl"), "worked conversations, JSONL")
    out: Path = flag(Path("data/worked/more.jsonl"), "the file to write")


def more_problems(given: list, amounts: Amounts) -> tuple[list, dict[str, int]]:
    """Conversations made of those given, and how many there are of each kind."""
    rng, pairs = random.Random(amounts.seed), [(turns, read_problem(turns)) for turns in given]
    problems = [problem for _, problem in pairs if problem]
    in_words = [turns for turns, problem in pairs if not problem]
    kinds = drilled_kinds(problems)
    wanted = [(rng.random(), problem) for _ in range(amounts.variants) for problem in problems]
    drilled = [(rng.random(), rng.choice(kinds)) for _ in range(amounts.drills if kinds else 0)]
    long = [rng.random() for _ in range(amounts.long_calculations if problems else 0)]
    alone = round(len(wanted) * amounts.equations)  # the first of each problem's variants
    turned, long_alone = round(alone * amounts.reversed), round(len(long) * amounts.equations)
    equations = [problem.equation for problem in problems]
    found = {
        "as they are": [turns for turns, problem in pairs if problem],
        "in words": rng.sample(in_words, round(len(in_words) * amounts.words)),
        "variants": made(partial(new_problem, worked), wanted[alone:]),
        "equations": made(partial(new_problem, equation_alone), wanted[turned:alone]),
        "reversed": made(new_reversed, wanted[:turned]),
        "long calculations": made(partial(new_long, worked, MOST_CHARACTERS, equations), long[long_alone:]),
        "long equations": made(partial(new_long, equation_alone, inf, equations), long[:long_alone]),
        "drills": made(new_drill, drilled),
    }
    conversations = [turns for some in found.values() for turns in some]
    rng.shuffle(conversations)
    return conversations, {name: len(some) for name, some in found.items()}


def drilled_kinds(problems: list[Problem]) -> list[tuple[str, str, str]]:
    """The calculations of the problems, and the harder ones again: fractions, decimals, percentages."""
    kinds = [calculation for problem in problems for calculation in calculations(problem)]
    return kinds + [kind for kind in kinds if re.search("[./%]", "".join(kind))]


def made(make: Callable, wanted: list) -> list:
    """What make(one) returns for each that is wanted and can be made, in order, by all cores."""
    if len(wanted) < ENOUGH_FOR_CORES:
        return [turns for turns in map(make, wanted) if turns]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=leave_with_parent) as pool:
        return [turns for turns in pool.map(make, wanted, chunksize=500) if turns]


def leave_with_parent() -> None:
    """Let a worker end when the process that started it is killed; else it would wait for work for ever."""
    wait = lambda: (parent_process().join(), os._exit(1))
    threading.Thread(target=wait, daemon=True).start()


def new_problem(told: Callable, wanted: tuple[float, Problem]) -> list[dict] | None:
    varied = variant(wanted[1], random.Random(wanted[0]))
    return varied and told(varied)


def new_reversed(wanted: tuple[float, Problem]) -> list[dict] | None:
    rng = random.Random(wanted[0])
    varied = variant(wanted[1], rng)
    return varied and equation_alone(reversed_problem(varied, rng) or varied)


def new_long(told: Callable, most: float, equations: list[str], wanted: float) -> list[dict] | None:
    found = long_calculation(equations, random.Random(wanted), most)
    return found and told(found)


def new_drill(wanted: tuple[float, tuple[str, str, str]]) -> list[dict] | None:
    return drill(*wanted[1], random.Random(wanted[0]))


def main(argv=None):
    config = parse_args(MoreConfig(), __doc__, argv)
    given = list(read_conversations(config.data_path))
    if not any(map(read_problem, given)):
        found = "expected worked word problems, found none: tools/worked_r1.py makes them of 列式计算：6×4=24"
        raise UserError(f"{config.data_path}: {found}")
    conversations, counts = more_problems(given, config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_conversations(config.out, conversations)
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{config.out} | {len(conversations)} conversations: {parts}")


if __name__ == "__main__":
    run_script(main)
