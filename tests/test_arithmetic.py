"""Written-out calculations against fractions.Fraction, and their language against lines written by hand."""

import random
import re
from fractions import Fraction

import pytest

from tools import arithmetic, digits
from tools.arithmetic import spell
from tools.claims import claims
from tools.exact_numbers import NUMBER, CannotSpell, value, written
from tools.expressions import lines_of_chain, restate, spell_chain

BY_HAND = [
    "6×7=42",
    "13-5=8",
    "345+278~583进472进326=623",
    "503-278~385借072借522=225",
    "95+7~572进900进1=102",
    "1000-998~082借090借090借100=2",
    "346×7~64242,42832,32124=2422",
    "66×52:66×5~63030,63033=330,66×2~61212,61213=132,3300+132~022,033,314,303=3432得3432",
    "204×105:204×1=204,204×5~42020,00002,21010=1020,20400+1020~000,022,404,011,202=21420得21420",
    "2400×60:24×6~42424,21214=144得144000",
    "132÷33:132÷33试4,33×4~31212,31213=132,132-132~220,330,110=0得4",
    "3432÷33:34÷33试2,33×2~30606,30606=66,34-66~468借366借大,试1,34-33~431,330=1,13÷33商0余13,"
    "132÷33试6,33×6~31818,31819=198,132-198~284借393借119借大,"
    "试5,33×5~31515,31516=165,132-165~257借366借119借大,试4,33×4~31212,31213=132,132-132~220,330,110=0得104",
    "78÷26:78÷26试4,26×4~62424,20810=104,78-104~844,707,019借大,试3,26×3~61818,20607=78,78-78~880,770=0得3",
    "52÷13:52÷13试3,13×3~30909,10303=39,52-39~293借531=13小,试4,13×4~31212,10405=52,52-52~220,550=0得4",
    "34÷17:34÷17试1,34-17~477借311=17小,试2,17×2~71414,10203=34,34-34~440,330=0得2",
    "100÷125:100÷125商0余100,点,1000÷125试8,125×8~54040,21620,10810=1000,1000-1000~000,000,000,110=0得0.8",
    "7÷8:7÷8商0余7,点,70÷8商8余6,60÷8商7余4,40÷8商5余0得0.875",
    "600÷3:6÷3商2余0得200",
    "80÷60:8/6约2,8÷2=4,6÷2=3,4/3得4/3",
    "7÷12:7/12得7/12",
    "54÷6=9",
    "5.4÷0.6:54÷6=9得9",
    "0.6÷0.1=6",
    "1.84÷2:184÷2:18÷2商9余0,4÷2商2余0得92得0.92",
    "43÷100=0.43",
    "0.75-3/5:3÷5:3÷5商0余3,点,30÷5商6余0得0.6,0.75-0.6:75-60~505,761=15得0.15得0.15",
    "0.5+1/3:0.5=1/2,2×3=6,3+2=5,5/6得5/6",
    "107×(1/5):107/5得107/5",
    "(1/2)÷(1/5):1/2×5:5/2得5/2",
    "(4/5)÷2:4/5×1/2:4×1=4,5×2=10,4/10约2,4÷2=2,10÷2=5,2/5得2/5",
    "13.5+2.75:1350+275~055,572进326,101=1625得16.25",
    "5-8:8-5=3得-3",
    "9.1×0.3:91×3~10303,92727=273得2.73",
    "12÷0.5:120÷5:12÷5商2余2,20÷5商4余0得24",
    "600×(7/15):600÷15:60÷15试4,15×4~52020,10406=60,60-60~000,660=0得40,40×7:4×7=28得280得280",
    "350÷(7/10):350×10/7:350÷7:35÷7商5余0得50,50×10=500得500",
    "7/12-1/5:12×5~21010,10506=60,7×5=35,35-12~523,312=23,23/60得23/60",
    "1/4-1/42:4×21:21×4~10404,20808=84得84,42×2~20404,40808=84,21-2~129借201=19,19/84得19/84",
    "3/4-1/6:4×3=12,6×2=12,3×3=9,9-2=7,7/12得7/12",
    "2-3/7:2×7=14,14-3=11,11/7得11/7",
    "2/7+5/7:2+5=7,7/7约7,7÷7=1,7÷7=1得1",
    "(6/7)×(1/3):6×1=6,7×3=21,6/21约3,6÷3=2,21÷3=7,2/7得2/7",
    "1(1/2)×4:1×2=2,2+1=3,1(1/2)=3/2,4÷2=2,2×3=6得6",
    "150×20%:20%=0.2,150×0.2:150×2:15×2~51010,10203=30得300得30得30",
]


def operands(text):
    return re.match(rf"({NUMBER})([+\-×÷])({NUMBER})", text).groups()


@pytest.mark.parametrize("line", BY_HAND)
def test_calculations_are_spelled_as_by_hand(line):
    assert spell(*operands(line)) == line


def test_the_language_described_is_the_language_written():
    described = re.split(r"\s{2,}|\n", arithmetic.__doc__ + digits.__doc__)
    lines = [part for part in described if re.match(rf"{NUMBER}[+\-×÷]", part)]
    assert len(lines) == 22
    assert [spell(*operands(line)) for line in lines] == lines


def random_number(rng):
    """An integer of 1 to 8 digits, a decimal, a fraction, a mixed number or a percentage."""
    length = rng.randint(1, 8)
    integer = rng.randint(10 ** (length - 1), 10**length - 1)
    top, bottom = rng.randint(1, 99), rng.randint(2, 99)
    kinds = [f"{integer}", f"{integer // 10**4}.{integer % 10**4 + 1}", f"({top}/{bottom})", f"{top}%"]
    return rng.choice([*kinds, f"{rng.randint(1, 9)}({top}/{bottom})", f"{rng.randint(1, 99)}00"])


def apply(a, operator, b):
    """The four operations once more, without the module under test."""
    if operator == "÷":
        return Fraction(a) / Fraction(b)
    return {"+": a + b, "-": a - b, "×": a * b}[operator]


@pytest.mark.parametrize("operator", "+-×")
def test_columns_agree_with_the_whole_numbers(operator):
    """What is carried into a column follows from all digits before it; no column is looked at alone."""
    rng = random.Random(4)
    for _ in range(300):
        b, a = sorted(rng.randrange(1, 10 ** rng.randint(1, 8)) for _ in range(2))
        b = b % 9 + 1 if operator == "×" else b
        expected, result = "", apply(a, operator, b)
        for place in range(len(str(a))):
            low = 10 ** (place + 1)
            x, y, z = (number // 10**place % 10 for number in (a, b, result))
            carries = {"+": a % low + b % low >= low, "-": a % low < b % low, "×": False}[operator]
            total = a % low * b // 10**place
            expected += f"{x}{x * b:02}{total:02}" if operator == "×" else f"{x}{y}{z}"
            expected += {"+": "进", "-": "借"}[operator] if carries else ","
        expected = expected.removesuffix(",") + ("1" if expected.endswith("进") else "")
        assert digits.columns(a, operator, b) == expected


@pytest.mark.parametrize("operator", "+-×÷")
def test_every_step_and_the_result_agree_with_fractions(operator):
    rng, spelled = random.Random(3), 0
    for _ in range(2000):
        a, b = random_number(rng), random_number(rng)
        try:
            text = spell(a, operator, b)
        except CannotSpell as reason:
            assert str(reason) == "too many digits"
            continue
        spelled += 1
        result = re.split("[=得]", text)[-1]
        expected = apply(value(a), operator, value(b))
        assert value(result.removeprefix("-")) == abs(expected), text
        assert result.startswith("-") == (expected < 0), text
        assert text.startswith(f"{a}{operator}{b}")
        assert [claim for claim, is_true in claims(text) if not is_true] == [], text
    assert spelled > 1300


@pytest.mark.parametrize(
    ("expression", "steps", "result"),
    [
        ("7", [], "7"),
        ("(1/2)", [], "1/2"),
        ("1(1/2)", [], "1(1/2)"),
        ("2+3×4", ["3×4=12", "2+12~224,011=14"], "14"),
        ("3×(8-2)", ["8-2=6", "3×6=18"], "18"),
        ("2×(1+2)^2", ["1+2=3", "3×3=9", "2×9=18"], "18"),
        ("3^3", ["3×3=9", "9×3=27"], "27"),
        ("36÷3^3", ["3×3=9", "9×3=27", "36÷27:36/27约9,36÷9=4,27÷9=3,4/3得4/3"], "4/3"),
        ("((5))×(2)", ["5×2=10"], "10"),
        ("9-2-3", ["9-2=7", "7-3=4"], "4"),
        ("80×(1+1/8)", ["1+1/8:8+1=9,9/8得9/8", "80×(9/8):80÷8:8÷8商1余0得10,10×9=90得90"], "90"),
        ("6÷(1-1/3)", ["1-1/3:3-1=2,2/3得2/3", "6÷(2/3):6×3/2:6÷2=3,3×3=9得9"], "9"),
    ],
)  # fmt: skip
def test_a_chain_is_spelled_in_the_order_of_its_evaluation(expression, steps, result):
    assert spell_chain(expression) == (steps, result)


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("24×12", ["24×12:24×1=24,24×2~40808,20404=48,240+48~088,448,202=288得288"]),
        ("3×(8-2)", ["8-2=6", "3×6=18"]),  # of one calculation, its own line says as much
        ("8×3+6×5", ["8×3=24", "24+6×5", "6×5=30", "24+30~404,235=54"]),
        (
            "(1+1/8)÷3-(3-2)",
            [
                "1+1/8:8+1=9,9/8得9/8", "(9/8)÷3-(3-2)",
                "(9/8)÷3:9/8×1/3:9×1=9,8×3=24,9/24约3,9÷3=3,24÷3=8,3/8得3/8", "(3/8)-(3-2)",
                "3-2=1", "(3/8)-1:8-3=5得-5/8",
            ],
        ),
        ("2+3^3", ["3×3=9", "2+(9×3)", "9×3=27", "2+27~279,022=29"]),
    ],
)  # fmt: skip
def test_what_is_left_is_told_while_it_is_more_than_one_calculation(expression, lines):
    assert lines_of_chain(expression) == (lines, spell_chain(expression)[1])


def test_what_is_left_comes_to_the_same():
    rng, told = random.Random(6), 0
    for _ in range(300):
        numbers = [str(rng.randint(1, 99)) for _ in range(5)]
        signs = [rng.choice("+-×÷") for _ in range(4)]
        text = "".join(part for pair in zip(numbers, [*signs, ""]) for part in pair)
        begin = text.index(signs[1], len(numbers[0]) + 1) + 1
        text = rng.choice([text, f"{text[:begin]}({text[begin:]})"])
        try:
            lines, result = lines_of_chain(text)
        except CannotSpell:
            continue
        left = [line for line in lines if not re.search("[=:]", line)]
        assert all(spell_chain(line)[1] == result for line in left), lines
        told += len(left)
    assert told > 200


@pytest.mark.parametrize("operators", ["+-", "×÷", "+-×÷"])
def test_chains_agree_with_python(operators):
    rng = random.Random(5)
    for _ in range(300):
        parts = [str(rng.randint(1, 999)) for _ in range(4)]
        signs = [rng.choice(operators) for _ in range(3)]
        text = f"{parts[0]}{signs[0]}({parts[1]}{signs[1]}{parts[2]}){signs[2]}{parts[3]}"
        exact = re.sub(r"(\d+)", r"Fraction(\1)", text.replace("×", "*").replace("÷", "/"))
        try:
            steps, result = spell_chain(text)
        except CannotSpell as reason:
            assert str(reason) in (
                "not a number",
                "division by zero",
                "too many digits",
            )  # -3 is no number here
            continue
        assert Fraction(result) == eval(exact), text
        assert all(is_true for step in steps for _, is_true in claims(step)), steps


@pytest.mark.parametrize(
    "text", ["", "3+", "(3+4", "3)", "2^4", "^2", "3 apples", "×2", "2(3+4)", "()", "3^2^"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(CannotSpell, match="not an expression"):
        spell_chain(text)


@pytest.mark.parametrize(
    ("result", "stated", "steps"),
    [
        ("45", "45", []),
        ("3/4", "(3/4)", []),
        ("0.375", "37.5%", ["0.375=37.5%"]),
        ("5/4", "1.25", ["5÷4:5÷4商1余1,点,10÷4商2余2,20÷4商5余0得1.25"]),
        ("5/4", "125%", ["5÷4:5÷4商1余1,点,10÷4商2余2,20÷4商5余0得1.25", "1.25=125%"]),
        ("3/2", "1(1/2)", ["3÷2:3÷2商1余1,点,10÷2商5余0得1.5", "1.5=1(1/2)"]),
    ],
)
def test_a_result_is_restated_as_the_answer_states_it(result, stated, steps):
    assert restate(result, stated) == steps


def test_a_wrong_step_is_found():
    assert claims("66×5~63030,63033=330,66×2~61212,61213=133,132÷33商4余1") == [
        ("66×5~63030,63033=330", True),
        ("66×2~61212,61213=133", False),
        ("132÷33商4余1", False),
    ]
    for wrong in ("583,472进326", "583进472进327", "326", ","):
        assert claims(f"345+278~{wrong}=623") == [(f"345+278~{wrong}=623", False)]
    for unlike in ("6÷2~624=3", "3-5~358借=-2", "12×34~26868,13440=408"):
        assert claims(unlike) == [(unlike, False)]
    assert claims("2~3,0.5=1/2") == [("0.5=1/2", True)]
    assert ("20%=0.3", False) in claims("345+278~583进472进326,20%=0.3")
    assert claims("20%=0.3") == [("20%=0.3", False)] and claims("140÷33商4,...") == [("140÷33商4", True)]
    assert claims("80/60约10,8/6约2,4/3得4/3") == [("80/60约10", True), ("8/6约2", True)]
    for wrong in ("80/60约10,8/5约2", "9/7约3,", "9/7约1,9/7得", "8/6约2,8÷2=4,6÷2=3,4/2得"):
        assert (wrong.split(",")[0], False) in claims(wrong)


def test_a_tried_digit_is_judged_by_the_last_one_and_each_verdict_alone():
    tried = "78÷26试4,26×4~62424,20810=104,78-104~844,707,019借大,试3,26×3~61818,20607=78,78-78~880,770=0"
    assert [is_true for _, is_true in claims(tried)] == [True] * 6
    for wrong in ("78-104~844,707,018借", "78-103~844,707,019借", "104-78~485借927借000"):
        assert (f"{wrong}大", False) in claims(tried.replace("78-104~844,707,019借", wrong))
    called_small = claims(tried.replace("大", "小"))
    assert ("78÷26试4小", False) in called_small and sum(not is_true for _, is_true in called_small) == 1
    assert claims("52÷13试4大,试5,65") == [("52÷13试4大,试5", False), ("52÷13试4大", False)]
    assert claims("52÷13试3,39,13小,试4") == [("52÷13试3,39,13小,试4", True), ("52÷13试3小", True)]
    for kept in ("78÷26试4,104,", "78÷26试2,52,"):
        assert claims(kept) == [(kept[:7], False)]


def test_calculations_in_other_spellings_are_read_too():
    assert claims("24*12=288，7＋8=16") == [("24×12=288", True), ("7+8=16", False)]
    assert claims("5*12+6=66") == [("5×12+6=66", True)] and claims("x+2=3") == []
    for aside in "(3+4=7)", "（3+4=7）", "((3+4)×2=14)":
        assert [is_true for _, is_true in claims(aside)] == [True], aside


def test_what_is_closed_is_compared_with_what_was_opened():
    moved, reached = (f"13.6+5.5:136+55~651进359,101=191得{result}" for result in ("99.1", "19.1"))
    assert claims(moved)[-1] == ("13.6+5.5得99.1", False) and claims(reached)[-1] == ("13.6+5.5得19.1", True)
    inner = "120×2/3:120÷3:12÷3商4余0得40,40×2:4×2=8得80得80"
    assert [claim for claim, _ in claims(inner)[-3:]] == ["120÷3得40", "40×2得80", "120×2/3得80"]
    shared = claims("12÷0.5:120÷5:12÷5商2余2,20÷5商4余0得24")
    assert shared[-2:] == [("120÷5得24", True), ("12÷0.5得24", True)]
    assert claims("5×12+6:5×12:12×5~21010,10506=60得60,60+6~066,606=66得67")[-1] == ("5×12+6得67", False)
    forgotten = claims("350÷(7/10):350×7/10:350÷10=35,35×7~53535,32124=245得245\n")
    assert forgotten[-2:] == [("350×7/10得245", True), ("350÷(7/10):", False)]
    assert claims("7×8:7×8=") == [] and claims("得7") == []  # cut off; never opened
    assert claims("13÷33商0余13,7÷2商2余3") == [("13÷33商0余13", True), ("7÷2商2余3", False)]


@pytest.mark.parametrize(
    ("calculation", "reason"),
    [
        (("5", "÷", "0"), "division by zero"),
        (("5", "+", "1/0"), "division by zero"),
        (("5", "+", "x"), "not a number"),
        (("-5", "+", "2"), "not a number"),
        (("1234567890123", "+", "2"), "too many digits"),
    ],
)
def test_what_cannot_be_spelled_is_refused_with_its_reason(calculation, reason):
    with pytest.raises(CannotSpell, match=reason):
        spell(*calculation)


@pytest.mark.parametrize(
    ("number", "text"),
    [(Fraction(1, 8), "0.125"), (Fraction(1, 3), "1/3"), (Fraction(-7, 2), "-3.5"), (Fraction(12), "12")],
)
def test_results_are_integers_decimals_or_fractions(number, text):
    assert written(number) == text
