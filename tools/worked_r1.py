"""python tools/worked_r1.py --data_path r1_1024.jsonl --out_dir data/worked

Write every calculation of R1 conversations out in the language of tools/arithmetic.py, and hold problems out.

    worked.jsonl    every calculation that can be spelled is spelled
    plain.jsonl     the same conversations as they were, for comparison
    reward.jsonl    word problems whose rationales are not to be learned, spelled for validation
    problems.jsonl  the held-out word problems, as they were

A rationale that a program wrote from an equation (its answer has 列式计算：EQUATION=RESULT) becomes the
equation, its operands in the question's order, and its calculations, one a line. Elsewhere a calculation is
replaced where it stands. What is wrong or cannot be spelled stays as it is and is counted by reason.

Held out are word problems, questions in Chinese whose answer is a number, by a hash of their wording without
its numbers: no held-out wording is trained on with other digits. Without a number as answer they are dropped.
Others are kept for reward: a model that has not read their rationales has something to learn by trying.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.cli import make_parser, run_script
from infra.files import write_text
from infra.questions import read_conversations
from infra.scoring import REPLY, final_answer, number_value
from tools.exact_numbers import NUMBER, CannotSpell, value
from tools.expressions import lines_of_chain, restate, spell_chain
from tools.operand_order import in_order_of
from tools.other_numbers import result_kinds

HELD_OUT_IN_1000, REWARDED_IN_1000 = 80, 30
EQUATION = re.compile(rf"列式计算：(.+)={NUMBER}。?\n答案：({NUMBER})")
CALCULATION = re.compile(
    rf"(?<![A-Za-z0-9.,+×÷*/^-])(\(*\d[\d./%()]*(?:[-+×÷*][\d./%()]+)+)=({NUMBER})(?![\d./%,])"
)
CHINESE = re.compile("[\u4e00-\u9fff]")
OPERATOR = re.compile(r"[-+×÷*^]")


def use_of(question: str) -> str:
    """What a question is for: "problems" (held out), "reward" or "worked". Of a Chinese one, a hash of its
    letters alone decides."""
    wording = "".join(re.findall(r"[^\W\d_]", question))
    drawn = int.from_bytes(hashlib.sha256(wording.encode()).digest()[:8], "big") % 1000
    if not CHINESE.search(wording) or drawn >= HELD_OUT_IN_1000 + REWARDED_IN_1000:
        return "worked"
    return "problems" if drawn < HELD_OUT_IN_1000 else "reward"


def worked_reply(reply: str, counts: Counter, question: str = "") -> str:
    """The reply with its calculations spelled. Adds their numbers to counts[reason] or counts["spelled"]."""
    form = REPLY.fullmatch(reply)
    if not form:
        return reply
    if equation := EQUATION.search(form[2]):
        return worked_equation(reply, *equation.groups(), counts, question)
    thought = CALCULATION.sub(lambda found: worked_calculation(found, counts), form[1])
    return reply[: form.start(1)] + thought + reply[form.end(1) :]


def worked_equation(reply, equation, stated, counts, question=""):
    """'9×5×12', '540' -> <think> 9×5×12, 9×5=45, 45×12:... </think> <answer> 540 </answer>, one a line"""
    operators = len(OPERATOR.findall(equation))
    try:
        lines = lines_of_thought(in_questions_order(question, equation, stated), stated)
    except CannotSpell as reason:
        counts[str(reason)] += operators
        return reply
    counts["spelled"] += operators
    thought = "\n".join(lines)
    return f"<think>\n{thought}\n</think>\n<answer>\n{stated}\n</answer>"


def in_questions_order(question: str, equation: str, stated: str) -> str:
    """The equation, its operands in the question's order unless that makes more of its results fractions or
    decimals. Raises CannotSpell."""
    steps, other = checked_steps(equation, stated), in_order_of(question, equation)
    return equation if broken(checked_steps(other, stated)) > broken(steps) else other


def broken(steps: list[str]) -> int:
    """How many steps come to a fraction or a decimal."""
    return sum(not kind.startswith("integer") for kind in result_kinds(steps))


def worked_calculation(found, counts):
    """'5*12+6=66' within a sentence -> '5×12+6:5×12:12×5~21010,10506=60得60,60+6~066,606=66得66'"""
    expression = found[1].replace("*", "×")
    operators = len(OPERATOR.findall(expression))
    try:
        steps = checked_steps(expression, found[2])
    except CannotSpell as reason:
        counts[str(reason)] += operators
        return found[0]
    counts["spelled"] += operators
    return steps[0] if len(steps) == 1 else f"{expression}:{','.join(steps)}得{found[2]}"


def checked_steps(expression: str, stated: str) -> list[str]:
    """The steps of an expression, the last one coming to what is stated. Raises CannotSpell."""
    return checked(*spell_chain(expression), stated)


def lines_of_thought(equation: str, stated: str) -> list[str]:
    """The equation, and its steps with what is left of it after each. Raises CannotSpell."""
    return [equation, *checked(*lines_of_chain(equation), stated)]


def checked(steps: list[str], result: str, stated: str) -> list[str]:
    """The steps to a result, and from it to what is stated. Raises CannotSpell where it is another number."""
    if not steps:
        raise CannotSpell("nothing to calculate")
    if value(result) != value(stated):
        raise CannotSpell("another result in the source")
    return steps + restate(result, stated)


def worked_conversation(messages: list[dict], counts: Counter) -> list[dict]:
    """The messages, those of the assistant with their calculations spelled."""
    question, worked = "", []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            content = worked_reply(content, counts, question)
        else:
            question = content
        worked.append({**message, "content": content})
    return worked


def work_out(path: Path) -> tuple[dict[str, list], Counter]:
    """{name of a file: its conversations}, and the calculations by what became of them."""
    found, counts = {"worked": [], "plain": [], "reward": [], "problems": []}, Counter()
    for messages in read_conversations(path):
        question, reply = first_turn(messages)
        use, has_number = use_of(question), number_value(final_answer(reply)) is not None
        if use == "worked" or (use == "reward" and not has_number):
            found["plain"].append(messages)
            found["worked"].append(worked_conversation(messages, counts))
        elif has_number:
            found[use].append(messages if use == "problems" else worked_conversation(messages, Counter()))
    return found, counts


def write_conversations(path: Path, conversations: Iterable[list[dict]]) -> None:
    lines = (json.dumps({"conversations": turns}, ensure_ascii=False) + "\n" for turns in conversations)
    write_text(path, "".join(lines))


def first_turn(messages: list[dict]) -> tuple[str, str]:
    """The first question, "" if there is none, and the first reply."""
    question = next((message["content"] for message in messages if message["role"] == "user"), "")
    return question, next(message["content"] for message in messages if message["role"] == "assistant")


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--data_path", default="r1_1024.jsonl", help="R1 conversations, JSONL")
    parser.add_argument("--out_dir", default="data/worked", help="folder to write into")
    args = parser.parse_args(argv)
    found, counts = work_out(Path(args.data_path))
    folder = Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, conversations in found.items():
        write_conversations(folder / f"{name}.jsonl", conversations)
        print(f"{folder / name}.jsonl | {len(conversations)} conversations")
    total = counts.total()
    for reason, count in counts.most_common():
        print(f"{reason}: {count} of {total} calculations ({count / total:.2%})")


if __name__ == "__main__":
    run_script(main)
