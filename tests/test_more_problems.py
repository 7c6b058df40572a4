"""Variants and drills: other numbers of the same kinds, worked out, the same for the same seed."""

import json
import random
import re
from fractions import Fraction

import pytest

from infra.cli import UserError
from infra.questions import read_conversations
from infra.scoring import is_right, is_well_formed
from tools.claims import claims
from tools.exact_numbers import CannotSpell, value
from tools.expressions import spell_chain
from tools.long_calculations import ASKED, as_asked, joined, long_calculation
from tools.more_problems import Amounts, drilled_kinds, main, more_problems, new_reversed
from tools.other_numbers import result_kinds
from tools.problems import EQUATION_ALONE, Problem, equation_alone, read_problem, worked
from tools.variants import drill, exchangeable, variant
from tools.worked_r1 import use_of, worked_equation

PROBLEMS = [
    Problem("校园里有36棵树，其中25%是柳树，柳树有几棵？", "36×25%", "9"),
    Problem("一根绳子长8.4米，用去(1/4)，还剩几米？", "8.4×(1-1/4)", "6.3"),
    Problem("甲数是12，乙数是24，甲数是乙数的百分之几？", "12÷24", "50%"),
    Problem("王师傅3小时做45个零件，照这样5小时做几个？", "45÷3×5", "75"),
    Problem("长方形的长是18米，宽是7米，周长是几米？", "(18+7)×2", "50"),
]


def reply_of(equation, answer):
    return worked_equation("", equation, answer, {"spelled": 0})


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.equation)
def test_a_variant_is_worked_out_with_its_own_numbers(problem):
    kinds = result_kinds([*spell_chain(problem.equation)[0], problem.answer])
    for seed in range(20):
        question, reply = (turn["content"] for turn in worked(variant(problem, random.Random(seed))))
        equation, answer = re.fullmatch(
            r"<think>\n(.+)\n[^<]+</think>\n<answer>\n(.+)\n</answer>", reply
        ).groups()
        exact = equation.replace("×", "*").replace("÷", "/")
        exact = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", exact)
        exact = re.sub(r"(\d+(?:\.\d+)?)", r"Fraction('\1')", exact)
        assert value(answer) == eval(exact, {"Fraction": Fraction})
        assert all(is_true for _, is_true in claims(reply)) and is_well_formed(reply)
        assert result_kinds([*spell_chain(equation)[0], answer]) == kinds
        # the wording is the same, and its numbers are those of the equation
        assert re.sub(r"[\d./%()]", "", question) == re.sub(r"[\d./%()]", "", problem.question)
        asked = set(re.findall(r"\d+/\d+|\d+(?:\.\d+)?%?", question))
        in_equation = set(re.findall(r"\d+/\d+|\d+(?:\.\d+)?%?", equation))
        assert asked <= in_equation, (question, equation)


def test_a_number_that_the_question_does_not_name_stays():
    for seed in range(20):
        assert variant(PROBLEMS[4], random.Random(seed)).equation.endswith(")×2")


def test_a_number_of_the_question_that_may_be_a_formula_s_stays():
    narrow = Problem("长方形的长是18米，宽是2米，周长是几米？", "(18+2)×2", "40")
    assert exchangeable(narrow) == ["18"]
    cubed = Problem("一个正方体的棱长是3米，体积是几立方米？", "3^3", "27")
    assert exchangeable(cubed) == ["3"] and variant(cubed, random.Random(0)).equation.endswith("^3")
    square = Problem("正方形的边长是4米，周长是几米？", "4×4", "16")
    assert exchangeable(square) == [] and variant(square, random.Random(0)) is None
    more = Problem("小红有36张，小明比她多25%，小明有几张？", "36×25%+36", "45")
    assert exchangeable(more) == ["25%", "36"]  # no formula has a 36


def test_a_number_within_a_fraction_of_the_equation_stays():
    each = Problem(
        "180千米行了4小时，每小时比另一辆车多9千米，另一辆行180千米要几小时？", "180÷(180/4-9)", "5"
    )
    assert exchangeable(each) == ["9"]


def test_variants_differ_and_a_problem_without_numbers_has_none():
    found = {variant(PROBLEMS[0], random.Random(seed)).question for seed in range(20)}
    assert len(found) > 10
    assert variant(Problem("一打鸡蛋几个？", "6×2", "12"), random.Random(0)) is None


@pytest.mark.parametrize(
    "calculation", [("345", "+", "278"), ("24", "÷", "8"), ("3.5", "×", "2"), ("1", "-", "1/4")]
)
def test_a_drill_is_one_calculation_of_the_kind(calculation):
    kind = "integer" if "/" not in calculation[2] else "fraction"
    for seed in range(30):
        question, reply = (turn["content"] for turn in drill(*calculation, random.Random(seed)))
        steps, result = spell_chain(question.removesuffix("="))
        assert len(steps) == 1 and reply.splitlines()[1] == steps[0]
        assert is_right(reply, result)
        assert ("/" in result) == (kind == "fraction")


def write_worked(path):
    with open(path, "w", encoding="utf-8") as file:
        for problem in PROBLEMS:
            question = {"role": "user", "content": problem.question}
            reply = {"role": "assistant", "content": reply_of(problem.equation, problem.answer)}
            file.write(json.dumps({"conversations": [question, reply]}, ensure_ascii=False) + "\n")
        chat = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
        file.write(json.dumps({"conversations": chat}, ensure_ascii=False) + "\n")


def test_the_file_holds_all_and_is_the_same_for_the_same_seed(tmp_path, capsys):
    write_worked(tmp_path / "worked.jsonl")
    texts = []
    for seed in (0, 0, 1):
        out = tmp_path / f"more{seed}.jsonl"
        flags = f"--data_path {tmp_path / 'worked.jsonl'} --out {out} --variants 3 --drills 20 --seed {seed}"
        main([*flags.split(), "--equations", "0.8", "--reversed", "0.4", "--long_calculations", "6"])
        texts.append(out.read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]
    assert (
        "47 conversations: 5 as they are, 1 in words, 3 variants, 7 equations, 5 reversed, "
        "1 long calculations, 5 long equations, 20 drills" in capsys.readouterr().out
    )
    lines = texts[0].splitlines()
    assert set((tmp_path / "worked.jsonl").read_text(encoding="utf-8").splitlines()) <= set(lines)
    assert len(lines) == 47
    alone = [turns for turns in read_conversations(out) if turns[0]["content"].endswith(EQUATION_ALONE)]
    questions = [turns[0]["content"].removesuffix(EQUATION_ALONE) for turns in alone]
    wordings = {re.sub(r"[\d./%()]", "", question) for question in questions if "，" in question}
    assert len(alone) == 17 and len(wordings) == 2 * len(PROBLEMS)  # of each, and of each reversed
    assert all(value(spell_chain(turns[1]["content"])[1]) > 0 for turns in alone)
    main([*flags.split(), "--words", "0"])
    assert "40 conversations: 5 as they are, 0 in words" in capsys.readouterr().out
    assert "你好" in texts[0] and "你好" not in out.read_text(encoding="utf-8")


def test_an_equation_alone_is_the_problem_s_without_a_thought():
    assert equation_alone(Problem("一盒有6支笔，4盒有几支？", "6×4", "24")) == [
        {"role": "user", "content": "一盒有6支笔，4盒有几支？只列式，不计算。"},
        {"role": "assistant", "content": "6×4"},
    ]


def test_what_cannot_be_reversed_stays_a_variant():
    asks_twice = Problem("一盒有6支笔，求4盒有几支？", "6×4", "24")
    question, reply = new_reversed((0.5, asks_twice))
    assert re.fullmatch(r"一盒有\d支笔，求\d盒有几支？只列式，不计算。", question["content"])
    assert re.fullmatch(r"\d×\d", reply["content"])


@pytest.mark.parametrize(
    "flags, bound",
    [
        ("--variants -1", "least 0"), ("--drills -1", "least 0"), ("--equations -0.1", "least 0"),
        ("--reversed 3", "most 1"), ("--words 2", "most 1"),
    ],
)  # fmt: skip
def test_amounts_out_of_bounds_are_refused(flags, bound):
    with pytest.raises(UserError, match=f"{flags.split()[0]} .* must be at {bound}"):
        main(flags.split())


def test_a_file_without_worked_problems_is_refused(tmp_path):
    (tmp_path / "r1.jsonl").write_text(
        '{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="worked word problems, found none: tools/worked_r1.py makes"):
        main(["--data_path", str(tmp_path / "r1.jsonl"), "--out", str(tmp_path / "more.jsonl")])


def test_a_problem_is_read_back_from_its_worked_conversation():
    for problem in PROBLEMS:
        turns = [("user", problem.question), ("assistant", reply_of(problem.equation, problem.answer))]
        assert read_problem([{"role": role, "content": content} for role, content in turns]) == problem


def test_numbers_below_zero_are_no_variant():
    with pytest.raises(CannotSpell):
        spell_chain("3-5-1")


def test_a_share_of_the_conversations_in_words_is_kept():
    talk = [
        [{"role": "user", "content": f"你好{i}"}, {"role": "assistant", "content": "好"}] for i in range(8)
    ]
    kept, counts = more_problems(talk, Amounts(variants=0, drills=0, words=0.25))
    assert counts["in words"] == len(kept) == 2 and all(turns in talk for turns in kept)


@pytest.mark.parametrize(
    "a, operator, b, expression",
    [
        ("3+4", "÷", "5×6", "(3+4)÷(5×6)"),
        ("(3+4)×2", "-", "1+1/2", "(3+4)×2-(1+1/2)"),
        ("1/2", "×", "(1/2)×3", "(1/2)×(1/2)×3"),
        ("8-2", "-", "3×4", "8-2-3×4"),
        ("8-2", "×", "9-4", "(8-2)×(9-4)"),
        ("2", "÷", "1/3", "2÷(1/3)"),
        ("1/2", "+", "8-5", "1/2+8-5"),
        ("3×(8-2)", "×", "2×(9-(2+1))", "3×(8-2)×2×(9-(2+1))"),
        ("9", "-", "2×(3-1)", "9-2×(3-1)"),
    ],
)
def test_equations_are_joined_with_the_brackets_they_need(a, operator, b, expression):
    assert joined(a, operator, b) == expression


def test_a_long_calculation_asks_for_what_it_answers():
    assert as_asked("1/2+3÷4-(2/3)×1(1/2)") == "(1/2)+3/4-(2/3)*1(1/2)"
    rng, equations, found = random.Random(0), [problem.equation for problem in PROBLEMS], []
    for _ in range(200):
        problem = long_calculation(equations, rng)
        found.append(problem.equation)
        assert any(problem.question == form.format(as_asked(problem.equation)) for form in ASKED)
        exact = problem.question.strip("算一脱式计的值多少？：。=")
        exact = re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", exact).replace("%", "/100")
        assert value(problem.answer) == eval(exact, {"Fraction": Fraction}) > 0
        assert len(spell_chain(problem.equation)[0]) > 1
        assert not re.search(r"\(\d+÷\d+\)", problem.equation)  # asked as (3/4), it would be the fraction
    assert len(set(found)) > 190 and len({re.sub(r"[\d.]+", "", equation) for equation in found}) > 50
    assert long_calculation(["3÷0"], rng) is None
    short = [spell_chain(long_calculation(equations, rng, most=60).equation)[0] for _ in range(50)]
    assert max(sum(map(len, steps)) for steps in short) <= 60


def test_no_long_calculation_is_worded_like_a_held_out_problem():
    assert {use_of(form.format("(12+30)*4")) for form in ASKED} == {"worked"}


def test_kinds_that_are_harder_are_drilled_twice_as_often():
    assert drilled_kinds([Problem("", "8-2+3×(1/2)", "7.5"), Problem("", "36×25%", "9")]) == [
        *(calculations := [("8", "-", "2"), ("3", "×", "(1/2)"), ("6", "+", "(3/2)"), ("36", "×", "25%")]),
        *calculations[1:],
    ]
