"""How models solve word problems, part by part: the equation, each calculation, the result, the form.

Well-formed replies are not yet right, and a wrong result does not say what was wrong. A program evaluates the
equation that a reply states: with arithmetic free of mistakes, as many replies would be right. It also checks
every calculation.
"""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from statistics import mean

from dataset import prompt_ids
from generate import Sampling, generate
from infra.questions import first_question, judge
from infra.scoring import final_answer, number_value, stated_answer
from tools.claims import claims
from tools.exact_numbers import CannotSpell, value
from tools.expressions import spell_chain
from tools.problems import Problem, read_problem, worked
from tools.variants import stated_like, variant
from tools.worked_r1 import EQUATION, OPERATOR, worked_conversation

VOTES, VOTE_TEMPERATURE = 16, 0.7
NAMED = re.compile(r"列式计算：(.+?)=")
FIRST_LINE = re.compile(r"\s*<think>\s*([^\n<]*)")  # of a thought that may never end
MORE_STEPS = "把得数加上17，再乘3，最后是多少？"
DISTRACTION = "今天是9月17日，窗外有5只小鸟。"


def equation_of(reply: str) -> str:
    """The equation that a reply states: after 列式计算： or as the first line of its thought; "" for none."""
    if stated := NAMED.search(reply):
        return stated[1]
    begun = FIRST_LINE.match(reply)
    return begun[1].strip() if begun and OPERATOR.search(begun[1]) else ""


def evaluates_to(equation: str, expected) -> bool:
    """Whether an expression comes to a Fraction above 0."""
    try:
        return value(spell_chain(equation)[1]) == expected
    except CannotSpell:
        return False


def look_into(judged: list[dict], questions: list, tokens: list[int]) -> dict:
    """Shares of right equations and calculations in judged replies, and right replies by kind of problem.

    questions: (prompt ids, expected reply); tokens: the length of each reply.
    """
    groups, totals = defaultdict(list), Counter()
    for verdict, (_, expected) in zip(judged, questions, strict=True):
        number = number_value(final_answer(expected))
        verdict["equation_right"] = evaluates_to(equation_of(verdict["reply"]), number)
        checked = [is_true for _, is_true in claims(verdict["reply"])]
        totals["calculations"] += len(checked)
        totals["calculations_right"] += sum(checked)
        for kind in kinds_of(expected):
            groups[kind].append(verdict["is_right"])
    calculated = {"calculations": totals["calculations"]}
    if totals["calculations"]:  # else none is right, and none is wrong
        calculated["calculations_right"] = totals["calculations_right"] / totals["calculations"]
    return {
        "equation_right": mean(verdict["equation_right"] for verdict in judged),
        **calculated,
        "reply_tokens": round(mean(tokens), 1),
        "by_kind": {kind: [sum(right), len(right)] for kind, right in sorted(groups.items())},
    }


def kinds_of(expected: str) -> list[str]:
    """Of a problem, by its expected reply: how many steps its equation has, and the kinds of its numbers."""
    stated = EQUATION.search(expected)
    if not stated:
        return ["no equation"]
    steps = len(OPERATOR.findall(stated[1]))
    kinds = {"/": "fractions", "%": "percentages", ".": "decimals"}
    found = [name for sign, name in kinds.items() if sign in stated[0]]
    count = "1 step" if steps == 1 else f"{steps} steps" if steps < 5 else "5 or more steps"
    return [count, *(found or ["integers"])]


def majority(model, tokenizer, questions: list, max_new_tokens: int, seed: int) -> dict:
    """{"right": numbers of the questions to which most of VOTES sampled replies give the right answer,
    "samples_right": share of the samples that do}."""
    prompts = [prompt for prompt, _ in questions for _ in range(VOTES)]
    sampling = Sampling(VOTE_TEMPERATURE, max_new_tokens=max_new_tokens, seed=seed)
    replies = [tokenizer.decode(ids) for ids in generate(model, prompts, sampling, shows_progress=True)]
    voted = judge(elected(replies, VOTES), questions)
    each = judge(replies, [question for question in questions for _ in range(VOTES)])
    return {
        "right": [number for number, verdict in enumerate(voted) if verdict["is_right"]],
        "samples_right": mean(verdict["is_right"] for verdict in each),
    }


def elected(replies: list[str], votes: int) -> list[str]:
    """The number that most of each `votes` replies give, "" for none; of equally frequent ones the first."""
    found = []
    for start in range(0, len(replies), votes):
        counts = Counter(stated_answer(reply) for reply in replies[start : start + votes])
        counts.pop(None, None)
        found.append(str(max(counts, key=counts.get, default="")))
    return found


# ------------------------------------------------------------------------------------------------------------
# Controls: the held-out problems, changed
# ------------------------------------------------------------------------------------------------------------


def changed_problems(conversations: list[list[dict]], rng) -> dict[str, list[list[dict]]]:
    """The held-out problems with two more steps, with other numbers, with longer ones, and after a sentence
    that has nothing to do with them; worked out, so that the expected results are exact."""
    spelled = [worked_conversation(turns, Counter()) for turns in conversations]
    problems = [problem for turns in spelled if (problem := read_problem(turns))]
    changed = {
        "two more steps": map(two_more_steps, problems),
        "other numbers": (variant(problem, rng) for problem in problems),
        "longer numbers": (variant(problem, rng) for problem in map(lengthened, problems) if problem),
    }
    return {name: [worked(problem) for problem in some if problem] for name, some in changed.items()} | {
        "a distraction": [
            [{**turns[0], "content": DISTRACTION + turns[0]["content"]}, *turns[1:]] for turns in spelled
        ],
    }


def two_more_steps(problem: Problem) -> Problem | None:
    equation = f"({problem.equation}+17)×3"
    try:
        return Problem(problem.question + MORE_STEPS, equation, spell_chain(equation)[1])
    except CannotSpell:
        return None


def lengthened(problem: Problem) -> Problem | None:
    """The problem with two more digits in the largest integer of question and equation; None without one."""
    asked, used = (
        set(re.findall(r"(?<![\d./(])\d{2,}(?![\d./%)])", text))
        for text in (problem.question, problem.equation)
    )
    if not asked & used:
        return None
    largest = max(sorted(asked & used), key=int)
    swap = re.compile(rf"(?<![\d./(]){largest}(?![\d./%)])")
    question, equation = (swap.sub(f"{largest}46", text) for text in (problem.question, problem.equation))
    try:
        answer = stated_like(spell_chain(equation)[1], problem.answer)
        value(answer)  # no percentage where no decimal ends
    except CannotSpell:
        return None
    return replace(problem, question=question, equation=equation, answer=answer)


def prompts_of(tokenizer, conversations: list[list[dict]]) -> list:
    """[(prompt ids, expected reply)] of what conversations ask first."""
    return [first_question(turns, partial(prompt_ids, tokenizer)) for turns in conversations]
