"""What a person types and what is shown to them."""

import codecs
import sys
from collections.abc import Iterable, Iterator

from infra.cli import visible

DIM, PLAIN = "\033[2m", "\033[0m"


def typed_lines(greeting: str, given: str | None = None) -> Iterator[str]:
    """The `given` line alone, else those that a person types after a greeting or that a pipe brings.

    Blank ones are left out, and bytes that are no UTF-8 become U+FFFD.
    """
    for line in [given] if given is not None else read_lines(greeting):
        if line.strip():
            yield line.strip().encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_lines(greeting: str) -> Iterator[str]:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(greeting)
    while True:
        try:
            yield input("> " if is_terminal else "")
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the program)")
        except EOFError:
            return


def as_text(tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of a stream of token ids, whole characters only: a token may end within one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        if text := decoder.decode(tokenizer.bytes_of(id)):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def print_stream(texts: Iterable[str]) -> str:
    """Print a reply as it comes; returns it whole. Ctrl-C ends it. On a terminal its thinking is dim."""
    is_terminal, parts = sys.stdout.isatty(), []
    try:
        for text in texts:
            parts.append(text)
            shown = visible(text)
            if is_terminal:
                shown = shown.replace("<think>", DIM + "<think>").replace("</think>", "</think>" + PLAIN)
            print(shown, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    reply = "".join(parts)
    print((PLAIN if is_terminal else "") + ("" if reply.strip() else "(an empty reply)"))
    return reply
