"""From JSONL to rows of tokens; run as a script, a lens on what is graded.

    python dataset.py --show sft_512.jsonl

One line of a file is one *document*: {"text": "..."} for pretraining, {"conversations": [{"role", "content"}, ...]} for SFT
and distillation. A file is tokenized once, into a *cache* of memory-mapped arrays; documents are then packed into *rows* of
T positions. Each position holds a token, its label (the next token of the same document), the label's weight in the loss,
and the number of its document within the row (0 for padding), which attention uses to keep documents apart.

The chat format has its only copy here. Each message is `<s>role\\ncontent</s>\\n`, a reply is opened by `<s>assistant\\n`, and
while a conversation is written down, it is known of every token whether it is graded: nothing is searched for afterwards.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from tokenizers import Tokenizer
from tqdm import tqdm

from Config import SHORTEST_ROW, LLMConfig, named_disk_errors, run_script, write_atomically

CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<think>", "</think>", "<answer>", "</answer>")  # ids 0 to 6
PAD, BOS, EOS = 0, 1, 2
TAGS = {text: id for id, text in enumerate(CONTROL_TOKENS) if id > EOS}
TAG_PATTERN = re.compile("(" + "|".join(TAGS) + ")")
ROLES = ("system", "user", "assistant")
DEFAULT_SYSTEM = "你是 WeakWater，一个从零训练的中文小语言模型。"
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<s>system\\n" + DEFAULT_SYSTEM + "</s>\\n' }}{% endif %}"
    "{%- for message in messages %}{{ '<s>' + message['role'] + '\\n' + (message['content'] | trim) + '</s>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
EXPECTED = {
    "text": 'a text under "text": {"text": "..."}',
    "conversations": 'a list under "conversations": {"conversations": [{"role": "user", "content": "..."}, ...]}',
}
BAD_LINE_ADVICE = "Mend the line, or pass --skip_bad_lines to leave out all bad lines"
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

NOT_GRADED, GRADED, TAG = 0, 1, 2  # what an error on a token costs: nothing, 1, or the weight of a reasoning tag
ENCODER_VERSION = 3                # raise it when the same line would give another cache
BAD_LINES_KEPT = 1000              # of which the place and the reason are kept; all are counted
BATCH_BYTES = 2**21                # of JSONL that are tokenized together
PACK_TOGETHER = 2**18              # pieces that are packed into rows together
HELD_OUT_SHARE, HELD_OUT_TOKENS = 0.01, 100_000


# ---- tokens and the chat format ----


def byte_alphabet():
    """The character by which byte-level BPE spells each byte (Radford et al. 2019): printable ones spell themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_alphabet()


class ChatTokenizer:
    """The byte-level BPE of a tokenizer folder, which no text can make emit a control token.

    Raises FileNotFoundError where there is no tokenizer, ValueError where it is not one of ours.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        for needed in (path, self.folder / "tokenizer_config.json"):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} not found: run train_tokenizer.py first, or pass --tokenizer")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            # without added tokens the text `<s>` is three characters like any others
            plain = json.dumps({**stored, "added_tokens": [], "padding": None, "truncation": None}, sort_keys=True)
            self.plain = Tokenizer.from_str(plain)
            vocabulary = stored["model"]["vocab"]
            self.about = dict(json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8")))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValueError(f"{path}, or tokenizer_config.json beside it: not a tokenizer file ({error})") from None
        if [vocabulary.get(token) for token in CONTROL_TOKENS] != list(range(len(CONTROL_TOKENS))):
            raise ValueError(f"{path}: expected the control tokens {' '.join(CONTROL_TOKENS)} as ids 0 to {len(CONTROL_TOKENS) - 1}")
        self.fingerprint = hashlib.sha256(plain.encode()).hexdigest()[:16]
        self.vocabulary_hash = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()[:16]
        self.spelling = {id: token for token, id in vocabulary.items()}  # a byte-level BPE spells a byte as one character
        try:
            self.token_bytes = np.array([len(self.bytes_of(id)) for id in range(len(vocabulary))])
        except KeyError:
            raise ValueError(f"{path}: expected a byte-level BPE with the ids 0 to {len(vocabulary) - 1}") from None

    def __len__(self):
        return len(self.token_bytes)

    def encode(self, text):
        """Ids of a text, none of them a control token."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def encode_together(self, texts):
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self.plain.encode_batch_fast(texts, add_special_tokens=False)]

    def bytes_of(self, id):
        """The UTF-8 bytes of a token, which may begin or end within a character; of control tokens only tags have any."""
        if id < len(CONTROL_TOKENS):
            return CONTROL_TOKENS[id].encode() if id > EOS else b""
        return bytes(BYTE_OF_CHARACTER[character] for character in self.spelling[id])

    def decode(self, ids):
        """The text of ids. Invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def prompt_ids(self, messages):
        """Ids of a conversation that the assistant is to continue, ending in `<s>assistant\\n`."""
        return encode_records(self, [messages])[0].tolist() + [BOS, *self.encode("assistant\n")]

    @property
    def max_length(self):
        """Tokens that the checkpoint beside it was trained to see together."""
        return self.about.get("model_max_length") or sys.maxsize

    def save_pretrained(self, folder, max_length):
        """Write the tokenizer's files into a checkpoint's folder, with the length that the checkpoint is good for."""
        about = json.dumps({**self.about, "model_max_length": max_length}, ensure_ascii=False, indent=2) + "\n"
        stored = (self.folder / "tokenizer.json").read_bytes()
        write_atomically(Path(folder) / "tokenizer.json", lambda path: path.write_bytes(stored))
        write_atomically(Path(folder) / "tokenizer_config.json", lambda path: path.write_text(about, encoding="utf-8"))


def check_vocabulary(folder, tokenizer):
    """Raises ValueError where a checkpoint was trained with another tokenizer: each id would stand for another token."""
    folder = Path(folder)
    size = LLMConfig.load(folder).vocab_size
    if len(tokenizer) != size:
        raise ValueError(f"{tokenizer.folder}: found {len(tokenizer)} tokens, the vocab_size of {folder} is {size}: use the tokenizer that it was trained with")
    trained_with = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocabulary")
    if not trained_with and (folder / "tokenizer.json").is_file():  # a checkpoint from elsewhere does not say
        trained_with = ChatTokenizer(folder).vocabulary_hash
    if trained_with and trained_with != tokenizer.vocabulary_hash:
        raise ValueError(f"{tokenizer.folder}: found another vocabulary than the one that {folder} was trained with: use that one")


def render(record):
    """A document as a list of (text or control id, grade); the text is to be encoded without control tokens.

    "你好" -> [(BOS, 0), ("你好", 1), (EOS, 1)]
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Hm</think>"}] ->
        [(BOS, 0), ("system\\n你是…", 0), (EOS, 0), ("\\n", 0), (BOS, 0), ("user\\nHi", 0), (EOS, 0), ("\\n", 0),
         (BOS, 0), ("assistant\\n", 0), (3, 2), ("Hm", 1), (4, 2), (EOS, 1), ("\\n", 0)]
    """
    if isinstance(record, str):
        return [(BOS, NOT_GRADED), (record, GRADED), (EOS, GRADED)]
    if record[0]["role"] != "system":
        record = [{"role": "system", "content": DEFAULT_SYSTEM}, *record]
    parts = []
    for message in record:
        role, content = message["role"], message["content"].strip()
        parts.append((BOS, NOT_GRADED))
        if role == "assistant":
            parts.append(("assistant\n", NOT_GRADED))
            for piece in TAG_PATTERN.split(content):
                parts.append((TAGS[piece], TAG) if piece in TAGS else (piece, GRADED))
        else:
            parts.append((f"{role}\n{content}", NOT_GRADED))
        parts += [(EOS, GRADED if role == "assistant" else NOT_GRADED), ("\n", NOT_GRADED)]
    return parts


def encode_records(tokenizer, records):
    """Documents (texts or lists of messages) -> (ids, grades, lengths).

    ids (tokens) and grades (tokens) of all documents one after another, lengths (documents) in tokens: three int32 arrays.
    """
    rendered = [render(record) for record in records]
    parts = [part for document in rendered for part in document]
    texts = list({text for text, _ in parts if isinstance(text, str)})
    ids_of = dict(zip(texts, tokenizer.encode_together(texts)))
    ids_of_parts = [ids_of[text] if isinstance(text, str) else [text] for text, _ in parts]
    sizes = np.fromiter(map(len, ids_of_parts), np.int32, len(parts))
    ids = np.fromiter(chain.from_iterable(ids_of_parts), np.int32, sizes.sum())
    grades = np.repeat(np.fromiter((grade for _, grade in parts), np.int32, len(parts)), sizes)
    first_parts = np.cumsum([0, *map(len, rendered[:-1])])
    return ids, grades, np.add.reduceat(sizes, first_parts)


# ---- one line of a file ----


class BadLine(ValueError):
    """A line that cannot be used: the message says what was found and what was expected, `kind` in a few words for counts."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def parse_line(line, kind):
    """One line's bytes -> its text, or its list of messages. Raises BadLine."""
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8", f"expected UTF-8 text, found the byte 0x{line[error.start]:02x} at column {error.start + 1}") from None
    except RecursionError:
        raise BadLine("not JSON", f"expected {EXPECTED[kind]}, found too deeply nested lists") from None
    except ValueError as error:
        raise BadLine("not JSON", f"expected a JSON object, found {shorten(line)} ({error})") from None
    value = document.get(kind) if isinstance(document, dict) else None
    if not isinstance(value, str if kind == "text" else list):
        raise BadLine(f'no "{kind}"', f"expected {EXPECTED[kind]}, found {describe(document, kind)}")
    if kind == "text":
        check_text(value, '"text"')
    else:
        check_messages(value)
    return value


def check_messages(messages):
    """Raises BadLine for a list that is not a conversation with a reply."""
    if not messages:
        raise BadLine("no messages", 'expected messages under "conversations", found an empty list')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise BadLine("broken message", f'expected {{"role", "content"}} as message {number}, found {describe(message)}')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadLine("unknown role", f"expected the role of message {number} to be one of {', '.join(ROLES)}, found {describe(role)}")
        if not isinstance(content, str):
            raise BadLine("broken message", f"expected a text as the content of message {number}, found {describe(content)}")
        check_text(content, f"message {number}")
    if all(message["role"] != "assistant" for message in messages):
        raise BadLine("no reply", "expected a message of the assistant, found none: there is nothing to learn from")


def check_text(text, where):
    if not text.strip():
        raise BadLine("empty text", f"expected some text in {where}, found none")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLine("half a surrogate pair", f"expected Unicode text in {where}, found half of a surrogate pair (\\u{ord(text[error.start]):04x})") from None


def describe(value, kind=None):
    """A short name for what a JSON value is: `a list`, `"conversations"`, `null`."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, dict) and kind in value:
        return f'{describe(value[kind])} under "{kind}"'
    if isinstance(value, dict) and value:
        return "only " + shorten(", ".join(json.dumps(key) for key in value).encode(errors="replace"))
    if isinstance(value, str):
        return json.dumps(value[:40], ensure_ascii=True)
    return "nothing" if value is None else names[type(value)]


def shorten(line, most=60):
    text = line.strip().decode("utf-8", "replace")
    return ascii(text if len(text) <= most else text[:most] + "...") if not text.isprintable() else text[:most] + "..." * (len(text) > most)


def detect_kind(path):
    """The kind of the first line that has one: "text" or "conversations"."""
    for _, line in numbered_lines(path):
        for kind in EXPECTED:
            try:
                parse_line(line, kind)
                return kind
            except BadLine:
                continue
    raise ValueError(f"{path}: found no line with {EXPECTED['text']} or {EXPECTED['conversations']}")


def numbered_lines(path):
    """(line number from 1, bytes) of each line that is not blank."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def check_file(path):
    """`path` as a Path. Raises FileNotFoundError or ValueError unless it can be a JSONL file."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a JSONL file, found a folder")
    if not path.is_file():
        advice = "pass the path of a JSONL file"
        if path.name in OFFICIAL_DATA:
            advice = f"modelscope download --dataset Harris/pretrain {path.name} --local_dir ./"
        raise FileNotFoundError(f"{path} not found: {advice}   (or try generated files: python tools/sample_data.py --out_dir data)")
    with open(path, "rb") as file:
        begin = file.read(max(map(len, OTHER_FILES)))
    for magic, (name, advice) in OTHER_FILES.items():
        if begin.startswith(magic):
            raise ValueError(f"{path}: expected a JSONL file, found {name}: {advice}")
    return path


# ---- the cache of tokens ----


class TokenCache:
    """A tokenized file, memory-mapped.

    ids (tokens, uint16), grades (tokens, uint8), ends (documents, int64): of each document's tokens, and first_graded
    (documents, int32): how many of its tokens come before the first graded one.
    """

    def __init__(self, folder, tokenizer):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        try:
            self.about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder}: not a whole cache of tokens ({error}): delete it, and it is made anew") from None
        # as plain arrays over the mapped files: slices of np.memmap are several times slower
        self.ids = np.asarray(np.memmap(self.folder / "ids.bin", dtype=np.uint16, mode="r"))
        self.grades = np.asarray(np.memmap(self.folder / "grades.bin", dtype=np.uint8, mode="r"))
        self.ends = np.fromfile(self.folder / "ends.bin", dtype=np.int64)
        self.first_graded = np.asarray(np.memmap(self.folder / "first_graded.bin", dtype=np.int32, mode="r"))

    def __reduce__(self):
        return TokenCache, (self.folder, self.tokenizer)  # a worker process maps the files itself

    def __len__(self):
        return len(self.ends)

    def spans(self, documents):
        """(starts, ends) of the tokens of an array of documents."""
        return np.where(documents > 0, self.ends[documents - 1], 0), self.ends[documents]

    def document(self, document):
        """(ids, grades) of a document."""
        start, end = self.spans(np.array(document))
        return self.ids[start:end], self.grades[start:end]


def open_cache(path, tokenizer, kind, skip_bad_lines=False, cache_dir=""):
    """The TokenCache of a JSONL file, made now if there is none. Raises ValueError at the first bad line unless told to skip."""
    path = check_file(path)
    if len(tokenizer) > 2**16:
        raise ValueError(f"{tokenizer.folder}: found {len(tokenizer)} tokens, the cache holds ids below {2**16}")
    folder = cache_folder(path, tokenizer, kind, cache_dir)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise ValueError(f"{folder.parent} cannot be written: pass --cache_dir with a folder for the tokens of {path.name}")
        build_cache(path, tokenizer, kind, skip_bad_lines, folder)
    cache = TokenCache(folder, tokenizer)
    bad = cache.about["bad_lines"]
    if bad and not skip_bad_lines:
        raise ValueError(f"{path}:{bad[0][0]}: {bad[0][1]}. {BAD_LINE_ADVICE}")
    return cache


def cache_folder(path, tokenizer, kind, cache_dir=""):
    """Where the cache of a file is, or will be; another place when the file, the tokenizer or the encoder changes."""
    state = path.stat()
    key = [str(path.resolve()), state.st_size, state.st_mtime_ns, tokenizer.fingerprint, DEFAULT_SYSTEM, ENCODER_VERSION, kind]
    name = f"{path.name}.{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.cache"
    return (Path(cache_dir) if cache_dir else path.parent) / name


def open_passing_cache(path, tokenizer, kind, skip_bad_lines=False, cache_dir=""):
    """`open_cache` for a dry run: a cache that is not there yet is made in a folder that goes when the program ends."""
    path = check_file(path)
    if cache_folder(path, tokenizer, kind, cache_dir).is_dir():
        return open_cache(path, tokenizer, kind, skip_bad_lines, cache_dir)
    there = [folder for folder in (Path(cache_dir) if cache_dir else path.parent, Path(tempfile.gettempdir())) if os.access(folder, os.W_OK)]
    folder = tempfile.TemporaryDirectory(prefix="dry_run_", dir=there[0] if there else None, ignore_cleanup_errors=True)
    cache = open_cache(path, tokenizer, kind, skip_bad_lines, folder.name)
    cache.temporary_folder = folder  # lives as long as the cache
    return cache


def build_cache(path, tokenizer, kind, skip_bad_lines, folder):
    """Tokenize `path` into `folder`, which appears whole or not at all; whoever comes second waits and finds it there."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    with locked(folder.with_name(f"{path.name}.lock"), f"tokenizing {path.name}", folder.is_dir):
        if folder.is_dir():
            return
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            with named_disk_errors(folder):
                temporary.mkdir()
            about = write_cache(path, tokenizer, kind, skip_bad_lines, temporary)
            text = json.dumps(about, ensure_ascii=False)
            write_atomically(temporary / "about.json", lambda path: path.write_text(text, encoding="utf-8"))
            with named_disk_errors(folder):
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path, what, is_done):
    """Only one process at a time is inside; the system lets go of the lock when its process ends, however that is.

    The lock's file is removed once `is_done()`: before that, others may be waiting for it.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another process, which is {what}", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be locked ({error}): pass --cache_dir with a folder on a local disk") from None
    try:
        yield
    finally:
        if is_done():
            with suppress(OSError):  # Windows deletes no open file
                os.unlink(path)
        lock.release()


def write_cache(path, tokenizer, kind, skip_bad_lines, folder):
    digest, bad, tokens = hashlib.sha256(), BadLines(), 0
    with ExitStack() as stack:
        names = ("ids", "grades", "ends", "first_graded")
        files = [stack.enter_context(open(folder / f"{name}.bin", "wb", buffering=0)) for name in names]
        for ids, grades, lengths in one_ahead(partial(encode_records, tokenizer), batches_of_records(path, kind, skip_bad_lines, bad)):
            ends = np.cumsum(lengths, dtype=np.int64)
            graded = np.flatnonzero(grades)
            first_graded = graded[np.searchsorted(graded, ends - lengths)] - (ends - lengths)
            arrays = ids.astype(np.uint16), grades.astype(np.uint8), tokens + ends, first_graded.astype(np.int32)
            tokens += len(ids)
            for file, array in zip(files, arrays):
                with named_disk_errors(folder.with_suffix("")):
                    write_all(file, array.tobytes())
            for array in arrays[:2]:
                digest.update(array)
        if not tokens:
            raise ValueError(f"{path}: expected {EXPECTED[kind]} on each line, found {f'no good line ({bad.summary()})' if bad.first else 'an empty file'}")
        for file in files:
            with named_disk_errors(folder.with_suffix("")):
                os.fsync(file.fileno())
    return {"file": str(path), "kind": kind, "tokens": tokens, "sha256": digest.hexdigest(), "bad_lines": bad.first, "bad_kinds": bad.kinds}


def one_ahead(function, items):
    """function(item) of each item, computed in a thread while the next item is made and the result before is used.

    Encoding leaves Python's global lock and takes all cores; what Python does meanwhile, on one core, costs no time.
    """
    with ThreadPoolExecutor(1) as thread:
        before = None
        for item in items:
            running = thread.submit(function, item)
            if before:
                yield before.result()
            before = running
        if before:
            yield before.result()


def write_all(file, data):
    """Write to a file without a buffer, which may take only a part at a time."""
    data = memoryview(data)
    while data:
        data = data[file.write(data) :]


class BadLines:
    """The bad lines of a file: how many of each kind, and of the first ones also (number, reason)."""

    def __init__(self):
        self.kinds, self.first = Counter(), []

    def add(self, number, error):
        self.kinds[error.kind] += 1
        if len(self.first) < BAD_LINES_KEPT:
            self.first.append((number, str(error)))

    def summary(self):
        return count_kinds(self.kinds)


def count_kinds(kinds):
    """{"not JSON": 2, "no reply": 1} -> "2 not JSON, 1 no reply"."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def batches_of_records(path, kind, skip_bad_lines, bad):
    """Lists of parsed lines, about BATCH_BYTES each; what cannot be parsed is added to `bad`."""
    records, size = [], 0
    with progress(path.stat().st_size, f"tokenizing {path.name}") as bar:
        for number, line in numbered_lines(path):
            try:
                records.append(parse_line(line, kind))
            except BadLine as error:
                if not skip_bad_lines:
                    raise ValueError(f"{path}:{number}: {error}. {BAD_LINE_ADVICE}") from None
                bad.add(number, error)
            size += len(line)
            bar.update(len(line))
            if size >= BATCH_BYTES and records:
                yield records
                records, size = [], 0
        if records:
            yield records


def progress(total, what):
    """A progress bar in bytes on a terminal, one plain line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{what} ({total / 1e6:.1f} MB)", file=sys.stderr)
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)


# ---- rows ----


class Batch(NamedTuple):
    """A row, each field (T), or a micro-batch, each field (B, T)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    document_ids: torch.Tensor  # 1, 2, ... within a row; 0 is padding


class PackedRows(torch.utils.data.Dataset):
    """Documents of a cache packed into rows of `row_length` positions, as few as best fit finds.

    A text longer than a row is cut into *pieces* that together have each of its labels once. A conversation longer than a
    row is truncated at the row's end; `truncated` counts those. Memory is some 20 bytes a document and 16 a piece.
    """

    def __init__(self, cache, documents, row_length, seed=0, tag_weight=1.0):
        self.cache = cache
        self.documents = documents
        self.row_length = row_length
        self.weight_of_grade = np.array([0.0, 1.0, tag_weight], dtype=np.float32)
        find = self.pieces_of_texts if cache.about["kind"] == "text" else self.pieces_of_conversations
        self.truncated = 0
        starts, lengths = [], []
        for begin in range(0, len(documents), 2**20):  # not all at once: 64-bit numbers on the way take several times the memory
            for found, array in zip((starts, lengths), find(documents[begin : begin + 2**20])):
                found.append(array)
        self.lengths = np.concatenate(lengths)  # of pieces, in positions
        del lengths
        self.starts = np.concatenate(starts)    # of pieces, in the cache
        del starts
        if not len(self.starts):
            raise ValueError(f"{cache.about['file']}: no document has a graded token within --max_seq_len ({row_length})")
        self.order, self.first_piece = pack(self.lengths, row_length, seed)
        self.useful = int(self.lengths.sum())
        digest = hashlib.sha256()
        for array in (self.starts, self.lengths, self.order, self.first_piece):
            digest.update(array)
        self.fingerprint = digest.hexdigest()

    def pieces_of_texts(self, documents):
        """(starts, lengths) of the pieces of some documents."""
        starts, ends = self.cache.spans(documents)
        positions = ends - starts - 1  # the last token is only a label
        count = -(-positions // self.row_length)
        offset = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) * self.row_length
        return np.repeat(starts, count) + offset, np.minimum(np.repeat(positions, count) - offset, self.row_length).astype(np.int32)

    def pieces_of_conversations(self, documents):
        """(starts, lengths) of the conversations of which a graded token is within a row."""
        starts, ends = self.cache.spans(documents)
        positions = ends - starts - 1
        self.truncated += int(np.count_nonzero(positions > self.row_length))
        lengths = np.minimum(positions, self.row_length).astype(np.int32)
        graded = self.cache.first_graded[documents] <= lengths
        return starts[graded], lengths[graded]

    @property
    def graded_lost(self):
        """Graded tokens that went with the ends of truncated conversations."""
        if self.cache.about["kind"] == "text":
            return 0
        starts, ends = self.cache.spans(self.documents)
        return sum(np.count_nonzero(self.cache.grades[start + self.row_length + 1 : end]) for start, end in zip(starts, ends) if end - start - 1 > self.row_length)

    def __len__(self):
        return len(self.first_piece) - 1

    def __getitem__(self, row):
        T = self.row_length
        input_ids, labels = np.full(T, PAD, dtype=np.int64), np.full(T, PAD, dtype=np.int64)
        weights, document_ids = np.zeros(T, dtype=np.float32), np.zeros(T, dtype=np.int64)
        at = 0
        for number, piece in enumerate(self.order[self.first_piece[row] : self.first_piece[row + 1]], 1):
            start, length = int(self.starts[piece]), int(self.lengths[piece])
            tokens = self.cache.ids[start : start + length + 1]
            input_ids[at : at + length] = tokens[:-1]
            labels[at : at + length] = tokens[1:]
            weights[at : at + length] = self.weight_of_grade[self.cache.grades[start + 1 : start + length + 1]]
            document_ids[at : at + length] = number
            at += length
        return Batch(*(torch.from_numpy(array) for array in (input_ids, labels, weights, document_ids)))

    @property
    def padding_share(self):
        return 1 - self.useful / (len(self) * self.row_length)

    def prompts(self, most):
        """What up to `most` documents ask first, if it fits a row with its reply: a list of (prompt ids, expected reply)."""
        found = []
        for document in self.documents:
            ids = self.cache.document(document)[0].tolist()
            start = int(self.cache.first_graded[document])
            end = ids.index(EOS, start)
            if end < self.row_length:
                found.append((ids[:start], self.cache.tokenizer.decode(ids[start:end])))
            if len(found) == most:
                break
        return found


def pack(lengths, row_length, seed):
    """Best fit, the longest first: each piece goes into the fullest row that still has room for it.

    lengths (pieces) -> (order, first_piece): row r holds the pieces order[first_piece[r] : first_piece[r + 1]]. Pieces of
    one length are shuffled first, so that neighbours in the file do not share a row.
    """
    shuffled = np.arange(len(lengths), dtype=np.int32)
    np.random.default_rng(seed).shuffle(shuffled)
    counts = []
    for begin in range(0, len(lengths), PACK_TOGETHER):
        together = shuffled[begin : begin + PACK_TOGETHER]  # a view: shuffled becomes the order
        by_length = together[np.argsort(-lengths[together], kind="stable")]
        row_of_piece = best_fit(lengths[by_length], row_length)
        together[:] = by_length[np.argsort(row_of_piece, kind="stable")]
        counts.append(np.bincount(row_of_piece))
    return shuffled, np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def best_fit(lengths, row_length):
    """Row of each piece, the longest first: [6, 5, 3, 2] in rows of 8 -> [0, 1, 1, 0].

    All pieces of one length at a time: a row with room for several of them takes them one after another.
    """
    rows_with = [[] for _ in range(row_length + 1)]  # by free positions
    row_of_piece, done, count = np.empty(len(lengths), dtype=np.int32), 0, 0
    sizes, of_size = np.unique(-lengths, return_counts=True)
    for length, left in zip((-sizes).tolist(), of_size.tolist()):
        free = length
        while left:
            while free < row_length and not rows_with[free]:
                free += 1
            each = free // length
            wanted = -(-left // each)
            if free < row_length:
                rows = rows_with[free][-wanted:][::-1]
                del rows_with[free][-wanted:]
            else:  # no row has room: new ones
                rows = list(range(count, count + wanted))
                count += wanted
            placed = min(left, each * len(rows))
            row_of_piece[done : done + placed] = np.repeat(np.array(rows, dtype=np.int32), each)[:placed]
            in_last = placed - each * (len(rows) - 1)
            rows_with[free - each * length] += rows[:-1]
            rows_with[free - in_last * length].append(rows[-1])
            done, left = done + placed, left - placed
    return row_of_piece


def load_rows(config, tokenizer, kind):
    """(rows to learn from, rows to validate on) of a TrainConfig; without a val_path a slice of the data is held out.

    Validation rows give every graded token the weight 1, so that perplexity and bits per byte mean what they say.
    """
    open_ = open_passing_cache if config.dry_run else open_cache
    cache = open_(config.data_path, tokenizer, kind, config.skip_bad_lines, config.cache_dir)
    if config.val_path:
        val_cache = open_(config.val_path, tokenizer, kind, config.skip_bad_lines, config.cache_dir)
        documents, val_documents = np.arange(len(cache), dtype=np.int32), np.arange(len(val_cache))
    else:
        if len(cache) < 2:
            raise ValueError(f"{config.data_path}: found 1 document, expected at least 2 (one is held out): or pass --val_path")
        val_cache, (documents, val_documents) = cache, hold_out(cache, config.seed)
    rows = PackedRows(cache, documents, config.max_seq_len, config.seed, config.tag_weight)
    return rows, PackedRows(val_cache, val_documents, config.max_seq_len, config.seed)


def hold_out(cache, seed):
    """(documents to learn from, documents to validate on): the latter about HELD_OUT_TOKENS, and few of a small file."""
    most = max(1, int(len(cache) * HELD_OUT_SHARE))
    drawn = np.random.default_rng(seed).choice(len(cache), min(most, HELD_OUT_TOKENS), replace=False)
    starts, ends = cache.spans(drawn)
    held_out = np.sort(drawn[: max(1, np.searchsorted(np.cumsum(ends - starts), HELD_OUT_TOKENS))])
    return np.delete(np.arange(len(cache), dtype=np.int32), held_out), held_out


# ---- the lens ----


COLOURS = {"prompt": "\033[2m", "graded": "\033[32m", "tag": "\033[1;35m", "cut off": "\033[31;9m"}
OF_GRADE = {NOT_GRADED: "prompt", GRADED: "graded", TAG: "tag"}


def show(path, tokenizer, count=3, row_length=512):
    """Print the first documents token by token with what each is for, then what the file holds and what is lost of it."""
    path = check_file(path)
    kind = detect_kind(path)
    colour = sys.stdout.isatty()
    paint = {name: (lambda text, code=code: f"{code}{text}\033[0m") if colour else str for name, code in COLOURS.items()}
    print("one token between two bars: " + "  ".join(paint[name](name) for name in COLOURS))
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(path, tokenizer, kind, skip_bad_lines=True, cache_dir=folder)
        for document in range(min(count, len(cache))):
            print(f"\n--- document {document + 1} ---")
            cut_at = row_length if kind == "conversations" else len(cache.ids)  # texts are cut into pieces, and lose nothing
            print(colour_document(*cache.document(document), tokenizer, cut_at, paint, colour))
        rows = PackedRows(cache, np.arange(len(cache)), row_length)
        lengths, graded = np.diff(cache.ends, prepend=0), int(np.count_nonzero(cache.grades))
        bad, kinds = cache.about["bad_lines"], cache.about["bad_kinds"]
        print(f"\ndocuments  {len(cache)} ({kind}), {lengths.mean():.1f} tokens on average, {lengths.max()} at most")
        print(f"tokens     {len(cache.ids)}, graded {graded} ({graded / len(cache.ids):.1%})")
        print(f"truncated  {rows.truncated} documents ({rows.truncated / len(cache):.2%}), {rows.graded_lost} graded tokens lost, at {row_length} tokens")
        print(f"padding    {rows.padding_share:.2%} of {len(rows)} rows; one document a row would be {1 - rows.useful / (len(rows.starts) * row_length):.2%}")
        print(f"bad lines  {sum(kinds.values())}" + (f" ({count_kinds(kinds)})" if kinds else ""))
        for number, reason in bad[:20]:
            print(f"  {path}:{number}: {reason}")
        if sum(kinds.values()) > 20:
            print(f"  ... and {sum(kinds.values()) - 20} more")
        del cache, rows  # Windows cannot delete files that are mapped


def colour_document(ids, grades, tokenizer, row_length, paint, colour):
    """A document's tokens between bars. Without colours the first token of each run carries its kind in brackets."""
    shown, before = [], None
    for position, (id, grade) in enumerate(zip(ids.tolist(), grades.tolist())):
        name = "cut off" if position > row_length else OF_GRADE[grade]
        text = CONTROL_TOKENS[id] if id < len(CONTROL_TOKENS) else readable(tokenizer, id)
        label = f"[{name}]" if name != before and not colour else ""
        shown.append(label + paint[name](text))
        before = name
    return "|".join(shown)


def readable(tokenizer, id):
    """A token as text: its bytes in hexadecimal where they are only a part of a character, a newline as a sign."""
    text = tokenizer.decode([id])
    if "\ufffd" in text:
        text = "<" + " ".join(f"{byte:02x}" for byte in tokenizer.bytes_of(id)) + ">"
    return text.replace("\n", "⏎").replace("\t", "⇥")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", metavar="FILE", required=True, help="the JSONL file to look at")
    parser.add_argument("--tokenizer", default="WeakWater_tokenizer", help="the tokenizer's folder (default: WeakWater_tokenizer)")
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens in one row (default: 512)")
    parser.add_argument("--count", type=int, default=3, help="documents to print (default: 3)")
    args = parser.parse_args(argv)
    if args.max_seq_len < SHORTEST_ROW:
        raise ValueError(f"--max_seq_len ({args.max_seq_len}) must be at least {SHORTEST_ROW}")
    show(args.show, ChatTokenizer(args.tokenizer), args.count, args.max_seq_len)


if __name__ == "__main__":
    run_script(main)
