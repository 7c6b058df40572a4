"""R1 conversations with their calculations written out: what changes, what stays, what is held out."""

import json
from collections import Counter
from fractions import Fraction

import pytest
from conftest import conversation, write_jsonl

from infra.cli import UserError
from infra.questions import read_conversations
from infra.scoring import is_right, is_well_formed
from tools.claims import claims
from tools.exact_numbers import value
from tools.expressions import spell_chain
from tools.operand_order import in_order_of
from tools.worked_r1 import main, use_of, work_out, worked_conversation, worked_reply

PROGRAM = (
    "<think>\n先读题，题目中出现的数有：9、5、12。\n根据数量关系可以列式：9×5×12。\n第一步，9×5=45；\n第二步，45×12=540。\n"
    "所以结果是540。\n</think>\n<answer>\n列式计算：9×5×12=540。\n答案：540\n</answer>"
)
WORKED = (
    "<think>\n9×5×12\n9×5=45\n45×12:45×1=45,45×2~51010,40809=90,450+90~000,594进405=540得540\n</think>\n"
    "<answer>\n540\n</answer>"
)


def as_reply(thought, answer="12"):
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def test_a_program_written_rationale_becomes_its_equation_and_calculations():
    counts = Counter()
    assert worked_reply(PROGRAM, counts) == WORKED
    assert counts == {"spelled": 2}
    assert is_right(WORKED, PROGRAM) and is_well_formed(WORKED)


def test_a_percentage_is_the_last_step():
    answer = "列式计算：9÷24=37.5%。\n答案：37.5%"
    lines = worked_reply(as_reply("计算", answer), Counter()).splitlines()
    assert lines[1:4] == ["9÷24", lines[2], "0.375=37.5%"] and lines[-2] == "37.5%"


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("She has 30*3=90 apples.", "She has 30×3:3×3=9得90 apples."),
        ("共24×12=288个", "共24×12:24×1=24,24×2~40808,20404=48,240+48~088,448,202=288得288个"),
        ("5*12+6=66 inches", "5×12+6:5×12:12×5~21010,10506=60得60,60+6~066,606=66得66 inches"),
        ("没有算式", "没有算式"),
        ("x+3=5", "x+3=5"),
        ("1,200+300=1500", "1,200+300=1500"),
    ],
)
def test_elsewhere_a_calculation_is_spelled_where_it_stands(thought, expected):
    assert worked_reply(as_reply(thought), Counter()) == as_reply(expected)


@pytest.mark.parametrize(
    ("thought", "reason"),
    [
        ("3+4=8", "another result in the source"),
        ("10÷3=3.33", "another result in the source"),
        ("7÷0=7", "division by zero"),
        ("(2+3=5", "not an expression"),
    ],
)
def test_what_cannot_be_spelled_stays_and_is_counted_by_reason(thought, reason):
    counts = Counter()
    assert worked_reply(as_reply(thought), counts) == as_reply(thought)
    assert counts == {reason: 1}


def test_what_is_not_a_reasoned_reply_stays():
    assert worked_reply("3*4=12", Counter()) == "3*4=12"


def test_a_wording_is_held_out_whatever_its_numbers():
    wordings = [
        f"{who}有{{}}个{what}，用了{{}}%，还剩多少？" for who in "甲乙丙丁" * 25 for what in "书笔花树"
    ]
    for wording in wordings:
        assert use_of(wording.format("1,234.5", "(1/2)")) == use_of(wording.format(3, 20))
    distinct = ["".join("甲乙丙丁戊己庚辛壬癸"[int(digit)] for digit in f"{i:03}") for i in range(1000)]
    uses = Counter(map(use_of, distinct))
    assert 50 <= uses["problems"] <= 110 and 15 <= uses["reward"] <= 50  # 80 and 30 are expected


def write_problems(path, count=300):
    letters = "甲乙丙丁戊己庚辛壬癸"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            a, b = i + 11, i % 7 + 2
            question = (
                f"{letters[i % 10]}{letters[i // 10 % 10]}{letters[i // 100]}有{a}箱，每箱{b}个，共几个？"
            )
            reply = as_reply("略", f"列式计算：{a}×{b}={a * b}。\n答案：{a * b}")
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            file.write(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")


def test_files_hold_the_same_conversations_in_the_same_order(tmp_path, capsys):
    write_problems(tmp_path / "r1.jsonl")
    main(["--data_path", str(tmp_path / "r1.jsonl"), "--out_dir", str(tmp_path / "worked")])
    found = {
        name: list(read_conversations(tmp_path / "worked" / f"{name}.jsonl"))
        for name in ("worked", "plain", "reward", "problems")
    }
    everything = list(read_conversations(tmp_path / "r1.jsonl"))
    asked = {name: [turns[0]["content"] for turns in some] for name, some in found.items()}
    for use, name in (("problems", "problems"), ("reward", "reward"), ("worked", "plain")):
        those = [turns for turns in everything if use_of(turns[0]["content"]) == use]
        assert asked[name] == [turns[0]["content"] for turns in those]
        assert found[name] == those or name == "reward"
        assert len(found[name]) > 5
    for (asked, worked), (question, as_it_was) in zip(found["worked"], found["plain"], strict=True):
        assert asked == question and is_right(worked["content"], as_it_was["content"])
        stated = claims(worked["content"])
        assert stated and all(is_true for _, is_true in stated)
    assert "spelled: " in capsys.readouterr().out


def test_only_questions_whose_answer_is_a_number_become_problems(tmp_path):
    wordings = [first + second for first in "天地人你我他" for second in "东南西北上中下"]
    held_out = [wording for wording in wordings if use_of(wording) == "problems"]
    rewarded = [wording for wording in wordings if use_of(wording) == "reward"]
    turns = [conversation(wording, as_reply("想", answer)) for wording in wordings for answer in ("7", "是")]
    turns.append(conversation("What is 3+4?", as_reply("3+4=7", "7")))
    write_jsonl(tmp_path / "r1.jsonl", [{"conversations": messages} for messages in turns])
    found, _ = work_out(tmp_path / "r1.jsonl")
    assert held_out and [messages[0]["content"] for messages in found["problems"]] == held_out
    assert rewarded and [messages[0]["content"] for messages in found["reward"]] == rewarded
    trained = len(turns) - 2 * len(held_out) - len(rewarded)  # what has no number earns no reward
    assert len(found["plain"]) == trained and found["plain"][-1] == turns[-1]


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "r1.jsonl").write_text('{"conversations": 3}\n', encoding="utf-8")
    with pytest.raises(UserError, match="r1.jsonl:1: expected a list"):
        work_out(tmp_path / "r1.jsonl")


def test_steps_are_true_of_the_numbers_that_they_name():
    assert ("450+90~000,594进405=540", True) in claims(WORKED) and claims(WORKED)[-1] == ("45×12得540", True)
    assert value("37.5%") == Fraction(3, 8)


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("55×4-135", "4×55-135"),
        ("135+(55×2+4)^2×4÷55", "4×(4+55×2)^2÷55+135"),
        ("1000-55-4+135", "1000-55-4+135"),  # only neighbours of + and ×
        ("(135+55)×4", "4×(55+135)"),
        ("4×55+4", "4+4×55"),
        ("(25%+1)×55", "55×(1+25%)"),  # 1 first
        ("3×7+2×(5+4)", "(4+5)×2+3×7"),  # without a number of the question last, and as they were
        ("3×7+2", "3×7+2"),
    ],
)
def test_operands_stand_in_the_questions_order(equation, expected):
    assert in_order_of("有4筐，每筐55千克，卖出135千克", equation) == expected
    assert spell_chain(equation)[1] == spell_chain(expected)[1]


def test_a_program_written_rationale_takes_its_questions_order():
    turns = [{"role": "user", "content": "12人各有5个9"}, {"role": "assistant", "content": PROGRAM}]
    assert worked_conversation(turns, Counter())[1]["content"].startswith("<think>\n12×5×9\n12×5")


def test_an_order_that_makes_results_fractions_is_not_taken():
    reply = as_reply("计算", "列式计算：78×(1/13)×48=288。\n答案：288")
    for question, first in [("(1/13)的48倍，乘78", "78×(1/13)×48"), ("48个78的(1/13)", "48×78×(1/13)")]:
        assert worked_reply(reply, Counter(), question).splitlines()[1] == first
