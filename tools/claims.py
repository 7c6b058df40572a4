"""The calculations that a text states in the language of tools/arithmetic.py, read back and checked.

A calculation may be stated at once, 6×7=42, or be opened by a colon and closed by 得 with its result. Each is
checked alone: whether the numbers were carried over rightly from one to the next is not.
"""

import re

from tools.digits import columns
from tools.exact_numbers import NUMBER, CannotSpell, evaluate, value
from tools.expressions import spell_chain

ONE_SPELLING = str.maketrans("*＊＋－＝", "××+-=")
OPERATION = re.compile(rf"({NUMBER})([+\-×÷])({NUMBER})")
OF_INTEGERS = re.compile(r"(\d+)([-+]|×(?=\d$))(\d+)")  # a product by one digit alone
REJECTED = r"试(\d+)[^试÷\n]*([大小])"  # a digit that is tried and found too large or too small
REJECTIONS = re.compile(rf"(\d+)÷(\d+)((?:{REJECTED},)+)")
TOO_LARGE = re.compile(r"(\d+)-(\d+)~([\d,借]+)大")
DIGIT = re.compile(rf"(\d+)÷(\d+)(?:{REJECTED},)*[商试](?P<digit>\d+)(?:余(?P<rest>\d+))?")
REDUCED = re.compile(r"(?<!\d)(\d+)/(\d+)约(\d+)(?=[^约\n]*?,(\d+)/(\d+)[约得]|)")  # and to what
REWRITTEN = re.compile(rf"(?<![\dA-Za-z./%)=~约^+\-×÷])({NUMBER})=({NUMBER})(?![\d./%])")
COLUMNS = r"~([\d,进借]+)"
EXPRESSION = r"[\d(][\d./%()]*[-+×÷^][-\d./%()+×÷^]*"
STATED = re.compile(
    rf"(?<![\dA-Za-z./()%+\-×÷^~=])({EXPRESSION})(?:{COLUMNS})?=(-?{NUMBER})(?![-+×÷^(\d./%])"
)
OPENED_OR_CLOSED = re.compile(rf"(?P<opened>{EXPRESSION}):|得(?P<result>-?{NUMBER})|\n")


def claims(text: str) -> list[tuple[str, bool]]:
    """[(claim, is it true)] of each calculation, digit of a quotient, reduction, and number written anew."""
    text, found = text.translate(ONE_SPELLING), []
    for match in STATED.finditer(text):
        expression, in_columns, result = match.groups()
        opened = expression.count("(") - expression.count(")")  # before it: (3+4=7)
        expression = expression.removeprefix("(" * opened)
        is_true = result_is(expression, result) and (not in_columns or in_columns == columns_of(expression))
        found.append((match[0], is_true))
    for match in DIGIT.finditer(text):
        a, b, digit = int(match[1]), int(match[2]), int(match["digit"])
        remainder = a - b * digit
        found.append((match[0], 0 <= remainder < b and match["rest"] in (None, str(remainder))))
    for match in TOO_LARGE.finditer(text):
        a, b = int(match[1]), int(match[2])
        found.append((match[0], a < b and match[3] == columns(a, "-", b)))
    for match in REJECTIONS.finditer(text):
        a, b = int(match[1]), int(match[2])
        for digit, verdict in re.findall(REJECTED, match[3]):
            remainder = a - b * int(digit)
            is_true = remainder < 0 if verdict == "大" else remainder >= b
            found.append((f"{a}÷{b}试{digit}{verdict}", is_true))
    for match in REDUCED.finditer(text):
        top, bottom, factor = (int(number) for number in match.groups()[:3])
        reduced = [int(number) * factor for number in match.groups()[3:] if number]
        divides = factor > 1 and top % factor == bottom % factor == 0
        found.append((match[0], divides and reduced in ([], [top, bottom])))
    found += [
        (match[0], same(*match.groups())) for match in REWRITTEN.finditer(re.sub(f"{COLUMNS}=", "~=", text))
    ]
    return found + opened_claims(text)


def opened_claims(text: str) -> list[tuple[str, bool]]:
    """Those of the colons. 得 closes the last one, and also the one before if that was only rewritten:
    12÷0.5:120÷5:...得24 states two results. A line that ends after 得 with one still open states no result of
    it, which is wrong; what is cut off elsewhere claims nothing."""
    found, opened = [], []  # opened: (expression, where it begins, where its steps begin)
    closed = 0  # where the last 得 ends
    for match in OPENED_OR_CLOSED.finditer(text):
        if match["opened"]:
            opened.append((match["opened"], match.start(), match.end()))
        elif not match["result"]:  # a new line
            found += [(f"{expression}:", False) for expression, *_ in opened if closed == match.start()]
            opened.clear()
        else:
            closed = match.end()
        while match["result"] and opened:
            expression, begin, _ = opened.pop()
            found.append((f"{expression}得{match['result']}", result_is(expression, match["result"])))
            if not (opened and opened[-1][2] == begin and result_is(opened[-1][0], match["result"])):
                break
    return found


def result_is(expression: str, stated: str) -> bool:
    """Whether an expression comes to the number stated; False for what cannot be worked out."""
    try:
        if two := OPERATION.fullmatch(expression):
            a, operator, b = two.groups()
            return evaluate(value(a), operator, value(b)) == signed(stated)
        return signed(spell_chain(expression)[1]) == signed(stated)
    except CannotSpell:
        return False


def columns_of(expression: str) -> str | None:
    """What stands after ~ of a sum, a difference or a product by one digit; None for anything else."""
    if not (found := OF_INTEGERS.fullmatch(expression)):
        return None
    a, operator, b = int(found[1]), found[2], int(found[3])
    return None if operator == "-" and a < b else columns(a, operator, b)


def signed(text: str):
    """value, also of a negative number."""
    return -value(text[1:]) if text.startswith("-") else value(text)


def same(number: str, other: str) -> bool:
    try:
        return value(number) == value(other)
    except CannotSpell:
        return False
