"""JSONL files: which file it is, its lines, and what can be wrong with one.

`field` is the key under which a line has its content: "text" for a text, "conversations" for a list of
messages.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from infra.cli import UserError

ROLES = ("system", "user", "assistant")
EXPECTED = {
    "text": 'a text under "text": {"text": "..."}',
    "conversations": 'a list under "conversations": '
    '{"conversations": [{"role": "user", "content": "..."}, ...]}',
}
BAD_LINE_ADVICE = "Fix the line, or pass --skip_bad_lines to leave out all bad lines"
BATCH_BYTES = 2**21  # of lines that are handed out together
BAD_LINES_KEPT = 1000  # of which the place and the reason are kept; all are counted
OFFICIAL_DATA = ("pretrain.jsonl", "sft_512.jsonl", "sft_1024.jsonl", "r1_1024.jsonl")
OTHER_FILES = {  # by their first bytes
    b"\x1f\x8b": ("a gzip file", "run gunzip first"),
    b"\xfd7zXZ": ("an xz file", "run unxz first"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "run unzstd first"),
    b"PK\x03\x04": ("a zip file", "unpack it first"),
    b"PAR1": ("a Parquet file", "convert it to one JSON object a line"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}


class BadLine(UserError):
    """A line that cannot be used: the message says why, `kind` says it in a few words, for counts."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class BadLines:
    """The bad lines of a file: how many of each kind, and (number, reason) of the first ones."""

    def __init__(self):
        self.kinds, self.first = Counter(), []

    def add(self, number: int, error: BadLine) -> None:
        self.kinds[error.kind] += 1
        if len(self.first) < BAD_LINES_KEPT:
            self.first.append((number, str(error)))


def count_kinds(kinds: dict[str, int]) -> str:
    """{"not JSON": 2, "no reply": 1} -> "2 not JSON, 1 no reply"."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def parse_line(line: bytes, field: str):
    """One line -> its text (str), or its messages (list of dicts). Raises BadLine."""
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        place = f"the byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise BadLine("not UTF-8", f"expected UTF-8 text, found {place}") from None
    except RecursionError:
        raise BadLine("not JSON", f"expected {EXPECTED[field]}, found too deeply nested lists") from None
    except ValueError as error:
        raise BadLine("not JSON", f"expected a JSON object, found {shorten(line)} ({error})") from None
    content = document.get(field) if isinstance(document, dict) else None
    if not isinstance(content, str if field == "text" else list):
        raise BadLine(f'no "{field}"', f"expected {EXPECTED[field]}, found {describe(document, field)}")
    if field == "text":
        check_text(content, '"text"')
    else:
        check_messages(content)
        if all(message["role"] != "assistant" for message in content):
            reason = "found none: there is nothing to learn from"
            raise BadLine("no reply", f"expected a message of the assistant, {reason}")
    return content


def check_messages(messages: list) -> None:
    """Raises BadLine for a list that is not a conversation."""
    if not messages:
        raise BadLine("no messages", 'expected messages under "conversations", found an empty list')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            expected = f'{{"role", "content"}} as message {number}'
            raise BadLine("broken message", f"expected {expected}, found {describe(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            expected = f"the role of message {number} to be one of {', '.join(ROLES)}"
            raise BadLine("unknown role", f"expected {expected}, found {describe(role)}")
        if not isinstance(content, str):
            expected = f"a text as the content of message {number}"
            raise BadLine("broken message", f"expected {expected}, found {describe(content)}")
        check_text(content, f"message {number}")


def check_text(text: str, where: str) -> None:
    if not text.strip():
        raise BadLine("empty text", f"expected some text in {where}, found none")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair (\\u{ord(text[error.start]):04x})"
        raise BadLine("half a surrogate pair", f"expected Unicode text in {where}, found {half}") from None


def describe(value, field: str | None = None) -> str:
    """A short name for a JSON value: "a list", "a number under "text"", "nothing" for null."""
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, dict) and field in value:
        return f'{describe(value[field])} under "{field}"'
    if isinstance(value, dict) and value:
        return "only " + shorten(", ".join(json.dumps(key) for key in value).encode(errors="replace"))
    if isinstance(value, str):
        return json.dumps(value[:40], ensure_ascii=True)
    return "nothing" if value is None else names[type(value)]


def shorten(line: bytes, most: int = 60) -> str:
    text = line.strip().decode("utf-8", "replace")
    short = text if len(text) <= most else text[:most] + "..."
    return short if text.isprintable() else ascii(short)


def check_file(path: str | Path) -> Path:
    """`path` as a Path. Raises FileNotFoundError or UserError unless it can be a JSONL file."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a JSONL file, found a folder")
    if not path.is_file():
        advice = "pass the path of a JSONL file"
        if path.name in OFFICIAL_DATA:
            advice = f"modelscope download --dataset Harris/pretrain {path.name} --local_dir ./"
        generated = "or try generated files: python tools/sample_data.py --out_dir data"
        raise FileNotFoundError(f"{path} not found: {advice}   ({generated})")
    with open(path, "rb") as file:
        begin = file.read(max(map(len, OTHER_FILES)))
    for magic, (name, advice) in OTHER_FILES.items():
        if begin.startswith(magic):
            raise UserError(f"{path}: expected a JSONL file, found {name}: {advice}")
    return path


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of each line that is not blank."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def detect_field(path: Path) -> str:
    """The field of the first line that has one: "text" or "conversations"."""
    for _, line in numbered_lines(path):
        for field in EXPECTED:
            try:
                parse_line(line, field)
                return field
            except BadLine:
                continue
    raise UserError(f"{path}: found no line with {EXPECTED['text']} or {EXPECTED['conversations']}")


def read_documents(path: Path, field: str, skip_bad_lines: bool, bad: BadLines) -> Iterator[list]:
    """Lists of parsed lines, about BATCH_BYTES each. A bad line is added to `bad`, or raises UserError."""
    documents, size = [], 0
    if not sys.stderr.isatty():
        print(f"tokenizing {path.name} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    bar = tqdm(
        total=path.stat().st_size, desc=f"tokenizing {path.name}", unit="B", unit_scale=True, disable=None
    )
    with bar:
        for number, line in numbered_lines(path):
            try:
                documents.append(parse_line(line, field))
            except BadLine as error:
                if not skip_bad_lines:
                    raise UserError(f"{path}:{number}: {error}. {BAD_LINE_ADVICE}") from None
                bad.add(number, error)
            size += len(line)
            bar.update(len(line))
            if size >= BATCH_BYTES and documents:
                yield documents
                documents, size = [], 0
    if documents:
        yield documents
