"""Multiple choice: which option a model finds likeliest, by its letter and by its text.

A line is {"question": "...", "choices": ["...", "..."], "answer": 1}, with the number of the right choice,
from 0. *By letter*: the options stand in the prompt, and the likeliest of A, B, C, ... is taken. *By text*:
they do not, and the option is taken whose text has the highest log-likelihood per byte.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from infra.cli import UserError
from infra.jsonl import BadLine, check_file, check_text, numbered_lines, shorten
from infra.likelihood import log_likelihoods
from infra.questions import interval

LETTERS = "ABCDEFGHIJ"
EXPECTED = '{"question": a text, "choices": 2 to 10 texts, "answer": the number of the right one, from 0}'


def has_choices(path: str | Path) -> bool:
    """Whether the first line of a JSONL file is a question with choices."""
    for _, line in numbered_lines(check_file(path)):
        return isinstance(parsed(line), dict) and "choices" in parsed(line)
    return False


def parsed(line: bytes):
    """The JSON of a line, None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_choices(path: str | Path) -> list[dict]:
    """The questions of a JSONL file. Raises UserError at a line that is none."""
    found = []
    for number, line in numbered_lines(check_file(path)):
        found.append(parsed(line))
        try:
            check_question(found[-1], line)
        except BadLine as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return found


def check_question(item, line: bytes) -> None:
    """Raises BadLine unless `item`, the JSON of a line, is a question with choices."""
    choices, answer = (item.get(name) for name in ("choices", "answer")) if isinstance(item, dict) else (0, 0)
    is_list = isinstance(choices, list) and 2 <= len(choices) <= len(LETTERS)
    texts = [item.get("question"), *choices] if is_list else [None]
    is_known = type(answer) is int and is_list and 0 <= answer < len(choices)
    if not is_known or not all(isinstance(text, str) for text in texts):
        raise BadLine("no question", f"expected {EXPECTED}, found {shorten(line)}")
    for text in texts:
        check_text(text, "the question and its choices")


def score_choices(model, tokenizer, path, ask: Callable[[str], list[int]], space="") -> tuple[dict, list]:
    """({"questions", "by_letter", ...: shares of right answers, their 95% intervals, chance}, the items).

    ask: a text -> the ids of the prompt that it makes; space: what stands between a prompt and its answer.
    """
    items = read_choices(path)
    continued = [
        [(ask(prompt), tokenizer.encode(space + text)) for text in texts]
        for item in items
        for prompt, texts in ((listed(item), LETTERS[: len(item["choices"])]), (bare(item), item["choices"]))
    ]
    nats = iter(log_likelihoods(model, [pair for pairs in continued for pair in pairs], shows_progress=True))
    judged = []
    for item in items:
        letters, texts = ([next(nats) for _ in item["choices"]] for _ in range(2))
        per_byte = [one / len(text.encode()) for one, text in zip(texts, item["choices"])]
        chosen = {"by_letter": letters.index(max(letters)), "by_text": per_byte.index(max(per_byte))}
        judged.append({**item, **chosen, "letters": letters, "texts": texts})
    found = {"questions": len(items)}
    for name in ("by_letter", "by_text"):
        found[name] = sum(one[name] == one["answer"] for one in judged) / len(judged)
        found[f"{name}_95"] = interval(found[name], len(items))
    return {**found, "chance": mean(1 / len(item["choices"]) for item in items)}, judged


def listed(item: dict) -> str:
    options = (f"{letter}. {text}\n" for letter, text in zip(LETTERS, item["choices"]))
    return f"{item['question'].strip()}\n{''.join(options)}答案："


def bare(item: dict) -> str:
    return f"{item['question'].strip()}\n答案："
