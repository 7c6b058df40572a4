"""A word problem as a conversation: worked out, without its calculations, or asked for its equation alone."""

import re
from dataclasses import dataclass

from tools.exact_numbers import NUMBER, CannotSpell
from tools.expressions import spell_chain
from tools.worked_r1 import lines_of_thought

WORKED = re.compile(rf"<think>\n(.+)\n(?:.+\n)+</think>\n<answer>\n({NUMBER})\n</answer>")
DRILLED = re.compile(rf"(.+)=<think>\n.+\n</think>\n<answer>\n({NUMBER})\n</answer>")
EQUATION_ALONE = "只列式，不计算。"  # such a problem has half of the tokens: twice as many are read


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


def worked(problem: Problem) -> list[dict]:
    """The problem with its calculations written out. Raises CannotSpell."""
    lines = lines_of_thought(problem.equation, problem.answer)
    return conversation_of(problem.question, lines, problem.answer)


def equation_alone(problem: Problem) -> list[dict]:
    """The problem asked for its equation alone, which is answered without a thought."""
    question = {"role": "user", "content": problem.question + EQUATION_ALONE}
    return [question, {"role": "assistant", "content": problem.equation}]


def without_steps(messages: list[dict]) -> list[dict]:
    """A worked word problem or drill without its calculations; any other conversation as it is."""
    if problem := read_problem(messages):
        return conversation_of(problem.question, [problem.equation], problem.answer)
    if drilled := DRILLED.fullmatch("".join(message["content"] for message in messages)):
        return conversation_of(messages[0]["content"], [drilled[1]], drilled[2])
    return messages


def conversation_of(question: str, thought: list[str], answer: str) -> list[dict]:
    """A question, and a reply with the lines of a thought."""
    reply = "\n".join(["<think>", *thought, "</think>", "<answer>", answer, "</answer>"])
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
