"""Scoring: the verdict on a reply, the value of a number, the R1 form."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.scoring import final_answer, is_right, is_well_formed, number_value, shares

RIGHT, WRONG = True, False
R1 = "<think>\n想一想。\n</think>\n<answer>\n{}\n</answer>"

VERDICTS = [
    # a mixed number as tools/arithmetic.py writes it, a bracket around a fraction, counts of a unit
    ("<think>想</think><answer>3(1/2)</answer>", "答案：3.5", RIGHT),
    ("<think>想</think><answer>3(1/2)</answer>", "答案：3", WRONG),
    ("3.5", "3(1/2)", RIGHT),
    ("(3/4)", "0.75", RIGHT),
    ("答案：9（个）", "9", RIGHT),
    ("答案：7万米", "70000", RIGHT),
    ("答案：7万米", "7", WRONG),
    ("答案：5百米", "500", RIGHT),
    ("答案：5千米", "5", RIGHT),
    ("3天半", "3", WRONG),
    ("3个多", "3", WRONG),
    ("答案：3k", "3", WRONG),
    ("x=3或x=4", "4", WRONG),
    ("9（错）", "9", WRONG),
    ("7不合题意", "7", WRONG),
    ("B不能选", "答案：B", WRONG),
    ("B以外", "答案：B", WRONG),
    # the expected reply has tags and marks or has not
    (
        "<think>9</think>\n<answer>列式：3×6=18。\n答案：18</answer>",
        "<think>9</think>\n<answer>\n答案：18\n</answer>",
        RIGHT,
    ),
    ("一共是18个。", "<think>9</think>\n<answer>答案：18</answer>", RIGHT),
    ("答案：7", "7", RIGHT),
    ("7", R1.format("The answer is 7."), RIGHT),
    (R1.format("答案：8"), R1.format("答案：7"), WRONG),
    # only the answer counts, never the reasoning
    ("<think>所以答案是7。</think><answer>3+4=7。</answer>", "7", RIGHT),
    ("<think>所以答案是7。</think><answer>一共8个。</answer>", "7", WRONG),
    ("<think>所以答案是8。</think><answer>答案：7</answer>", "7", RIGHT),
    ("<think>2+5=7", "7", WRONG),
    ("<think>答案：7", "7", WRONG),
    ("<think>2+5=7</think>", "7", WRONG),
    ("<think>2+5=7</think>答案：7", "7", WRONG),
    ("<think>2+5=7</think><answer>7", "7", WRONG),
    ("<think>2+5=7<answer>7</answer>", "7", WRONG),
    ("<think>2+5</think><answer>7</answer><think>不对", "7", WRONG),
    ("<think>a</think><answer>7</answer><answer>8</answer>", "8", WRONG),
    ("2+5</think><answer>7</answer>", "7", RIGHT),
    ("<think>答案：9</think><answer>小红3个，小明4个，一共7个。</answer>", "7", RIGHT),
    ("<answer>7</answer>", "7", RIGHT),
    ("答案：8。<answer>7</answer>", "7", RIGHT),
    ("<answer>7", "7", WRONG),
    ("</answer>7<answer>", "7", WRONG),
    ("", "7", WRONG),
    ("", "", WRONG),
    # answer marks
    ("答案应该是7", "7", RIGHT),
    ("答案应为 7。", "7", RIGHT),
    ("答案为：7", "7", RIGHT),
    ("答案就是7", "7", RIGHT),
    ("最终答案: 7", "7", RIGHT),
    ("Answer: 7", "7", RIGHT),
    ("She has 9 in all. THE ANSWER IS 7.", "7", RIGHT),
    ("The answer should be 7.", "7", RIGHT),
    ("答案：8。不，答案：7", "7", RIGHT),
    ("答案：7。不，答案：8", "7", WRONG),
    ("答案：\n7", "7", RIGHT),
    ("答案：", "7", WRONG),
    ("The answer is seven.", "7", WRONG),  # words for numbers are not read in English
    # equations count by their last side
    ("答案：3+4=7", "7", RIGHT),
    ("答案：3+4=7", "3", WRONG),
    ("答案：3+4=7", "4", WRONG),
    ("答案：7（即 3+4）", "7", RIGHT),
    ("3 + 4 = 7", "7", RIGHT),
    ("3加4等于7", "7", RIGHT),
    ("答案：3个+4个=7个", "7", RIGHT),
    ("180÷3=60，60×5=300千米。", "300", RIGHT),
    ("3×6=18（支）", "18", RIGHT),
    ("3×(4+2)=18", "18", RIGHT),
    ("3×(4+2)", "3", WRONG),
    ("18-3", "The answer is 3.", WRONG),  # not worked out
    ("18-3", "The answer is -3.", WRONG),
    ("18-3", "18", WRONG),
    ("（18）-3", "-3", WRONG),
    ("7=3+4", "7", WRONG),
    ("x=7", "7", RIGHT),
    ("x+7", "7", WRONG),
    ("x2=8", "2", WRONG),
    ("7x", "7", WRONG),
    ("7π", "7", WRONG),
    # without a mark the last number counts, after a mark all must agree
    ("小红有3个，小明有4个，一共有7个苹果。", "7", RIGHT),
    ("一共7个，每个3元。", "7", WRONG),
    ("答案：7。一共有7个。", "7", RIGHT),
    ("The total is 7. They are happy.", "7", RIGHT),
    ("答案：7个苹果，3个梨", "7", WRONG),
    ("答案：7个苹果，3个梨", "3", WRONG),
    ("答案：17或18", "18", WRONG),
    ("17或18", "18", WRONG),
    ("17个或者18个", "17", WRONG),
    ("17 or 18", "18", WRONG),
    ("1，2", "2", WRONG),
    ("1, 2", "2", WRONG),
    ("3 and 7", "7", WRONG),
    ("7还是8", "8", WRONG),
    ("答案：3、7", "7", WRONG),
    ("5 6 7", "7", WRONG),
    ("（1）7（2）8", "78", WRONG),
    ("7 out of 10", "10", WRONG),
    ("7的2倍", "2", WRONG),
    ("没有数", "1/3", WRONG),
    # units
    ("7个", "7", RIGHT),
    ("共有7个苹果。", "7", RIGHT),
    ("18元", "18", RIGHT),
    ("答案：7千米", "7", RIGHT),
    ("答案：7 kg", "7", RIGHT),
    ("答案：7cm²", "7", RIGHT),
    ("It takes 7 hours.", "7", RIGHT),
    ("每秒7米/秒", "7", RIGHT),
    ("$7", "7", RIGHT),
    ("一共有（7）个", "7", RIGHT),
    ("**7**", "7", RIGHT),
    ("一共**7**个", "7", RIGHT),
    ("“7”", "7", RIGHT),
    (r"\boxed{7}", "7", RIGHT),
    ("$7.50$ dollars", "7.5", RIGHT),
    # units that scale
    ("7万", "7", WRONG),
    ("7万元", "70000", RIGHT),
    ("3万5千人", "35000", RIGHT),
    ("7 million", "7", WRONG),
    ("7%", "7", WRONG),
    ("7‰", "7", WRONG),
    ("50％", "1/2", RIGHT),
    ("50％", "50%", RIGHT),
    ("0.5", "50%", RIGHT),
    ("占百分之50。", "50", WRONG),
    ("占百分之50。", "1/2", RIGHT),
    # signs
    ("答案：负7", "7", WRONG),
    ("答案：负7", "-7", RIGHT),
    ("结果是负7。", "7", WRONG),
    ("结果是负7。", "-7", RIGHT),
    ("−7", "7", WRONG),
    ("−7", "-7", RIGHT),
    ("答案是－7。", "-7", RIGHT),
    ("+7", "7", RIGHT),
    ("零下7度", "7", WRONG),
    # equal values
    ("The answer is 24960.", "The answer is 24,960.", RIGHT),
    ("1，200", "1200", RIGHT),
    ("1 200", "1200", RIGHT),
    ("1, 200", "1200", WRONG),
    ("1,20", "120", WRONG),
    ("1,20", "20", WRONG),
    ("７．０", "7", RIGHT),
    ("7.00元", "7", RIGHT),
    (".5", "5", WRONG),
    (".5", "0.5", RIGHT),
    ("0.333", "1/3", WRONG),
    ("0.333...", "0.333", WRONG),
    ("0.(3)", "0", WRONG),
    ("12.50%", "1/8", RIGHT),
    ("2/3", "1/3", WRONG),
    ("½", "0.5", RIGHT),
    ("1/2", "0.5", RIGHT),
    ("1 1/2", "1.5", RIGHT),
    ("1½小时", "1.5", RIGHT),
    ("1½", "11/2", WRONG),
    ("1又1/2", "1.5", RIGHT),
    ("1又三分之一", "1", WRONG),
    ("要1又三分之一小时", "1", WRONG),
    ("要1又1/2小时", "1.5", RIGHT),
    ("三分之二", "2/3", RIGHT),
    ("3分之2", "2", WRONG),
    ("7e2", "700", RIGHT),
    ("约7×10²", "700", RIGHT),
    ("10²", "10", WRONG),
    ("10²", "100", RIGHT),
    ("√9", "9", WRONG),
    ("√9", "3", RIGHT),
    (r"\sqrt{9}", "9", WRONG),
    (r"3\times 4", "4", WRONG),
    (r"\frac{1}{2}", "2", WRONG),
    (r"\frac{1}{2}", "0.5", RIGHT),
    ("七", "7", RIGHT),
    ("答案：七个。", "7", RIGHT),
    ("（七）", "7", RIGHT),
    ("一样多", "1", WRONG),
    ("一共7个", "1", WRONG),
    ("7", "七", RIGHT),
    # approximate, bounded and denied
    ("约7", "7", RIGHT),
    ("约7", "7.1", WRONG),
    ("至少7个", "7", RIGHT),  # it answers: at least how many?
    ("可能是7，也可能是8", "8", WRONG),
    ("大于7", "7", WRONG),
    (">7", "7", WRONG),
    ("超过7个", "7", WRONG),
    ("不到7个", "7", WRONG),
    ("more than 7", "7", WRONG),
    ("7个以上", "7", WRONG),
    ("70多", "70", WRONG),
    ("比7大", "7", WRONG),
    ("小红比小明多7个", "7", RIGHT),
    ("不是7", "7", WRONG),
    ("答案不是7", "7", WRONG),
    ("3+3不等于7", "7", WRONG),
    ("≠7", "7", WRONG),
    ("不用找零，7元", "7", RIGHT),  # the denial is of something else
    ("没看的有7页", "7", RIGHT),
    ("It is not 7.", "7", WRONG),
    ("7不对", "7", WRONG),
    ("答案是7，不是8", "7", RIGHT),
    ("答案是7，不是8", "8", WRONG),
    # not one number
    ("3~7", "7", WRONG),
    ("3—7", "7", WRONG),
    ("3到7个", "7", WRONG),
    ("from 3 to 7", "7", WRONG),
    ("5%到7%", "7%", WRONG),
    ("3:4", "4", WRONG),
    ("3比4", "4", WRONG),
    ("3:45", "45", WRONG),
    ("3点45分", "45", WRONG),
    ("3小时20分", "20", WRONG),
    ("3月5日", "5", WRONG),
    ("3……1", "3", WRONG),
    ("3……1", "1", WRONG),
    ("3余1", "1", WRONG),
    ("3余1", "3", WRONG),
    ("±7", "7", WRONG),
    ("①7 ②8", "17", WRONG),
    # choices
    ("选B", "答案：B（20；100）", RIGHT),
    ("答案：A（20；100）", "答案：B（20；100）", WRONG),
    ("b", "B", RIGHT),
    ("Ｂ", "B", RIGHT),
    ("（B）", "B", RIGHT),
    ("选b。", "B", RIGHT),
    ("选项B正确", "B", RIGHT),
    ("应该选（B）", "B", RIGHT),
    ("A. 3个 B. 4个，选 B。", "B", RIGHT),
    ("A. 3个 B. 4个，选 B。", "A", WRONG),
    ("A, B, C, D", "A", WRONG),
    ("ABCD", "A", WRONG),
    ("选A和B", "A", WRONG),
    ("选A或B", "B", WRONG),
    ("选项A和选项B", "B", WRONG),
    ("非B", "B", WRONG),
    ("A or B", "B", WRONG),
    ("不选A，选B", "B", RIGHT),
    ("选B，不选A", "B", RIGHT),
    ("A不对，B对", "B", RIGHT),
    ("A不对，B对", "A", WRONG),
    ("A is wrong, B is right.", "B", RIGHT),
    ("不是A", "A", WRONG),
    ("B（比A大）", "B", RIGHT),
    ("A dog.", "A", WRONG),
    ("It is a dog.", "A", WRONG),
    ("20；100", "B（20；100）", WRONG),  # the text of a choice is not its letter
    # words
    ("小红多75本。", "小红多75本", RIGHT),
    ("小明多75本。", "小红多75本。", WRONG),  # the number alone is not the answer
    ("小红多57本。", "小红多75本。", WRONG),
    ("答案是北京", "北京。", RIGHT),
    ("苹果的英语是apple。", "苹果的英语是 apple。", RIGHT),
    ("A dog.", "A cat.", WRONG),
    ("北京和上海", "北京", WRONG),
    ("A、B", "A、B两地相距7千米", WRONG),
]


@pytest.mark.parametrize("reply, expected, verdict", VERDICTS)
def test_reply_is_right_when_it_comes_to_the_expected_answer(reply, expected, verdict):
    assert is_right(reply, expected) is verdict


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("<think>3+4=7</think>\n<answer>一共7个。</answer>", True),
        ("<think>3+4=7</think><answer>小红多</answer>", True),
        ("<think>3</think>\n<answer></answer>", False),
        ("<think> </think>\n<answer>\n</answer>", False),
        ("<think>3</think>\n<answer>7", False),
        ("<think>a<think>b</think><answer>7</answer>", False),
        ("<think>3</think>好<answer>7</answer>", False),
        ("<answer>7</answer><think>3</think>", False),
        ("好。<think>3</think><answer>7</answer>", False),
        ("<think>3</think><answer>7</answer>好。", False),
        ("一共12.5元。", False),
    ],
)
def test_form_asks_for_each_tag_once_and_nothing_outside(reply, expected):
    assert is_well_formed(reply) is expected


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("<think>3+4=7</think><answer>3+4=7。答案：7。</answer>", "7"),
        ("小红多75本。", "小红多75本"),
        ("<think>3+4=7", ""),
        ("The answer is 24,960.", "24,960"),
    ],
)
def test_final_answer_is_what_follows_the_last_mark(reply, expected):
    assert final_answer(reply) == expected


VALUES = [
    # decimals, signs and separators
    ("1,200.5", "2401/2"), ("1，234，567", 1234567), ("12 345", 12345), ("007", 7), (" ５ ", 5),
    (".5", "1/2"), ("-.5", "-1/2"), ("−7", -7), ("－7", -7), ("+7", 7), ("负七", -7), ("-0", 0),
    # fractions and percent
    ("-3/4", "-3/4"), ("３／４", "3/4"), ("¾", "3/4"), ("−1½", "-3/2"), ("1 1/2", "3/2"),
    ("一又二分之一", "3/2"), ("3分之2", "2/3"), ("百分之十二", "3/25"), ("百分之百", 1), ("12.5%", "1/8"),
    ("12.5 ％", "1/8"), ("－50％", "-1/2"),
    # powers, roots and scientific notation
    ("7e2", 700), ("7E+2", 700), ("7e-2", "7/100"), ("1.5×10³", 1500), ("10²", 100), ("2^3", 8),
    ("2¹⁰", 1024), ("√9", 3),
    # numerals
    ("零", 0), ("七", 7), ("十", 10), ("十二", 12), ("二十", 20), ("一百零五", 105), ("一百五十", 150),
    ("两千", 2000), ("一千零五十", 1050), ("三万五千", 35000), ("一万零三", 10003), ("7万", 70000),
    ("一百〇五", 105), ("1.2亿", 120000000), ("一亿零五百万", 105000000), ("3万5千", 35000),
    # not one number
    ("1，2", None), ("1,20", None), ("1, 200", None), ("1,2000", None), ("7/0", None), ("1/2/3", None),
    ("1.2.3", None), ("18-3", None), ("--7", None), ("3~7", None), ("3:4", None), ("7个", None), ("x", None),
    ("7x", None), ("", None), ("-", None), ("√2", None), ("√", None), ("7e", None), ("10^99999", None),
    ("7e99999", None), ("1 3/2", None), ("①", None), ("十百", None), ("一百五", None), ("一千零五百", None),
    ("万一", None), ("一一", None), ("1.5万5千", None),
]  # fmt: skip


@pytest.mark.parametrize("text, value", VALUES)
def test_number_value_is_exact(text, value):
    assert number_value(text) == (None if value is None else Fraction(value))


def numeral(value):
    """The Chinese numeral of 0 <= value < 10**8: 10203 -> 一万零二百零三."""
    if value >= 10**4:
        high, low = divmod(value, 10**4)
        return numeral(high) + "万" + (("零" if low < 1000 else "") + numeral(low) if low else "")
    written = ""
    for digit, place in zip(f"{value:04d}", ("千", "百", "十", "")):
        written += "零一二三四五六七八九"[int(digit)] + (place if digit != "0" else "")
    return re.sub("零+", "零", written).strip("零") or "零"


FULL_WIDTH = str.maketrans("0123456789,./%-", "０１２３４５６７８９，．／％－")


@given(
    st.integers(0, 10**8 - 1),
    st.integers(1, 999),
    st.integers(2, 999),
    st.sampled_from(["", "-", "−", "－", "负"]),
)
def test_value_does_not_depend_on_the_spelling(whole, part, of, sign):
    spellings = {
        Fraction(whole): [
            str(whole),
            f"{whole:,}",
            f"{whole:,}".replace(",", " "),
            f"{whole}.00",
            f"{whole}e0",
            numeral(whole),
        ],
        Fraction(part, of): [f"{part}/{of}", f"{of}分之{part}", f"{numeral(of)}分之{numeral(part)}"],
        Fraction(whole, 1000): [
            f"{whole // 1000}.{whole % 1000:03d}",
            f"{whole // 10}.{whole % 10}%",
            f"{whole}e-3",
        ],
        Fraction(whole * 10**4): [f"{whole}万"],
        whole + Fraction(1, of): [
            f"{whole} 1/{of}",
            f"{whole}又1/{of}",
            f"{numeral(whole)}又{numeral(of)}分之一",
        ],
        Fraction(part**2): [f"{part}²", f"{part}^2", f"√{part**4}"],
    }
    for value, texts in spellings.items():
        value = -value if sign else value
        for text in texts:
            assert number_value(sign + text) == number_value((sign + text).translate(FULL_WIDTH)) == value, (
                sign + text
            )
            assert is_right(f"答案：{sign}{text}", str(value)) and not is_right(
                f"答案：{sign}{text}", str(value + 1)
            )


PIECES = [
    "7",
    "7,",
    "7 ",
    "7-",
    "-",
    "- ",
    "负",
    "(",
    "(7",
    "((7",
    ")",
    "√",
    "百",
    "亿",
    "十零",
    "1/",
    "7^",
    "7e",
    "7%",
]
PIECES += [" ", "\n", "不", "=7", "7或", "又", "分之", "½", "²", "…", "\\", "{", "$", r"\frac{", r"\frac{1}{"]
PIECES += ["<answer>", "<think>", "</think>", "<think></think><answer>", "答案", "答案 ", "答案：", "not "]
PIECES += ["A", "A ", "A, ", "选", "选a", "(A)", "a", "a^"]
SEVENS = "7" * 5000
HOSTILE = [piece * 20_000 for piece in PIECES]
HOSTILE += [
    "(" * 20_000 + "7" + ")" * 20_000,
    SEVENS,
    f"答案：{SEVENS}",
    f"{SEVENS}%",
    f"0.{SEVENS}",
    f"1/{SEVENS}",
]
HOSTILE += ["10^99999", "7e99999", "9^9^9^9", "1/" + "0" * 90, "亿" * 90, "7/" * 45, "(" * 90]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:8]!r}")
def test_hostile_text_is_judged_without_an_error(text):
    for expected in ("5", "B", "北京"):
        assert not is_right(text, expected)
        assert not is_right(f"<think>1</think><answer>{text}</answer>", expected)
        assert not is_right("6", text) and not is_right("C", text)
    assert not is_well_formed(text) and number_value(text) is None


def test_shares_count_the_verdicts():
    judged = [
        {"is_right": right, "is_well_formed": formed} for right, formed in [(1, 1), (0, 1), (0, 1), (0, 0)]
    ]
    assert shares(judged) == {"reasoning_accuracy": 0.25, "well_formed": 0.75}
