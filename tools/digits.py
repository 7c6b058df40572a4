"""Calculations with integers, digit by digit, in the language of tools/arithmetic.py.

A fact known by heart, of the tables of one-digit numbers, forwards or backwards:
    6×7=42   13-5=8   42÷6=7
Column by column from the last one, after ~: a digit of each number, 0 where one has none, the digit below
them, then 进 or 借 where one is carried or borrowed, else a comma; a last 进 is followed by its 1:
    345+278~583进472进326=623   503-278~385借072借522=225   95+7~572进900进1=102
Of a product by one digit: the digit, its product, and that with what was carried:
    346×7~64242,42832,32124=2422
A product, one digit after the other of the number with fewer digits other than 0, the first one first:
    66×52:66×5~63030,63033=330,66×2~61212,61213=132,3300+132~022,033,314,303=3432得3432
Zeros at the end of a factor are left out, then written again:
    2400×60:24×6~42424,21214=144得144000
Long division: 商 a digit of the quotient, 余 what remains, 点 where its point goes:
    7÷8:7÷8商0余7,点,70÷8商8余6,60÷8商7余4,40÷8商5余0得0.875
By a divisor of more digits 试 a digit, and another where it is 大, too large, so that the last column still
borrows, or 小, too small:
    132÷33:132÷33试4,33×4~31212,31213=132,132-132~220,330,110=0得4
    78÷26:78÷26试4,26×4~62424,20810=104,78-104~844,707,019借大,试3,26×3~61818,20607=78,78-78~880,770=0得3
    52÷13:52÷13试3,13×3~30909,10303=39,52-39~293借531=13小,试4,13×4~31212,10405=52,52-52~220,550=0得4

A column first says what it reads and then what it finds, which is learned sooner than the result alone, and
all are of one width, so that the same digits always stand as far away (tools/spellings.py).
"""

from itertools import zip_longest
from zlib import crc32

WRONG_TRIES = {0: [1], 1: [1], 2: [1], 3: [2, 1], 4: [-1], 5: [-1]}  # off by so much, in 6 cases of 20


def by_hand(a, operator, b):
    """(digit of a, digit of b or 0, what is carried or borrowed, total) of each column, the last one first.

    a >= b for '-', b < 10 for '×', where it is the digit of each column.
    """
    below, carry = str(b) * len(str(a)) if operator == "×" else str(b)[::-1], 0
    for x, y in zip_longest(map(int, str(a)[::-1]), map(int, below), fillvalue=0):
        total = {"+": x + y + carry, "-": x - y - carry, "×": x * y + carry}[operator]
        yield x, y, carry, total
        carry = abs(total // 10)


def columns(a, operator, b):
    """345, '+', 278 -> '583进472进326'; 95, '+', 7 -> '572进900进1'; 346, '×', 7 -> '64242,42832,32124'"""
    text, mark = "", {"+": "进", "-": "借", "×": ","}[operator]
    for x, y, _, total in by_hand(a, operator, b):
        text += f"{x}{x * y:02}{total:02}" if operator == "×" else f"{x}{y}{total % 10}"
        text += "," if 0 <= total < 10 else mark
    return text.removesuffix(",") + "1" * text.endswith("进")


def add(a, b):
    """345, 278 -> '345+278~583进472进326=623'"""
    if a < 10 and b < 10:
        return f"{a}+{b}={a + b}"
    return f"{a}+{b}~{columns(a, '+', b)}={a + b}"


def subtract(a, b):
    """503, 278 -> '503-278~385借072借522=225'; for a >= b"""
    if a < 20 and b < 10:
        return f"{a}-{b}={a - b}"
    return f"{a}-{b}~{columns(a, '-', b)}={a - b}"


def multiply(a, b):
    """346, 7 -> '346×7~64242,42832,32124=2422'; 66, 52 -> '66×52:66×5~...=330,...,3300+132~...=3432得3432'"""
    head, product = f"{a}×{b}", a * b
    core_a, core_b = (int(str(number).rstrip("0") or 0) for number in (a, b))
    if product == 0 or core_a == 1 or core_b == 1:
        return f"{head}={product}"
    if significant_digits(core_a) < significant_digits(core_b):
        core_a, core_b = core_b, core_a
    if core_a < 10:
        steps = [f"{core_a}×{core_b}={core_a * core_b}"]
    else:
        steps = partial_products(core_a, core_b)
    if len(steps) == 1 and steps[0].startswith((f"{head}=", f"{head}~")):
        return steps[0]
    return f"{head}:{','.join(steps)}得{product}"


def significant_digits(number):
    """How many digits are not 0: a multiplier's count of partial products."""
    return len(str(number).replace("0", ""))


def partial_products(a, multiplier):
    """One product by each digit that is not 0, the first one first; the sum so far moves one place left."""
    steps, total = [], 0
    for digit in map(int, str(multiplier)):
        total *= 10
        if digit == 0:
            continue
        product = a * digit
        steps.append(f"{a}×1={a}" if digit == 1 else f"{a}×{digit}~{columns(a, '×', digit)}={product}")
        if total:
            steps.append(add(total, product))
        total += product
    return steps


def divide(a, b):
    """7, 8 -> '7÷8商0余7,点,70÷8商8余6,60÷8商7余4,40÷8商5余0': the steps of a quotient that ends."""
    digits = str(a)
    taken = 1
    while taken < len(digits) and int(digits[:taken]) < b:
        taken += 1
    current, rest, steps, point = int(digits[:taken]), digits[taken:], [], False
    while True:
        step, current = quotient_digit(current, b, a)
        steps.append(step)
        if current == 0 and not rest.strip("0"):
            return ",".join(steps)  # the zeros at the end are copied
        if rest:
            current, rest = current * 10 + int(rest[0]), rest[1:]
        else:
            if not point:
                steps.append("点")
                point = True
            current *= 10


def quotient_digit(current, divisor, dividend):
    """94, 23, 943 -> ('94÷23试4,23×4~31212,20809=92,94-92~422,990=2', 2): a digit, and what remains

    In a quarter of the cases, chosen by a hash of the calculation, others are tried before: a model that only
    ever saw the right one tried would not mend its own wrong ones.
    """
    digit, remainder = divmod(current, divisor)
    if digit == 0 or divisor < 10:
        return f"{current}÷{divisor}商{digit}余{remainder}", remainder
    case = crc32(f"{dividend}÷{divisor}:{current}".encode()) % 20
    others = [digit + off for off in WRONG_TRIES.get(case, [])]  # none where one would not be of 1 to 9
    tried = [*others, digit] if all(1 <= other <= 9 for other in others) else [digit]
    return f"{current}÷{divisor}" + ",".join(tried_digit(current, divisor, one) for one in tried), remainder


def tried_digit(current, divisor, digit):
    """94, 23, 5 -> '试5,23×5~31515,21011=115,94-115~459借917,019借大'; 48, 23, 1 -> '试1,48-23~835,422=25小'

    The rest is written out also where the product is too large: it shows by a 借 at its end.
    """
    product = divisor * digit
    tried = f"试{digit}" + f",{multiply(divisor, digit)}" * (digit > 1)
    if product > current:
        return f"{tried},{current}-{product}~{columns(current, '-', product)}大"
    return f"{tried},{subtract(current, product)}" + "小" * (current - product >= divisor)
