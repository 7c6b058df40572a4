"""A bounded sample of the texts of a JSONL file, taken evenly from its whole length."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.cli import UserError
from infra.jsonl import parse_line

SAMPLE_BYTES, SAMPLE_WINDOWS = 2**24, 64


def sample_lines(path: Path) -> Iterator[bytes]:
    """Whole lines: all up to SAMPLE_BYTES, else those of evenly spread windows that add up to so much."""
    size = path.stat().st_size
    windows = SAMPLE_WINDOWS if size > SAMPLE_BYTES else 1
    with open(path, "rb") as file:
        for window in range(windows):
            start = window * size // windows
            file.seek(start)
            if start:
                file.readline()  # the rest of a line that began before the window
            end = start + min(size, SAMPLE_BYTES) // windows
            while file.tell() < end and (line := file.readline()):
                yield line


def texts_of(lines: Iterable[bytes], field: str) -> Iterator[str]:
    """The texts in lines, passing over bad ones: training will name them."""
    for line in lines:
        try:
            content = parse_line(line.removeprefix(b"\xef\xbb\xbf"), field)
        except UserError:
            continue
        if field == "text":
            yield content
        else:
            yield from (message["content"] for message in content)


def mixed_in(texts: Iterable[str], other: str, every: int = 50) -> Iterator[str]:
    """The texts, and before each `every`th of them another one."""
    for number, text in enumerate(texts):
        if number % every == 0:
            yield other
        yield text
