"""Judge replies: does the answer come to the expected one, and does the reply have the R1 form?

Only the final answer counts, never the reasoning. Where a teacher could go either way, the answer is wrong.

    is_right("<think>3+4=7</think><answer>3+4=7。答案：7</answer>", "The answer is 7.")  ->  True
    is_right("<think>2+5=7", "答案：7")  ->  False, the reply is still thinking
"""

import re
from fractions import Fraction
from math import isqrt
from unicodedata import normalize

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
REPLY = re.compile(r"<think>(.+)</think>\s*<answer>(.+)</answer>", re.DOTALL)
ANSWER_MARK = re.compile(r"(?i)(?:答案|\banswer)\s*(?:应该?|应当|就)?(?:[是为]|is\b|(?=[:：]))\s*[:：]?\s*")

REWRITES = (  # in this order
    ("[⁰¹²³⁴-⁹]+", lambda found: "^" + normalize("NFKC", found[0])),  # 10² -> 10^2
    ("[¼-¾⅐-⅞]", lambda found: " " + normalize("NFKC", found[0])),  # 1½ -> 1 1⁄2
    ("[！-～﹐-﹫\u3000\xa0]", lambda found: normalize("NFKC", found[0])),  # ７％ -> 7%
    (r"[−–—‐‑]", "-"),
    (r"[⁄∕]", "/"),
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2"),
    (r"\\sqrt", "√"),
    (r"\\(?:boxed|text|times)|[\\{}$¥￥€£]", " "),  # \boxed{7}, $7
    (r"(?<!不)等于", "="),
    (r"[^\S\n]+", " "),
    (r" ?([-+*/^×÷=~√]) ?", r"\1"),
    (r"(?<=[0-9])(?:×10\^|[eE]\+?)(?=-?[0-9])", "e"),
)

MOST_CHARACTERS = 100  # of a number: a longer one answers no question, and int() refuses 4301 digits
PLAIN_NUMBER = re.compile(r"(?=\.?[0-9])([0-9]*|[1-9][0-9]{0,2}((,[0-9]{3})+|( [0-9]{3})+))(\.[0-9]+)?")
DIGITS = "零一二三四五六七八九"
SCALES = (("亿", 10**8), ("万", 10**4), ("千", 10**3), ("百", 10**2), ("十", 10))
CLAUSE_END = re.compile(r"[。！？!?\n]|[,;](?! ?[0-9])")
ASIDE = re.compile(  # parentheses, but not those in 0.(3), (18)-3, 3(1/2) and 9(wrong)
    r"(?<!\.)(?!(?<=[0-9])\([0-9]+/)\((?![^()]*(?:错|不|wrong))[^()]*\)(?![-+*/^×÷])"
)
QUANTITY = re.compile(  # whatever may belong to one number, formula, ratio, range or list, as group 1
    r"[A-Za-z][A-Za-z0-9_]*(?:[-+*/^×÷][A-Za-z0-9_]+)*"  # the digits in x+2 and cm^2 state nothing
    r"|((?![,;、:) ])(?:[0-9.,;、%‰+\-*/^×÷·~:…√()<>≤≥≠± 又负]|百?分之"
    r"|(?<=[0-9])(?:e(?=[-0-9])| ?(?:[百万亿]|千(?![米克瓦]))+))+)"  # 7万, but 7千米 is 7 km
)
SMALL_LETTER = re.compile(r"^\W*[a-h]\W*$|(?<=选) ?[a-h](?![a-z])")
LETTER = re.compile(r"(?a)\b(?:[B-H]|A(?! (?!and\b|or\b|is\b)[a-z]))\b")  # "A dog" makes no choice
EITHER = re.compile(r"(?:或|\bor\b)[^。;\n]*=")  # x=3或x=4
CHOICE = re.compile(r"\W*选?[A-Ha-h] ?(?:$|[().,:、])")
# What makes a number or a letter beside it not the answer: 不是7, 大于7, 70多, 3个或4个, 3小时20分, 7不对.
JOINT = r" ?(?:\w?(?:或者?|还是|[和与到至比余的加减乘除]以?)|and|to|[小分千厘]?[年月日时点分钟秒元角米克]) ?"
NOT_AFTER = re.compile(
    r"(?:[不没非][^的,;。\n]{0,3}|(?:\bnot|\bnever|n't)\b[^,;.\n]{0,5}|[大小多少高低]于|超过|[接将]近|比|零下|除了?"
    rf"|或者?选?|可能是?|也许|要么|\b(?:than|over|under|or|out of)|[0-9%]{JOINT}) ?$"
)
NOT_BEFORE = re.compile(
    r" ?(?:(?:选?项)?(?:是|is )?(?:不对|不正确|不符|不合|不能|不是|\(?错|wrong)|\w?[多半]|[余几来]"
    r"|\w{0,2}(?:以[上下内外]|或)|or\b|hundred|thousand|million|billion|dozen"
    rf"|(?<! )[abknxyzπ]\b|{JOINT}[0-9])"
)


def is_well_formed(reply: str) -> bool:
    """True for `<think>...</think><answer>...</answer>`, each once, neither empty, nothing outside."""
    found = REPLY.fullmatch(reply.strip()) if all(reply.count(tag) == 1 for tag in TAGS) else None
    return bool(found and found[1].strip() and found[2].strip())


def answer_text(reply):
    """What follows the reasoning: the one <answer>, or all of a reply without tags. Unfinished: ""."""
    _, thought, rest = reply.rpartition("</think>")
    tags = [rest.count(tag) for tag in TAGS]
    if not thought and not any(tags):
        return rest
    return rest.partition("<answer>")[2].rpartition("</answer>")[0] if tags == [0, 0, 1, 1] else ""


def final_answer(reply: str) -> str:
    """What is judged of a reply: what follows the last 答案： or "answer is" of its `answer_text`."""
    return re.sub(r"[。.．]\Z", "", ANSWER_MARK.split(answer_text(reply))[-1].strip()).strip()


def normalized(text):
    """The text in one spelling of digits, signs and formulas."""
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def simple_value(text, scales=SCALES):
    """The value of a decimal or a Chinese numeral: 1,200.5, 一百零五, 三万五千, 1.2亿. None for all else."""
    if PLAIN_NUMBER.fullmatch(text):
        return Fraction(re.sub("[, ]", "", text))
    if not scales:
        return Fraction(DIGITS.index(text)) if len(text) == 1 and text in DIGITS else None
    (name, size), *lower = scales
    count, found, rest = text.partition(name)
    if not found:
        return simple_value(text, lower)
    count = simple_value(count or "一", lower if size >= 10**4 else [])  # 十二 is 一十二
    rest_value = simple_value(rest.removeprefix("零"), lower) if rest else 0
    if count is None or rest_value is None or (rest and count % 1):
        return None
    # 零 stands for skipped places, as in 一百零五. Without it some read 一百五 as 105, others as 150.
    return count * size + rest_value if (0 < rest_value < size // 10) == rest.startswith("零") else None


FORMS = (  # how a number may be written, and its value from the simple values in it
    (r"(.+)", lambda value: value),
    (r"(.+?) ?%", lambda value: value / 100),
    (r"\(?(.+)/(.+?)\)?", lambda part, whole: part / whole if whole else None),
    (
        r"(.+)[ 又(](.+)/(.+?)\)?",
        lambda n, part, whole: n + part / whole if part < whole and not n % 1 else None,
    ),
    (r"(.+)\^([0-9]{1,2})", lambda base, exponent: base ** int(exponent)),
    (r"(.+)e([0-9]{1,2})", lambda value, exponent: value * 10 ** int(exponent)),
    (r"(.+)e-([0-9]{1,2})", lambda value, exponent: value / 10 ** int(exponent)),
    (r"√([0-9]+)", lambda square: Fraction(n) if (n := isqrt(int(square))) ** 2 == square else None),
)


def number_value(text: str) -> Fraction | None:
    """The exact value of a text that is one number, else None: 1,200, -3/4, 1½, 12.5%, 三分之二, 10², √9."""
    text = normalized(text) if len(text) <= MOST_CHARACTERS else ""
    sign, size = re.fullmatch(r"([-+负]?) ?(.*)", text, re.DOTALL).groups()
    size = re.sub("([^又]+)分之(.+)", r"\2/\1", size.replace("两", "二").replace("〇", "零"))
    for form, value_of in FORMS:
        if found := re.fullmatch(form, size):
            parts = [simple_value(part) for part in found.groups()]
            if None not in parts and (value := value_of(*parts)) is not None:
                return -value if sign in ("-", "负") else value
    return None


def without_asides(text, wanted):
    """The normalized text without its parentheses, unless what is `wanted` stands in them only."""
    text = normalized(text)
    shorter = ASIDE.sub(" ", text)
    return shorter if re.search(wanted, shorter) else text


def counts(text, found):
    """Whether a text gives what was found as its answer: not in 不是7, 大于7, 3个或4个, 7不对, not B."""
    start, end = found.span()
    return not (NOT_AFTER.search(text, max(0, start - 12), start) or NOT_BEFORE.match(text, end))


def stated_values(text):
    """The values that a text states, None for what is not one number: "3+4=7个" -> [7], "18-3" -> [None]."""
    text = without_asides(text, "[0-9]")
    if (whole := number_value(text.strip(" *()").rstrip("个只条本张支枝棵辆元人名天年岁倍"))) is not None:
        return [whole]
    if EITHER.search(text):
        return [None]
    sides = [clause.rpartition("=")[2] for clause in CLAUSE_END.split(text)]
    stated = [found[1] or "" for side in sides for found in QUANTITY.finditer(side) if counts(side, found)]
    quantities = [quantity.strip(" ,;、:()*").removesuffix(".") for quantity in stated]
    return [number_value(quantity) for quantity in quantities if re.search("[0-9]", quantity)]


def chosen_letters(text):
    """The letters of the choices that a text makes: those after its first 选, if there are any."""
    text = SMALL_LETTER.sub(lambda found: found[0].upper(), without_asides(text, r"(?a)\b[A-Ha-h]\b"))
    letters = [found for found in LETTER.finditer(text) if counts(text, found)]
    chosen = {found[0] for found in letters if found.start() > text.find("选")}
    return chosen or {found[0] for found in letters}


def stated_answer(reply: str) -> Fraction | None:
    """The one number that is stated after 答案：, or without that mark the last one; None without such."""
    values = stated_values(final_answer(reply))
    values = set(values if ANSWER_MARK.search(answer_text(reply)) else values[-1:])
    return values.pop() if len(values) == 1 else None


def is_right(reply: str, expected: str) -> bool:
    """True if the final answer of a reply comes to that of the expected reply.

    A number must be the answer that is stated. A choice of A to H must be the only one that is made. All else
    must be equal but for white space.
    """
    found, expected = final_answer(reply), final_answer(expected)
    if (value := number_value(expected)) is not None:
        return stated_answer(reply) == value
    if CHOICE.match(normalized(expected)) and len(choice := chosen_letters(expected)) == 1:
        return chosen_letters(found) == choice
    return "".join(normalized(found).split()) == "".join(normalized(expected).split()) != ""


def shares(judged: list) -> dict:
    """{"reasoning_accuracy": share of right answers, "well_formed": share in R1 form} of judged replies."""
    verdicts = {"reasoning_accuracy": "is_right", "well_formed": "is_well_formed"}
    return {name: sum(one[verdict] for one in judged) / len(judged) for name, verdict in verdicts.items()}
