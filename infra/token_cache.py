"""A tokenized file as memory-mapped arrays: made once, by all cores, in memory that does not grow with it."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from infra.cli import UserError
from infra.files import named_disk_errors, write_json
from infra.jsonl import BAD_LINE_ADVICE, EXPECTED, BadLines, check_file, count_kinds, read_documents
from infra.locks import locked
from infra.tokenizer import ChatTokenizer

DTYPES = {"ids": np.uint16, "loss_mask": np.uint8, "ends": np.int64, "first_counted": np.int32}


@dataclass(frozen=True)
class Source:
    """What a cache is made of; a change in any of it makes another cache."""

    path: str
    bytes: int
    modified: int  # nanoseconds
    tokenizer: str
    field: str
    encoder: str

    def replaces(self, other: dict) -> bool:
        """True if this is another state of the same file, for the same tokenizer, than `other` (a dict)."""
        same = ("path", "tokenizer", "field")
        return asdict(self) != other and all(other.get(name) == getattr(self, name) for name in same)


class TokenCache:
    """A tokenized file.

    ids (tokens, uint16); loss_mask (tokens, uint8), see `dataset.render`; ends (documents, int64) of each
    document's tokens; first_counted (documents, int32): how many of its tokens come before the first that
    counts in the loss.
    """

    def __init__(self, folder: Path, tokenizer: ChatTokenizer):
        self.folder, self.tokenizer = Path(folder), tokenizer
        try:
            self.about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
            self.ids, self.loss_mask = self.mapped("ids"), self.mapped("loss_mask")
            self.first_counted, self.ends = self.mapped("first_counted"), np.array(self.mapped("ends"))
            if not len(self.ids) == len(self.loss_mask) == self.about["tokens"] == self.ends[-1]:
                raise ValueError(f"found {len(self.ids)} tokens, expected {self.about['tokens']}")
        except (OSError, ValueError) as error:
            advice = "delete it, and it is made anew"
            raise UserError(f"{self.folder}: not a whole cache of tokens ({error}): {advice}") from None

    def mapped(self, name: str) -> np.ndarray:
        """A plain array over a mapped file: slices of np.memmap are several times slower."""
        return np.asarray(np.memmap(self.folder / f"{name}.bin", dtype=DTYPES[name], mode="r"))

    def __reduce__(self):
        return TokenCache, (self.folder, self.tokenizer)  # a worker process maps the files itself

    def __len__(self):
        return len(self.ends)

    def spans(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of the tokens of some documents."""
        return np.where(documents > 0, self.ends[documents - 1], 0), self.ends[documents]

    def document(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, loss_mask) of a document."""
        start, end = self.spans(np.array(number))
        return self.ids[start:end], self.loss_mask[start:end]


def open_cache(
    path, tokenizer, field, encode, encoder, skip_bad_lines=False, cache_dir="", keep=True
) -> TokenCache:
    """The cache of a JSONL file, made now if there is none.

    encode: a function (tokenizer, documents) -> (ids, loss_mask, lengths), and `encoder` a name of its
    version. keep: False puts a new cache into a temporary folder, which goes when the cache does.
    Raises UserError at the first bad line, unless told to skip it.
    """
    path, temporary = check_file(path), None
    if len(tokenizer) > 2**16:
        raise UserError(
            f"{tokenizer.folder}: found {len(tokenizer)} tokens, the cache holds ids below {2**16}"
        )
    state = path.stat()
    source = Source(
        str(path.resolve()), state.st_size, state.st_mtime_ns, tokenizer.fingerprint, field, encoder
    )
    parent = Path(cache_dir) if cache_dir else path.parent
    name = f"{path.name}.{hashlib.sha256(json.dumps(asdict(source)).encode()).hexdigest()[:16]}.cache"
    if not (parent / name).is_dir():
        if not keep:
            place = parent if os.access(parent, os.W_OK) else None
            temporary = tempfile.TemporaryDirectory(prefix="dry_run_", dir=place, ignore_cleanup_errors=True)
            parent = Path(temporary.name)
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK):
            raise UserError(
                f"{parent} cannot be written: pass --cache_dir with a folder for the tokens of {path.name}"
            )
        build_cache(path, partial(encode, tokenizer), source, skip_bad_lines, parent / name)
    cache = TokenCache(parent / name, tokenizer)
    cache.temporary_folder = temporary  # lives as long as the cache
    if cache.about["bad_lines"] and not skip_bad_lines:
        number, reason = cache.about["bad_lines"][0]
        raise UserError(f"{path}:{number}: {reason}. {BAD_LINE_ADVICE}")
    return cache


def build_cache(path: Path, encode: Callable, source: Source, skip_bad_lines: bool, folder: Path) -> None:
    """Tokenize `path` into `folder`, which appears whole or not at all. Whoever comes second waits for it."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    with locked(folder.with_name(f"{path.name}.lock"), f"tokenizing {path.name}", folder.is_dir):
        if folder.is_dir():
            return
        for left in beside(folder, ".tmp"):  # by processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            with named_disk_errors(folder):
                temporary.mkdir()
            about = write_cache(path, encode, source.field, skip_bad_lines, temporary)
            write_json(temporary / "about.json", {**about, "source": asdict(source)})
            with named_disk_errors(folder):
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        remove_superseded(folder, source)


def beside(folder: Path, suffix="") -> Iterator[Path]:
    """The caches beside `folder` of files called like its own: a.jsonl of a.jsonl.0123456789abcdef.cache."""
    return folder.parent.glob(f"{glob.escape(Path(folder.stem).stem)}.{'[0-9a-f]' * 16}.cache{suffix}")


def remove_superseded(folder: Path, source: Source) -> None:
    """Delete the caches beside `folder` of earlier states of its file and earlier versions of this code."""
    for other in beside(folder):
        with suppress(OSError, ValueError):
            about = json.loads((other / "about.json").read_text(encoding="utf-8"))
            is_ours = isinstance(about, dict) and {"tokens", "sha256"} <= about.keys()
            if is_ours and ("source" not in about or source.replaces(about["source"])):
                shutil.rmtree(other, ignore_errors=True)


def write_cache(path: Path, encode: Callable, field: str, skip_bad_lines: bool, folder: Path) -> dict:
    """Write the arrays of DTYPES; returns what about.json tells of them."""
    digest, bad, tokens = hashlib.sha256(), BadLines(), 0
    with ExitStack() as stack:
        stack.enter_context(named_disk_errors(folder.with_suffix("")))
        files = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in DTYPES]
        for ids, loss_mask, lengths in one_ahead(encode, read_documents(path, field, skip_bad_lines, bad)):
            ends = np.cumsum(lengths, dtype=np.int64)
            counted = np.flatnonzero(loss_mask)
            first_counted = counted[np.searchsorted(counted, ends - lengths)] - (ends - lengths)
            arrays = ids, loss_mask, tokens + ends, first_counted
            tokens += len(ids)
            for file, array, dtype in zip(files, arrays, DTYPES.values(), strict=True):
                file.write(array := array.astype(dtype))
                digest.update(array)
        if not tokens:
            found = f"no good line ({count_kinds(bad.kinds)})" if bad.first else "an empty file"
            raise UserError(f"{path}: expected {EXPECTED[field]} on each line, found {found}")
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    about = {"file": str(path), "tokens": tokens, "sha256": digest.hexdigest()}
    return about | {"bad_lines": bad.first, "bad_kinds": bad.kinds}


def one_ahead(function: Callable, items: Iterable) -> Iterator:
    """function(item) of each item, in a thread, while the next item is made and the last result is used.

    Encoding releases Python's global lock and takes all cores, so that reading, on one core, costs no time.
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
