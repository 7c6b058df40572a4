"""The loss mask made visible: each token with what it is for, and what a file loses in packing."""

import sys

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
    tokens, lengths, counted = (
        len(cache.ids),
        np.diff(cache.ends, prepend=0),
        np.count_nonzero(cache.loss_mask),
    )
    about, one_each = cache.about, 1 - rows.useful / (len(rows.starts) * rows.row_length)
    lost, bad = lost_tokens(cache, rows.row_length) if rows.truncated else 0, sum(about["bad_kinds"].values())
    share = rows.truncated / len(cache)
    print(f"\ndocuments  {len(cache)}, {lengths.mean():.1f} tokens on average, {lengths.max()} at most")
    print(f"tokens     {tokens}, {counted} in the loss ({counted / tokens:.1%})")
    cut = f"{rows.truncated} documents ({share:.2%}), {lost} tokens of the loss lost"
    print(f"truncated  {cut}, at {rows.row_length} tokens")
    print(
        f"padding    {rows.padding_share:.2%} of {len(rows)} rows; one document a row would be {one_each:.2%}"
    )
    print(f"bad lines  {bad}" + (f" ({count_kinds(about['bad_kinds'])})" if bad else ""))
    for number, reason in about["bad_lines"][:20]:
        print(f"  {about['file']}:{number}: {visible(reason)}")
    if bad > 20:
        print(f"  ... and {bad - 20} more")


def lost_tokens(cache: TokenCache, row_length: int) -> int:
    """Tokens of the loss that went with the ends of truncated conversations."""
    starts, ends = cache.spans(np.arange(len(cache)))
    return sum(
        np.count_nonzero(cache.loss_mask[start + row_length + 1 : end]) for start, end in zip(starts, ends)
    )


def colour_document(ids, loss_mask, tokenizer: ChatTokenizer, cut_at: int, has_colours: bool) -> str:
    """A document's tokens between bars. Without colours, a run of tokens begins with its name in brackets."""
    shown, before = [], None
    for position, (id, mask) in enumerate(zip(ids.tolist(), loss_mask.tolist())):
        name = "cut off" if position > cut_at else NAME_OF_MASK[mask]
        label = f"[{name}]" if name != before and not has_colours else ""
        shown.append(label + paint(readable(tokenizer, id), name, has_colours))
        before = name
    return "|".join(shown)


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
