"""python tools/spellings.py --tokens 400000

Which spelling of a sum, a difference or a product does a small model learn soonest? For each spelling one
model, from random weights, learns as many tokens of calculations drawn at random; then it spells TESTED of
those that are kept from learning, and each must be right to the last character. The winner is the language of
tools/digits.py.

After Lee et al. 2023, "Teaching Arithmetic to Small Transformers", arXiv:2307.03381, who compare results at
once, backwards, and by columns.
"""

import random
import sys
from pathlib import Path
from statistics import mean
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.utils.rnn import pad_sequence

from Config import LLMConfig
from infra.cli import UserError, make_parser, run_script
from model import WeakWater
from optimizer import make_optimizers, update
from tools.digits import by_hand, columns

CHARACTERS = "\n0123456789+-×~:=,得进借"  # the newline ends a calculation, and pads
RESULTS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b}
RATE, WARMUP_STEPS, FALLING = 4e-3, 30, 0.3  # the rate falls in the last part of the tokens
STEP_TOKENS, TESTED = 2048, 1000  # about; calculations
LENGTHS = (2, 3, 4)  # digits; longer ones count under the last
EXAMPLES = ((345, "+", 78), (1003, "-", 278), (346, "×", 7))


def plain_columns(a: int, operator: str, b: int, of_one_width: bool) -> str:
    """345+78 -> 583,472,304, digits and what they come to; 346×7 -> 642,432,324, digits and totals.

    of_one_width: with the zeros that are missing; without them 345+78 -> 583,472,34.
    """
    parts = []
    for place, (x, y, _, total) in enumerate(by_hand(a, operator, b)):
        if operator == "×":
            parts.append(f"{x}{total:02}" if of_one_width else f"{x}{total}")
        else:
            has_y = of_one_width or place < len(str(b))
            has_x = of_one_width or place < len(str(a))
            parts.append(f"{x}" * has_x + f"{y}" * has_y + f"{total % 10}")
    return ",".join([*parts, "1"] if operator == "+" and total > 9 else parts)


def calculations(a: int, operator: str, b: int) -> str:
    """345+78 -> 5+8=13,4+7+1=12,3+0+1=4; 503-278 -> 13-8=5,10-7-1=2,5-2-1=2"""
    parts = []
    for x, y, carry, total in by_hand(a, operator, b):
        x, total = (x + 10, total + 10) if total < 0 else (x, total)
        carried = f"{'-' if operator == '-' else '+'}{carry}" * bool(carry)
        parts.append(f"{x}{operator}{y}{carried}={total}")
    return ",".join(parts)


SPELLINGS = {  # what stands between a calculation and its result
    "at once": lambda a, operator, b: "",
    "backwards": lambda a, operator, b: "~" + str(RESULTS[operator](a, b))[::-1],
    "each column a calculation": lambda *calculation: ":" + calculations(*calculation),
    "columns": lambda *calculation: "~" + plain_columns(*calculation, of_one_width=False),
    "columns of one width": lambda *calculation: "~" + plain_columns(*calculation, of_one_width=True),
    "and carries, products": lambda *calculation: "~" + columns(*calculation),
}


def is_kept_from_learning(a: int, operator: str, b: int) -> bool:
    """One calculation in ten, by its text."""
    return crc32(f"{a}{operator}{b}".encode()) % 10 == 0


def draw(rng: random.Random, for_learning: bool) -> tuple[int, str, int]:
    """(a, operator, b): sums and differences of 1 to 5 digits, products of 2 to 4 digits by one digit."""
    number = lambda length: rng.randint(10 ** (length - 1), 10**length - 1)
    operator = rng.choice("+-×")
    if operator == "×":
        a, b = number(rng.choice((2, 2, 2, 3, 3, 4))), rng.randint(2, 9)
    else:
        a, b = number(rng.choice((1, 2, 2, 2, 3, 3, 4, 5))), number(rng.choice((1, 2, 2, 3, 4)))
    if operator == "-":
        a, b = max(a, b) + (a == b), min(a, b)
    if is_kept_from_learning(a, operator, b) == for_learning:
        return draw(rng, for_learning)
    return a, operator, b


def rows(spelling, calculations: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, labels (N, T) and loss weights, 1 behind the calculation and 0 in it and in the padding."""
    ids, weights = [], []
    for a, operator, b in calculations:
        head = f"\n{a}{operator}{b}"
        text = f"{head}{spelling(a, operator, b)}={RESULTS[operator](a, b)}\n"
        ids.append(torch.tensor([CHARACTERS.index(character) for character in text]))
        weights.append(torch.arange(1, len(text)).ge(len(head)).float())
    ids = pad_sequence(ids, batch_first=True)
    return ids[:, :-1], ids[:, 1:], pad_sequence(weights, batch_first=True)


def learn(spelling, tokens: int, seed: int) -> WeakWater:
    torch.manual_seed(seed)
    rng, model = random.Random(seed), WeakWater(LLMConfig.preset("tiny", vocab_size=len(CHARACTERS)))
    some = rows(spelling, [draw(rng, for_learning=True) for _ in range(500)])[1]
    count = int(STEP_TOKENS * len(some) / (some > 0).sum())  # calculations in a step
    optimizers, step, seen = make_optimizers(model, weight_decay=0.1, embedding_rate=1.0), 0, 0
    while seen < tokens:
        batch = rows(spelling, [draw(rng, for_learning=True) for _ in range(count)])
        (model(batch[0], None, *batch[1:]) / batch[2].sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step, left = step + 1, 1 - seen / tokens
        rate = RATE * min(1, step / WARMUP_STEPS, max(0.1, left / FALLING))
        update(optimizers, rate, torch.tensor(True))
        model.zero_grad()
        seen += int((batch[1] > 0).sum())
    return model


@torch.no_grad()
def spelled_right(model, spelling) -> dict[str, list[float]]:
    """{operator: shares without a mistake where the longer number has as many digits as each of LENGTHS}.

    Right is what follows likeliest, character by character, from the right text: so would a greedy reply be.
    """
    rng, found = random.Random(0), {operator: {length: [] for length in LENGTHS} for operator in RESULTS}
    for a, operator, b in (draw(rng, for_learning=False) for _ in range(TESTED)):
        ids, labels, weights = rows(spelling, [(a, operator, b)])
        is_right = ((model(ids).argmax(-1) == labels) | (weights == 0)).all().item()
        found[operator].get(min(LENGTHS[-1], len(str(max(a, b)))), []).append(is_right)
    return {operator: [mean(each) for each in by_length.values()] for operator, by_length in found.items()}


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=400_000, help="to learn, of each spelling")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of what is learned")
    args = parser.parse_args(argv)
    if args.tokens < 1:
        raise UserError(f"found --tokens {args.tokens}, expected at least 1")
    heads = ", ".join(f"{a}{operator}{b}" for a, operator, b in EXAMPLES)
    print(f"| spelling | of {heads} | sums | differences | products |\n|---|---|---|---|---|")
    for name, spelling in SPELLINGS.items():
        found = spelled_right(learn(spelling, args.tokens, args.seed), spelling)
        examples = [f"`{spelling(*one)}`" for one in EXAMPLES if spelling(*one)]
        shares = [", ".join(f"{share:.0%}" for share in by_length) for by_length in found.values()]
        print(f"| {name} | {' '.join(examples)} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
