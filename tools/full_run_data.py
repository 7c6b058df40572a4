"""The files of tools/full_run.py: each in one piece, ends of some held out, R1 worked out, all tokenized."""

import lzma
import re
import shutil
from collections import Counter, deque
from itertools import chain, islice
from pathlib import Path

from Config import LLMConfig
from dataset import open_tokens, prompt_ids
from eval_model import EvalConfig, load
from generate import Sampling
from infra.cli import UserError
from infra.jsonl import numbered_lines, parse_line
from infra.questions import read_conversations
from infra.scoring import final_answer, number_value
from infra.text_sample import sample_lines, texts_of
from infra.tokenizer import ChatTokenizer
from tools.more_problems import Amounts, more_problems
from tools.own_replies import own_replies
from tools.problems import without_steps
from tools.worked_r1 import first_turn, work_out, worked_conversation, write_conversations
from train_tokenizer import save_tokenizer, train_tokenizer

FILES = ("pretrain", "sft_512", "sft_1024", "r1_1024")
HELD_OUT = {  # unless it is there: from the end of which file, and how many lines, at most a tenth of all
    "pretrain_val": ("pretrain", 1500),
    "sft_val": ("sft_512", 500),
    "r1_val": ("r1_1024", 200),
}
LEARNED_FROM = {"pretrain": "text", "sft_512": "conversations", "worked": "conversations"}  # the tokenizer
MIXED = ("plain", "worked", "equations")  # with conversations
TOKENIZED = ["sft_1024", *(f"{name}_mixed" for name in MIXED), "worked_reward"]
TOKENIZED += ["pretrain_val", "sft_val", *(f"{name}_val" for name in MIXED)]
OWN, OWN_QUESTIONS, OWN_REPLIES = "worked_own", 2000, 4  # for rejection sampling
REWARD_VARIANTS = 3


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


def mix(path: Path, other: Path, to: Path, times: float) -> None:
    """Write a file and, after it, the first lines of another, up to so many times its bytes."""
    left = path.stat().st_size * times
    shutil.copy(path, to)
    with open(other, "rb") as lines, open(to, "ab") as mixed:
        while (line := lines.readline()) and (left := left - len(line)) >= 0:
            mixed.write(line)


def reason(config) -> dict:
    """From r1_1024 and r1_val the files that reasoning is learned from; returns how many of what they have.

    plain_mixed: R1 as it is. worked_mixed: worked out, with more problems made of it. equations_mixed: the
    same without calculations. All are mixed with --conversations times as many bytes of sft_512.
    worked_reward: other problems, with REWARD_VARIANTS of each; R1 as it is where there are none. problems:
    held out of all.
    """
    folder = config.out_dir / "data"
    found, counts = work_out(folder / "r1_1024.jsonl")
    worked, sizes = more_problems(found["worked"], config)
    write_conversations(folder / "worked.jsonl", worked)
    write_conversations(folder / "equations.jsonl", map(without_steps, worked))
    write_conversations(folder / "plain.jsonl", found["plain"])
    for name in MIXED:
        mixed = folder / f"{name}_mixed.jsonl"
        mix(folder / f"{name}.jsonl", folder / "sft_512.jsonl", mixed, config.conversations)
    amounts = Amounts(variants=REWARD_VARIANTS, equations=0.0, drills=0, seed=config.seed)
    reward, _ = more_problems(found["reward"], amounts)
    write_conversations(folder / "worked_reward.jsonl", reward or found["plain"])
    write_conversations(folder / "problems.jsonl", found["problems"])
    plain_val = list(read_conversations(folder / "r1_val.jsonl"))
    write_conversations(folder / "plain_val.jsonl", plain_val)
    worked_val = [worked_conversation(turns, Counter()) for turns in plain_val]
    write_conversations(folder / "worked_val.jsonl", worked_val)
    write_conversations(folder / "equations_val.jsonl", map(without_steps, worked_val))
    return {"calculations": dict(counts), "worked": sizes}


def sample_own(config) -> dict:
    """Write what the `worked` model answers rightly to worked_reward, mixed with conversations."""
    data = config.out_dir / "data"
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / "worked"), device=config.device))
    asked = list(islice(read_conversations(data / "worked_reward.jsonl"), OWN_QUESTIONS))
    sampling = Sampling(temperature=1.0, max_new_tokens=config.max_new_tokens, seed=config.seed)
    found, counts = own_replies(model, tokenizer, asked, OWN_REPLIES, sampling)
    write_conversations(data / "own.jsonl", found)
    mix(data / "own.jsonl", data / "sft_512.jsonl", data / f"{OWN}.jsonl", config.conversations)
    return counts


def make_tokenizer(folder: Path, vocab_size: int) -> dict:
    """Learned from texts, conversations and worked R1, up to equally many bytes of each."""
    data = folder / "data"
    texts = (texts_of(sample_lines(data / f"{name}.jsonl"), field) for name, field in LEARNED_FROM.items())
    tokenizer = train_tokenizer(chain.from_iterable(texts), vocab_size)
    save_tokenizer(tokenizer, folder / "tokenizer", LLMConfig().max_position_embeddings)
    return {"vocab_size": vocab_size}


def tokenize(folder: Path) -> dict:
    """Tokenize the files in `folder`/data; returns the tokens of each, and what `word_problems` does.

    All of them now, before anything is trained: bad lines are found early, and a rehearsal, which leaves
    nothing behind, does not have to tokenize.
    """
    data, tokenizer, tokens = folder / "data", ChatTokenizer(folder / "tokenizer"), {}
    for name in ("pretrain", "sft_512", *TOKENIZED):
        field = "text" if name.startswith("pretrain") else "conversations"
        tokens[name] = len(open_tokens(data / f"{name}.jsonl", tokenizer, field).ids)
    trained_on = [data / f"{name}.jsonl" for name in ("sft_512", "sft_1024", "plain")]
    found = word_problems(data / "problems.jsonl", data / "word_problems.jsonl", tokenizer, trained_on)
    if not found["word_problems"]:
        print("r1_1024 has no Chinese questions whose answer is a number: nothing will be graded")
    return {"tokens": tokens, **found}


def word_problems(path: Path, to: Path, tokenizer: ChatTokenizer, trained_on: list[Path]) -> dict:
    """Write the held-out problems that the files `trained_on` do not ask to the letter, and whose prompts
    take at most a quarter of the longest context, half of what a stage trained on rows of 512 has.

    Returns {"word_problems": count, "constant_answer": the commonest, "constant_right": its count}.
    """
    lines = (line for other in trained_on for _, line in numbered_lines(other))
    messages = (message for line in lines for message in parse_line(line, "conversations"))
    asked = {message["content"] for message in messages if message["role"] == "user"}
    kept, answers = [], Counter()
    for turns in read_conversations(path):
        question, reply = first_turn(turns)
        prompt = turns[: [message["role"] for message in turns].index("assistant")]
        if question not in asked and len(prompt_ids(tokenizer, prompt)) <= tokenizer.max_length // 4:
            kept.append(turns)
            answers[number_value(final_answer(reply))] += 1
    write_conversations(to, kept)
    [(commonest, count)] = answers.most_common(1) or [("", 0)]
    return {"word_problems": len(kept), "constant_answer": str(commonest), "constant_right": count}
