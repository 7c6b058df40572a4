"""The shapes that comments in the model's source promise, with the numbers of one forward."""

import inspect
import math
import re


def shape_lines(model, length: int) -> dict[str, list[dict]]:
    """{"attention", "decoder", "model": [{"line", "code", "shape", "numbers"}, ...]}: the lines of these
    classes that end in a shape, for one sequence of `length` tokens.

    `x = self.embed_tokens(input_ids)  # (B, T, C)` -> {"shape": "(B, T, C)", "numbers": "(1, 20, 512)", ...}
    """
    config = model.config
    letters = {"B": 1, "T": length, "S": length, "C": config.hidden_size, "V": config.vocab_size}
    letters |= {"H": config.num_attention_heads, "K": config.num_key_value_heads, "D": config.head_dim}
    parts = {"attention": model.model.layers[0].self_attn, "decoder": model.model, "model": model}
    found = {}
    for name, part in parts.items():
        lines, first = inspect.getsourcelines(type(part))
        found[name] = [
            {"line": number, "code": code, "shape": shape, "numbers": with_numbers(shape, letters)}
            for number, line in enumerate(lines, first)
            for code, shape in re.findall(r"^\s*(\S.*\S)\s+# (\(\w[\w ,]*\))$", line)
        ]
    return found


def with_numbers(shape: str, letters: dict[str, int]) -> str:
    """(B, T, H D) -> (1, 20, 512): letters that stand together are multiplied."""

    def number(dimension):
        numbers = [letters.get(word, word) for word in dimension.split()]
        if all(type(one) is int for one in numbers):
            return str(math.prod(numbers))
        return " ".join(map(str, numbers))  # "T or 1"

    return "(" + ", ".join(map(number, shape.strip("()").split(","))) + ")"
