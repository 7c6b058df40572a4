"""python tools/more_problems.py --data_path data/worked/worked.jsonl --out data/worked/more.jsonl

More problems from the worked ones of tools/worked_r1.py: the conversations as they are; variants of each word
problem, its numbers exchanged in question, equation and steps alike, some asked for their equation alone; and
drills, single calculations of the kinds and lengths that the problems need. Shuffled, and by a seed the same.

A number keeps its kind and about its size: an integer stays an integer, a share stays below one. So does each
result on the way. A problem for which no such numbers are found has fewer variants.
"""

import os
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.cli import UserError, make_parser, run_script
from infra.questions import read_conversations
from tools.arithmetic import result_of, spell
from tools.exact_numbers import FRACTION, NUMBER, CannotSpell, value, written
from tools.expressions import restate, spell_chain
from tools.other_numbers import NUMBERS, like, result_kinds, unbracketed, with_numbers
from tools.worked_r1 import write_conversations

ENOUGH_FOR_CORES = 2000  # to be made: fewer are sooner made by one
KEPT = {"1", "100%", "3.14"}  # numbers that belong to no problem
OF_FORMULAS = {"2", "3", "4", "6", "7", "10", "12", "24", "30", "60", "100", "1000"}  # (length + width)×2
TRIES = 300  # draws of new numbers for one variant
MOST_CHARACTERS = 400  # of a worked reply: longer ones fit no short row
WORKED = re.compile(rf"<think>\n(.+)\n(?:.+\n)+</think>\n<answer>\n({NUMBER})\n</answer>")
EQUATION_ALONE = "只列式，不计算。"  # such a problem has half of the tokens: twice as many are read
DRILLED = re.compile(rf"(.+)=<think>\n.+\n</think>\n<answer>\n({NUMBER})\n</answer>")
STEP = re.compile(rf"({NUMBER})([-+×÷])({NUMBER})")


@dataclass(frozen=True)
class Problem:
    """A word problem: its question, its equation and the result, as written."""

    question: str
    equation: str
    answer: str


def read_problem(messages: list[dict]) -> Problem | None:
    """The word problem of a worked conversation, or None for any other conversation."""
    if [message["role"] for message in messages] != ["user", "assistant"]:
        return None
    found = WORKED.fullmatch(messages[1]["content"])
    try:
        return Problem(messages[0]["content"], *found.groups()) if found and spell_chain(found[1]) else None
    except CannotSpell:  # a thought in words
        return None


def without_steps(messages: list[dict]) -> list[dict]:
    """A worked word problem or drill without its calculations; any other conversation as it is."""
    if problem := read_problem(messages):
        return conversation_of(problem.question, problem.equation, [], problem.answer)
    if drilled := DRILLED.fullmatch("".join(message["content"] for message in messages)):
        return conversation_of(messages[0]["content"], drilled[1], [], drilled[2])
    return messages


def equation_alone(messages: list[dict]) -> list[dict]:
    """A worked word problem that asks for its equation alone, without a thought."""
    problem = read_problem(messages)
    question = {"role": "user", "content": problem.question + EQUATION_ALONE}
    return [question, {"role": "assistant", "content": problem.equation}]


def conversation_of(question: str, equation: str, steps: list[str], answer: str) -> list[dict]:
    """The conversation that tools/worked_r1.py makes of a problem; a drill has no equation of its own."""
    thought = "\n".join([equation, *steps] if equation else steps)
    reply = f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


# ------------------------------------------------------------------------------------------------------------
# Variants
# ------------------------------------------------------------------------------------------------------------


def variant(problem: Problem, rng: random.Random) -> list[dict] | None:
    """The problem with other numbers, worked; None where TRIES draws found none that keep every kind."""
    exchanged = exchangeable(problem)
    if not exchanged:
        return None
    kinds = result_kinds([*spell_chain(problem.equation)[0], problem.answer])
    for _ in range(TRIES):
        new = {number: like(number, rng) for number in exchanged}
        equation = with_numbers(problem.equation, new)
        try:
            steps, result = spell_chain(equation)
            answer = stated_like(result, problem.answer)
            is_alike = result_kinds([*steps, answer]) == kinds and value(result) > 0
            steps += restate(result, answer)
        except CannotSpell:
            continue
        question = with_numbers(problem.question, new)
        if is_alike and question != problem.question and sum(map(len, steps)) <= MOST_CHARACTERS:
            return conversation_of(question, equation, steps, answer)
    return None


def exchangeable(problem: Problem) -> list[str]:
    """The numbers of the equation that the question names. One that the equation has more often, and that
    formulas have, may be theirs and stays: the 2 of (18+2)×2, around a field 18 long and 2 wide."""
    asked, used = (
        Counter(map(unbracketed, NUMBERS.findall(text))) for text in (problem.question, problem.equation)
    )
    is_theirs = lambda number: number in OF_FORMULAS and used[number] > asked[number]
    return sorted(number for number in (used.keys() & asked.keys()) - KEPT if not is_theirs(number))


def stated_like(result: str, answer: str) -> str:
    """The result in the form of an answer: '3/8', '50%' -> '37.5%'; '3/8', '0.5' -> '0.375'"""
    if answer.endswith("%"):
        return written(value(result) * 100) + "%"
    return result if "/" in answer else written(value(result))


# ------------------------------------------------------------------------------------------------------------
# Drills
# ------------------------------------------------------------------------------------------------------------


def drill(a: str, operator: str, b: str, rng: random.Random) -> list[dict] | None:
    """A calculation like a∘b with other numbers: 'a∘b=' and its steps; None where TRIES draws found none."""
    a, b = unbracketed(a), unbracketed(b)
    was = result_of(spell(a, operator, b))
    kinds = result_kinds([was])
    for _ in range(TRIES):
        x, y = (like(number, rng) if number != "1" or rng.random() < 0.2 else number for number in (a, b))
        if operator == "÷" and kinds == ["integer"] and "/" not in x + y:
            x = written(value(y) * value(like(was, rng)))
        if operator == "-" and value(x) < value(y):
            x, y = y, x
        x, y = (
            f"({number})" if FRACTION.fullmatch(number) and operator in "×÷" else number for number in (x, y)
        )
        try:
            step = spell(x, operator, y)
        except CannotSpell:
            continue
        if result_kinds([step]) == kinds and len(step) <= MOST_CHARACTERS // 2:
            return conversation_of(f"{x}{operator}{y}=", "", [step], result_of(step))
    return None


def calculations(problem: Problem) -> Iterator[tuple[str, str, str]]:
    """(a, operator, b) of each step of a problem."""
    for step in spell_chain(problem.equation)[0]:
        yield STEP.match(step).groups()


# ------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------


def more_problems(
    worked: list, variants: int, drills: int, seed: int, equations: float = 0
) -> tuple[list, dict[str, int]]:
    """Worked conversations with up to `variants` of each problem, that share of them equations alone, and
    with drills; and how many of each."""
    rng, problems = random.Random(seed), [problem for turns in worked if (problem := read_problem(turns))]
    kinds = [calculation for problem in problems for calculation in calculations(problem)]
    wanted = [(rng.random(), problem) for _ in range(variants) for problem in problems]
    drilled = [(rng.random(), rng.choice(kinds)) for _ in range(drills if kinds else 0)]
    varied = made(new_variant, wanted)
    alone = round(len(varied) * equations)  # the first of each problem's variants
    found = {
        "as they are": worked,
        "variants": varied[alone:],
        "equations": list(map(equation_alone, varied[:alone])),
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


def new_variant(wanted: tuple[float, Problem]) -> list[dict] | None:
    return variant(wanted[1], random.Random(wanted[0]))


def new_drill(wanted: tuple[float, tuple[str, str, str]]) -> list[dict] | None:
    return drill(*wanted[1], random.Random(wanted[0]))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--data_path", default="data/worked/worked.jsonl", help="worked conversations, JSONL")
    parser.add_argument("--out", default="data/worked/more.jsonl", help="the file to write")
    parser.add_argument("--variants", type=int, default=4, help="of each word problem, at most")
    parser.add_argument("--equations", type=float, default=0.5, help="share of variants without calculations")
    parser.add_argument("--drills", type=int, default=40_000, help="single calculations")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    args = parser.parse_args(argv)
    if min(args.variants, args.drills) < 0 or not 0 <= args.equations <= 1:
        found = f"found --variants {args.variants} --drills {args.drills} --equations {args.equations}"
        raise UserError(f"{found}, expected at least 0 of each, and a share of at most 1")
    worked = list(read_conversations(Path(args.data_path)))
    if not any(map(read_problem, worked)):
        found = "expected worked word problems, found none: run tools/worked_r1.py first"
        raise UserError(f"{args.data_path}: {found}")
    conversations, counts = more_problems(worked, args.variants, args.drills, args.seed, args.equations)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_conversations(Path(args.out), conversations)
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{args.out} | {len(conversations)} conversations: {parts}")


if __name__ == "__main__":
    run_script(main)
