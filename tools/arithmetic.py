"""One language in which a calculation is written out, in steps that a small model can learn.

Integers are written out digit by digit (tools/digits.py):
    6×7=42   345+278~583进472进326=623   195÷5:19÷5商3余4,45÷5商9余0得39
Decimals as integers, then the point (tools/decimals.py):
    13.5+2.75:1350+275~055,572进326,101=1625得16.25
Fractions (tools/fraction_steps.py): divide where it comes out, else multiply first; the reciprocal; a common
denominator:
    600×(7/15):600÷15:60÷15试4,15×4~52020,10406=60,60-60~000,660=0得40,40×7:4×7=28得280得280
    350÷(7/10):350×10/7:350÷7:35÷7商5余0得50,50×10=500得500
    7/12-1/5:12×5~21010,10506=60,7×5=35,35-12~523,312=23,23/60得23/60
Reducing, and percentages:
    80÷60:8/6约2,8÷2=4,6÷2=3,4/3得4/3   20%=0.2

A colon opens the steps of what stands before it, 得 closes them with the result: an integer, a decimal where
it ends within MAX_DECIMALS places (tools/exact_numbers.py), else a reduced fraction; of fractions without a
decimal no decimal. A calculation rewritten at once as another shares its 得:
    12÷0.5:120÷5:12÷5商2余2,20÷5商4余0得24
"""

import re

from tools.decimals import decimal_steps, quotient
from tools.digits import add, multiply
from tools.exact_numbers import MIXED, CannotSpell, decimal_places, evaluate, value, written
from tools.fraction_steps import fraction_steps

MAX_DIGITS = 12


def spell(a, operator, b):
    """'9.1', '×', '0.3' -> '9.1×0.3:91×3~10303,92727=273得2.73'

    A negative result is that of the difference the other way round. Raises CannotSpell for negative operands,
    division by zero, and numbers of more than MAX_DIGITS digits or MAX_DECIMALS decimals.
    """
    number = evaluate(value(a), operator, value(b))
    if None in (decimal_places(value(text)) for text in (a, b) if "." in text):
        raise CannotSpell("too many decimals")
    if max(sum(map(str.isdigit, text)) for text in (a, b, written(number))) > MAX_DIGITS:
        raise CannotSpell("too many digits")
    (steps, plain_a), (steps_b, plain_b) = simplify(a), simplify(b)
    steps, operands = steps + steps_b, (plain_a, plain_b)
    if operator in "+-" and any("." in text for text in operands):
        for index, (text, decimal) in enumerate(zip(operands, map(written, map(value, operands)))):
            if "/" in text and "/" not in decimal:
                steps.append(quotient(*text.split("/")))
                operands = (decimal, plain_b) if index == 0 else (plain_a, decimal)
    if not any("/" in text for text in operands):
        inner = decimal_steps(operands[0], operator, operands[1])
        return f"{a}{operator}{b}:{','.join([*steps, inner])}得{written(number)}" if steps else inner
    steps += fraction_steps(operands[0], operator, operands[1])
    result = written(number) if any("." in text for text in operands) else str(number)
    return f"{a}{operator}{b}:{','.join(steps)}得{result}" if steps else f"{a}{operator}{b}={result}"


def result_of(spelled):
    """'66×52:...得3432' -> '3432': what a spelled calculation comes to, as written there"""
    return re.split("[=得]", spelled)[-1]


def simplify(operand):
    """'20%' -> (['20%=0.2'], '0.2'); '(2/7)' -> ([], '2/7')
    '1(1/2)' -> (['1×2=2', '2+1=3', '1(1/2)=3/2'], '3/2')
    """
    if operand.endswith("%"):
        plain = written(value(operand))
        return [f"{operand}={plain}"], plain
    if mixed := MIXED.fullmatch(operand):
        whole, top, bottom = map(int, mixed.groups())
        steps = [multiply(whole, bottom), add(whole * bottom, top)]
        plain = f"{whole * bottom + top}/{bottom}"
        return [*steps, f"{operand}={plain}"], plain
    return [], operand.strip("()")
