"""The files of tools/full_run.py: each gathered in one piece, the ends of some held out, all tokenized."""

import lzma
import re
import shutil
from collections import Counter, deque
from pathlib import Path

from dataset import open_tokens, prompt_ids
from infra.cli import UserError
from infra.jsonl import numbered_lines, parse_line
from infra.scoring import final_answer, number_value
from infra.tokenizer import ChatTokenizer

FILES = ("pretrain", "sft_512", "sft_1024", "r1_1024")
HELD_OUT = {  # unless it is there: from the end of which file, and how many lines, at most a tenth of all
    "pretrain_val": ("pretrain", 1500),
    "sft_val": ("sft_512", 500),
    "r1_val": ("r1_1024", 200),
    "r1_test": ("r1_1024", 700),
}
MIX = "r1_mixed"  # r1_1024 and the beginning of sft_512
MIXED_IN = 0.5  # bytes of sft_512 for each byte of r1_1024


def gather(data_dir: Path, folder: Path) -> dict:
    """Copy each file into `folder`, unpacked, its shards joined, what is held out of it in a file of its own.

    Raises FileNotFoundError for a missing file, UserError for one that is there twice, cut off or too small.
    """
    if data_dir.resolve() == folder.resolve():
        found = f"{folder} is where the files are copied to, which would destroy them"
        raise UserError(f"{found}: pass another --out_dir")
    parts_by_name = {name: parts_of(name, data_dir) for name in (*FILES, *HELD_OUT)}
    folder.mkdir(parents=True, exist_ok=True)
    for cache in folder.glob("*.cache"):  # of copies made before
        shutil.rmtree(cache)
    for name, parts in parts_by_name.items():
        if parts:
            join(parts, folder / f"{name}.jsonl")
        else:
            source, lines = HELD_OUT[name]
            hold_out(folder / f"{source}.jsonl", folder / f"{name}.jsonl", lines)
    mix(folder / "r1_1024.jsonl", folder / "sft_512.jsonl", folder / f"{MIX}.jsonl")
    sizes = {name: (folder / f"{name}.jsonl").stat().st_size for name in parts_by_name}
    return {"megabytes": {name: round(size / 1e6, 1) for name, size in sizes.items()}}


def parts_of(name: str, data_dir: Path) -> list[Path]:
    """The files that make up `name`: one, or its shards in order, or none if it can be held out."""
    pattern = re.compile(rf"{name}(-\d+)?\.jsonl(\.xz)?")
    parts = sorted(path for path in data_dir.glob(f"{name}*") if pattern.fullmatch(path.name))
    if not parts and name in FILES:
        expected = f"{name}.jsonl (nor shards {name}-00.jsonl, ... nor .jsonl.xz)"
        raise FileNotFoundError(f"{data_dir}: found no {expected}")
    stems = {path.name.removesuffix(".xz") for path in parts}
    if len(stems) < len(parts) or (f"{name}.jsonl" in stems and len(stems) > 1):
        found = ", ".join(path.name for path in parts)
        raise UserError(f"{data_dir}: found {found}, expected {name} once: as one file or as shards")
    return parts


def join(parts: list[Path], to: Path) -> None:
    """Write files one after another, with a newline after each last line."""
    with open(to, "wb") as joined:
        for part in parts:
            try:
                with lzma.open(part) if part.suffix == ".xz" else open(part, "rb") as file:
                    joined.writelines(line if line.endswith(b"\n") else line + b"\n" for line in file)
            except (EOFError, lzma.LZMAError) as error:
                raise UserError(f"{part}: not a whole xz file ({error}): download it again") from None


def hold_out(path: Path, to: Path, most: int) -> None:
    """Move the last lines of a file, at most a tenth of all, to another. UserError where a tenth is none."""
    total, last = 0, deque(maxlen=most)
    with open(path, "rb+") as file:
        for line in file:
            total += 1
            last.append(line)
        if total < 10:
            expected = f"expected at least 10, a tenth of which is held out as {to.name}"
            raise UserError(f"{path.name}: found {total} lines, {expected}")
        held_out = b"".join(list(last)[-(total // 10) :])
        to.write_bytes(held_out)
        file.truncate(path.stat().st_size - len(held_out))


def mix(path: Path, other: Path, to: Path) -> None:
    """Write a file and, after it, the first lines of another, up to MIXED_IN times its bytes."""
    left = path.stat().st_size * MIXED_IN
    shutil.copy(path, to)
    with open(other, "rb") as lines, open(to, "ab") as mixed:
        while (line := lines.readline()) and (left := left - len(line)) >= 0:
            mixed.write(line)


def tokenize(folder: Path) -> dict:
    """Tokenize the files in `folder`/data; returns the tokens of each, and what `word_problems` does.

    All of them now, before anything is trained: bad lines are found early, and a rehearsal, which leaves
    nothing behind, does not have to tokenize.
    """
    data, tokenizer, tokens = folder / "data", ChatTokenizer(folder / "tokenizer"), {}
    for name in (*FILES, *HELD_OUT, MIX):
        field = "text" if name.startswith("pretrain") else "conversations"
        tokens[name] = len(open_tokens(data / f"{name}.jsonl", tokenizer, field).ids)
    trained_on = [data / f"{name}.jsonl" for name in FILES if name != "pretrain"]
    found = word_problems(data / "r1_test.jsonl", data / "word_problems.jsonl", tokenizer, trained_on)
    if not found["word_problems"]:
        print("the end of r1_1024 has no Chinese questions whose answer is a number: nothing will be graded")
    return {"tokens": tokens, **found}


def word_problems(path: Path, to: Path, tokenizer: ChatTokenizer, trained_on: list[Path]) -> dict:
    """Write the conversations of a file that ask in Chinese for a number.

    Left out are questions that the files `trained_on` ask to the letter, and prompts of more than half the
    context. Returns {"word_problems": count, "constant_answer": the commonest, "constant_right": its count}.
    """
    lines = (line for other in trained_on for _, line in numbered_lines(other))
    messages = (message for line in lines for message in parse_line(line, "conversations"))
    asked = {message["content"] for message in messages if message["role"] == "user"}
    kept, answers = [], Counter()
    for _, line in numbered_lines(path):
        messages = parse_line(line, "conversations")
        first_reply = [message["role"] for message in messages].index("assistant")
        prompt, answer = messages[:first_reply], number_value(final_answer(messages[first_reply]["content"]))
        question = next((message["content"] for message in prompt if message["role"] == "user"), "")
        if answer is None or not re.search("[\u4e00-\u9fff]", question) or question in asked:
            continue
        if len(prompt_ids(tokenizer, prompt)) <= tokenizer.max_length // 2:
            kept.append(line.rstrip(b"\n") + b"\n")
            answers[answer] += 1
    to.write_bytes(b"".join(kept))
    [(commonest, count)] = answers.most_common(1) or [("", 0)]
    return {"word_problems": len(kept), "constant_answer": str(commonest), "constant_right": count}
