"""The loss mask made visible: each token with what it is for, and what a file loses in packing."""

import sys
from collections.abc import Iterator

import numpy as np

from infra.cli import visible
from infra.jsonl import count_kinds
from infra.token_cache import TokenCache
from infra.tokenizer import CONTROL_TOKENS, ChatTokenizer

NAME_OF_MASK = ("ignored", "counted", "tag")
COLOURS = {"ignored": "\033[2m", "counted": "\033[32m", "tag": "\033[1;35m", "cut off": "\033[31;9m"}


def show(rows, count: int, cut_at: int) -> None:
    """Print `count` documents of PackedRows, cut at `cut_at` tokens, then what the file holds and loses."""
    cache, has_colours = rows.cache, sys.stdout.isatty()
    print("one token between two bars: " + "  ".join(paint(name, name, has_colours) for name in COLOURS))
    for document in range(min(count, len(cache))):
        print(f"\n--- document {document + 1} ---")
        print(colour_document(*cache.document(document), cache.tokenizer, cut_at, has_colours))
    print()
    for name, text in facts(rows).items():
        print(f"{name:<10} {text}")
    for line in bad_lines(cache.about):
        print(f"  {line}")


def facts(rows) -> dict[str, str]:
    """What a file holds and what it loses in packing, held-out documents included."""
    cache, lengths, useful = rows.cache, np.diff(rows.cache.ends, prepend=0), int(rows.lengths.sum())
    tokens, counted, kinds = len(cache.ids), np.count_nonzero(cache.loss_mask), cache.about["bad_kinds"]
    truncated, lost = truncation(cache, rows.row_length)
    cut = f"{truncated} documents ({truncated / len(cache):.2%}), {lost} tokens of the loss lost"
    packed = round(useful / (1 - rows.padding_share) / rows.row_length)  # len(rows), but not of sampled ones
    one_each = 1 - useful / (len(rows.lengths) * rows.row_length)
    return {
        "documents": f"{len(cache)}, {lengths.mean():.1f} tokens on average, {lengths.max()} at most",
        "tokens": f"{tokens}, {counted} in the loss ({counted / tokens:.1%})",
        "truncated": f"{cut}, at {rows.row_length} tokens",
        "padding": f"{rows.padding_share:.2%} of {packed} rows; one document a row would be {one_each:.2%}",
        "bad lines": f"{sum(kinds.values())}" + (f" ({count_kinds(kinds)})" if kinds else ""),
    }


def bad_lines(about: dict) -> list[str]:
    """The first bad lines of a file with their reasons, and how many more there are."""
    first = [f"{about['file']}:{number}: {visible(reason)}" for number, reason in about["bad_lines"][:20]]
    more = sum(about["bad_kinds"].values()) - len(first)
    return first + [f"... and {more} more"] * bool(more)


def truncation(cache: TokenCache, row_length: int) -> tuple[int, int]:
    """How many conversations are truncated, and the tokens of the loss that go with their ends."""
    if cache.about["source"]["field"] == "text":
        return 0, 0
    starts, ends = cache.spans(np.flatnonzero(np.diff(cache.ends, prepend=0) > row_length + 1))
    lost = (cache.loss_mask[start + row_length + 1 : end] for start, end in zip(starts, ends))
    return len(starts), sum(map(np.count_nonzero, lost))


def colour_document(ids, loss_mask, tokenizer: ChatTokenizer, cut_at: int, has_colours: bool) -> str:
    """A document's tokens between bars. Without colours, a run of tokens begins with its name in brackets."""
    shown, before = [], None
    for text, name in named_tokens(ids, loss_mask, tokenizer, cut_at):
        label = f"[{name}]" if name != before and not has_colours else ""
        shown.append(label + paint(text, name, has_colours))
        before = name
    return "|".join(shown)


def named_tokens(ids, loss_mask, tokenizer: ChatTokenizer, cut_at: int) -> Iterator[tuple[str, str]]:
    """Each token as (readable text, what it is for: a key of COLOURS)."""
    for position, (id, mask) in enumerate(zip(ids.tolist(), loss_mask.tolist())):
        yield readable(tokenizer, id), "cut off" if position > cut_at else NAME_OF_MASK[mask]


def paint(text: str, name: str, has_colours: bool) -> str:
    return f"{COLOURS[name]}{text}\033[0m" if has_colours else text


def readable(tokenizer: ChatTokenizer, id: int) -> str:
    """A token as text: its bytes in hexadecimal if they are a part of a character, a newline as a sign."""
    if id < len(CONTROL_TOKENS):
        return CONTROL_TOKENS[id]
    text = tokenizer.decode([id])
    if "\ufffd" in text:
        return "<" + " ".join(f"{byte:02x}" for byte in tokenizer.bytes_of(id)) + ">"
    return visible(text.replace("\n", "⏎").replace("\t", "⇥"))
