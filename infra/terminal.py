"""What a person types and what is shown to them."""

import codecs
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from infra.cli import visible
from infra.thinking import IN_CIRCLES, InCircles
from infra.tokenizer import TAGS

DIM, PLAIN = "\033[2m", "\033[0m"


def is_terminal(file) -> bool:
    """Whether escape sequences written to an open file become colours."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def typed_lines(greeting: str, given: str | None = None, words: Iterable[str] = ()) -> Iterator[str]:
    """The `given` line alone, else those that a person types after a greeting or that a pipe brings.

    Blank ones are left out, and bytes that are no UTF-8 become U+FFFD. words: what the tab key completes.
    """
    for line in [given] if given is not None else read_lines(greeting, words):
        if line.strip():
            yield line.strip().encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_lines(greeting: str, words: Iterable[str]) -> Iterator[str]:
    is_person = sys.stdin.isatty()
    read = editor(words) if is_person and is_terminal(sys.stdout) else input
    if is_person:
        print(greeting)
    while True:
        try:
            yield read("> " if is_person else "")
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the program)")
        except EOFError:
            return


def editor(words: Iterable[str]) -> Callable[[str], str]:
    """`input`, with editing, a history, completion by the tab key, and Alt-Enter for a new line."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        return input

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    completer = WordCompleter(list(words), sentence=True)
    return PromptSession(completer=completer, complete_while_typing=False, key_bindings=keys).prompt


def as_text(tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of a stream of token ids, whole characters only: a token may end within one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        if text := decoder.decode(tokenizer.bytes_of(id)):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def print_stream(texts: Iterable[str], is_folded=False) -> str:
    """Print a reply as it comes; returns it whole. Ctrl-C ends it, and so does going in circles.

    On a terminal its tags are not shown, and its thinking is dim or, if `is_folded`, a line.
    """
    has_colours, parts = is_terminal(sys.stdout), []
    shown = for_terminal(texts, parts, is_folded) if has_colours else remembered(texts, parts)
    try:
        for text in shown:
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except InCircles:
        print(IN_CIRCLES, end="")
    reply = "".join(parts)
    print((PLAIN if has_colours else "") + ("" if reply.strip() else "(an empty reply)"))
    return reply


def remembered(texts: Iterable[str], parts: list[str]) -> Iterator[str]:
    """The texts, their escape sequences made visible; `parts` collects them as they were."""
    for text in texts:
        parts.append(text)
        yield visible(text)


def for_terminal(texts: Iterable[str], parts: list[str], is_folded: bool) -> Iterator[str]:
    """The same without tags, the thinking dim or folded; blank lines around it are left out."""
    is_thinking, is_at_start, start = False, True, 0.0
    for text in remembered(texts, parts):
        if text == "<think>":
            is_thinking, start = True, time.perf_counter()
            yield DIM + ("thinking ..." if is_folded else "")
        elif text == "</think>" and is_thinking:
            is_thinking, is_at_start = False, True
            thought = f"\rthought for {time.perf_counter() - start:.1f} seconds"
            yield (thought if is_folded else "") + PLAIN + "\n"
        elif text not in TAGS:
            text = text.lstrip() if is_at_start else text
            is_at_start = is_at_start and not text
            yield "" if is_thinking and is_folded else text


def print_stats(tokens: int, seconds: float, used: int, context: int) -> None:
    """A dim line under a reply, on a terminal alone."""
    if is_terminal(sys.stdout):
        speed = f"{tokens / seconds:.0f} a second" if seconds else "at once"
        print(f"{DIM}{tokens} tokens, {speed}; {used / context:.0%} of the context in use{PLAIN}")
