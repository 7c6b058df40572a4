"""Questions with a known answer, from rows or from a file, and which of their replies are right."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from infra.cli import UserError
from infra.jsonl import check_file, numbered_lines, parse_line
from infra.scoring import is_right, is_well_formed
from infra.tokenizer import BOS, EOS

BEGINNING = 16  # tokens of a text that is to be continued
Question = tuple[list[int], str]  # the prompt's ids, the expected reply


def first_questions(rows, most: int) -> list[Question]:
    """What up to `most` conversations of PackedRows ask first, if that fits a row together with its reply.

    Raises UserError where there is none.
    """
    found = []
    for document in rows.documents:
        ids, start = rows.cache.document(document)[0].tolist(), int(rows.cache.first_counted[document])
        end = ids.index(EOS, start)
        if end < rows.row_length:
            found.append((ids[:start], rows.cache.tokenizer.decode(ids[start:end])))
        if len(found) == most:
            break
    if not found:
        expected = f"expected conversations whose first reply ends within --max_seq_len ({rows.row_length})"
        found = f"found none among {len(rows.documents)} (another --val_path may have some)"
        raise UserError(f"{rows.cache.about['file']}: {expected}, {found}")
    return found


def first_prompts(rows, most: int = 2) -> list[list[int]]:
    """How up to `most` documents of PackedRows begin, if that leaves room in a row: conversations up to what
    counts in the loss, texts for BEGINNING tokens."""
    is_text, prompts = rows.cache.about["source"]["field"] == "text", []
    for document in rows.documents:
        start = BEGINNING if is_text else int(rows.cache.first_counted[document])
        if start < rows.row_length:
            prompts.append(rows.cache.document(document)[0][:-1][:start].tolist())
        if len(prompts) == most:
            break
    return prompts


def read_conversations(path: str | Path) -> Iterator[list[dict]]:
    """The messages of each line of a JSONL file. Raises UserError at a bad line."""
    return read_all(path, "conversations")


def read_all(path: str | Path, field: str) -> Iterator:
    """The messages, or the text, of each line of a JSONL file. Raises UserError at a bad line."""
    for number, line in numbered_lines(check_file(path)):
        try:
            yield parse_line(line, field)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None


def first_question(messages: list[dict], to_prompt: Callable[[list[dict]], list[int]]) -> Question:
    """What a conversation asks first. to_prompt: messages -> the ids of the prompt that they make."""
    first_reply = [message["role"] for message in messages].index("assistant")
    return to_prompt(messages[:first_reply]), messages[first_reply]["content"]


def read_questions(path: str | Path, to_prompt: Callable[[list[dict]], list[int]]) -> list[Question]:
    """What the conversations of a JSONL file ask first. Raises UserError at a bad line, or without any."""
    questions = [first_question(messages, to_prompt) for messages in read_conversations(path)]
    if not questions:
        raise UserError(f"{path}: expected conversations, found an empty file")
    return questions


def prompt_of(text: str, tokenizer, prompt_ids: Callable, is_base: bool) -> list[int]:
    """The ids that ask for what follows a text: a user's message or, of a base model, the text as it stands.

    prompt_ids: dataset's.
    """
    if is_base:
        return [BOS, *tokenizer.encode(text)]
    return prompt_ids(tokenizer, [{"role": "user", "content": text}])


def judge(replies: Iterable[str], questions: list[Question]) -> list[dict]:
    """[{"reply", "is_right", "is_well_formed"}, ...] in the order of the questions."""
    return [
        {"reply": reply, "is_right": is_right(reply, expected), "is_well_formed": is_well_formed(reply)}
        for reply, (_, expected) in zip(replies, questions, strict=True)
    ]


def interval(share: float, count: int) -> list[float]:
    """The 95% interval of a share of `count` (Wilson 1927)."""
    z = 1.96
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [abs(round(bound / (1 + z * z / count), 4)) for bound in (middle - half, middle + half)]
