"""The operands of sums and products in the order in which the question names them.

Sources write 55×4 and 4×55 for 4 baskets of 55 kilograms: a third of the products, and a quarter of the sums,
are in another order than the question's. With one order there is less to learn. For this reason equations are
normalized in Wang et al. 2018, "Translating a Math Word Problem to an Expression Tree", arXiv:1811.05632.
"""

from tools.expressions import TOKEN
from tools.other_numbers import NUMBERS, unbracketed


def in_order_of(question: str, expression: str) -> str:
    """'有4筐，每筐55千克，卖出135千克', '55×4-135' -> '4×55-135'

    Only what is joined by + or by × changes places, and only with its neighbours. What has no number of the
    question comes last, but a 1 first, as in 1+25%.
    """
    named = list(dict.fromkeys(map(unbracketed, NUMBERS.findall(question))))
    places = {number: place for place, number in enumerate(named)}
    return ordered(TOKEN.findall(expression), "+-", places)[1]


def ordered(tokens: list[str], operators: str, places: dict[str, int]) -> tuple[list[int], str]:
    """(the places of its numbers, its text) of the longest sum ("+-") or product ("×÷") at the front of
    tokens, taken from them."""
    take = lambda: ordered(tokens, "×÷", places) if operators == "+-" else ordered_operand(tokens, places)
    joining, runs = operators[0], [("", [take()])]  # of parts that are joined by it
    while tokens and tokens[0] in operators:
        operator = tokens.pop(0)
        if operator == joining and runs[-1][0] in ("", joining):
            runs[-1][1].append(take())
        else:
            runs.append((operator, [take()]))
    numbers, text = [], ""
    for operator, parts in runs:
        parts.sort(key=lambda part: part[0] or [-1 if part[1] == "1" else len(places)])
        text += operator + joining.join(text for _, text in parts)
        numbers += [place for its_places, _ in parts for place in its_places]
    return numbers, text


def ordered_operand(tokens: list[str], places: dict[str, int]) -> tuple[list[int], str]:
    """The same of a number or of a bracket, with its power."""
    token = tokens.pop(0)
    if token == "(":
        numbers, text = ordered(tokens, "+-", places)
        text = f"({text}{tokens.pop(0)}"
    else:
        number, text = unbracketed(token), token
        numbers = [places[number]] if number in places else []
    return numbers, text + (tokens.pop(0) if tokens and tokens[0].startswith("^") else "")
