"""python tools/more_problems.py --data_path data/worked/worked.jsonl --out data/worked/more.jsonl

More problems from the worked ones of tools/worked_r1.py: the problems as they are; variants of each, its
numbers exchanged in question, equation and steps alike, some asked for their equation alone, and some of
these reversed (tools/reversed_problems.py); drills, single calculations of the kinds and lengths that the
problems need; and the other conversations, which are in words. Shuffled, and by a seed the same.

A problem for which no numbers of the same kinds are found (tools/variants.py) has fewer variants.
"""

import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.cli import UserError, make_parser, run_script
from infra.questions import read_conversations
from tools.problems import Problem, equation_alone, read_problem, worked
from tools.reversed_problems import reversed_problem
from tools.variants import calculations, drill, variant
from tools.worked_r1 import write_conversations

ENOUGH_FOR_CORES = 2000  # to be made: fewer are sooner made by one


def more_problems(
    given: list, variants: int, drills: int, seed: int, equations=0.0, turned=0.0, words=1.0
) -> tuple[list, dict[str, int]]:
    """The worked problems that are given, up to `variants` of each, and drills; and how many of each.

    Of the variants the share `equations` are equations alone, of these the share `turned` is reversed; of the
    other conversations given, which are in words, the share `words` is kept.
    """
    rng, pairs = random.Random(seed), [(turns, read_problem(turns)) for turns in given]
    problems = [problem for _, problem in pairs if problem]
    in_words = [turns for turns, problem in pairs if not problem]
    kinds = [calculation for problem in problems for calculation in calculations(problem)]
    wanted = [(rng.random(), problem) for _ in range(variants) for problem in problems]
    drilled = [(rng.random(), rng.choice(kinds)) for _ in range(drills if kinds else 0)]
    alone = round(len(wanted) * equations)  # the first of each problem's variants
    reversals = round(alone * turned)
    found = {
        "as they are": [turns for turns, problem in pairs if problem],
        "in words": rng.sample(in_words, round(len(in_words) * words)),
        "variants": made(partial(new_problem, worked), wanted[alone:]),
        "equations": made(partial(new_problem, equation_alone), wanted[reversals:alone]),
        "reversed": made(new_reversed, wanted[:reversals]),
        "drills": made(new_drill, drilled),
    }
    conversations = [turns for some in found.values() for turns in some]
    rng.shuffle(conversations)
    return conversations, {name: len(some) for name, some in found.items()}


def made(make: Callable, wanted: list[tuple]) -> list:
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
    turned = varied and reversed_problem(varied, rng)
    return turned and equation_alone(turned)


def new_drill(wanted: tuple[float, tuple[str, str, str]]) -> list[dict] | None:
    return drill(*wanted[1], random.Random(wanted[0]))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--data_path", default="data/worked/worked.jsonl", help="worked conversations, JSONL")
    parser.add_argument("--out", default="data/worked/more.jsonl", help="the file to write")
    parser.add_argument("--variants", type=int, default=4, help="of each word problem, at most")
    parser.add_argument("--equations", type=float, default=0.5, help="share of variants without calculations")
    parser.add_argument("--reversed", type=float, default=0.5, help="share of these that are reversed")
    parser.add_argument("--drills", type=int, default=40_000, help="single calculations")
    parser.add_argument(
        "--words", type=float, default=1, help="share of the conversations without an equation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    args = parser.parse_args(argv)
    shares = (args.equations, args.reversed, args.words)
    if min(args.variants, args.drills, *shares) < 0 or max(shares) > 1:
        found = f"found --variants {args.variants} --drills {args.drills} --equations {args.equations}"
        found += f" --reversed {args.reversed} --words {args.words}"
        raise UserError(f"{found}, expected at least 0 of each, and shares of at most 1")
    given = list(read_conversations(Path(args.data_path)))
    if not any(map(read_problem, given)):
        found = "expected worked word problems, found none: run tools/worked_r1.py first"
        raise UserError(f"{args.data_path}: {found}")
    amounts = (args.variants, args.drills, args.seed, *shares)
    conversations, counts = more_problems(given, *amounts)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_conversations(Path(args.out), conversations)
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{args.out} | {len(conversations)} conversations: {parts}")


if __name__ == "__main__":
    run_script(main)
