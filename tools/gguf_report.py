"""python tools/gguf_report.py out/distill --texts pretrain_val.jsonl --questions r1_val.jsonl

What each type of GGUF keeps of a checkpoint, as llama.cpp computes it: bytes, the loss of held-out texts, the
share of greedy replies that are the checkpoint's to the token, and tokens a second, the types asked in turn.

Needs `pip install gguf llama-cpp-python`.
"""

import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tqdm import tqdm

from dataset import prompt_ids
from infra.checkpoint import find_checkpoint, promised_context
from infra.cli import UserError, make_parser, run_script
from infra.questions import read_all, read_questions
from infra.tokenizer import BOS, ChatTokenizer
from model import WeakWater
from tools.export_gguf import TYPES, export_gguf
from tools.gguf_proof import logits_of, open_llama, replies_of, reply_of

MOST = 100  # texts, and questions


def text_loss(llama, texts: list[list[int]]) -> float:
    """Mean loss, in nats per token, of texts of ids."""
    nats = []
    for ids in texts:
        log_probabilities = logits_of(llama, ids[:-1]).log_softmax(-1)
        nats += (-log_probabilities.gather(1, torch.tensor(ids[1:])[:, None])).flatten().tolist()
    return mean(nats)


def compare_replies(llamas: dict, questions: list[list[int]], replies: list, context: int) -> dict:
    """{type: (share of equal replies, tokens a second)}, each question asked of all types in turn."""
    equal, speeds = dict.fromkeys(llamas, 0), {name: [] for name in llamas}
    for prompt, reply in tqdm(list(zip(questions, replies)), unit="question", disable=None, leave=False):
        for name, llama in llamas.items():
            llama.reset()
            start = time.perf_counter()
            found = reply_of(llama, prompt, context)
            speeds[name].append(len(found) / (time.perf_counter() - start))
            equal[name] += found == reply
    return {name: (equal[name] / len(questions), median(speeds[name])) for name in llamas}


def report(folder: Path, texts: list[str], questions: list[list[int]]) -> None:
    """Print a row for each type. Raises UserError where no question fits the context."""
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    context = promised_context(model.config, tokenizer)
    ids = [[BOS, *tokenizer.encode(text)][: context + 1] for text in texts]
    questions = [prompt for prompt in questions if len(prompt) < context]
    if not questions:
        raise UserError(f"found no question that leaves room for a reply within {context} tokens")
    replies = replies_of(model, questions, context)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:  # Windows: they are in use
        paths = {name: export_gguf(folder, Path(temporary) / name, name) for name in TYPES}
        llamas = {name: open_llama(path, context) for name, path in paths.items()}
        found = compare_replies(llamas, questions, replies, context)
        print("| type | MB | loss of the texts | equal replies | tokens a second |\n|---|---|---|---|---|")
        for name, (equal, speed) in found.items():
            size, loss = paths[name].stat().st_size / 1e6, text_loss(llamas[name], ids)
            print(f"| {name} | {size:.1f} | {loss:.4f} | {equal:.0%} | {speed:.0f} |", flush=True)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the checkpoint's folder")
    parser.add_argument("--texts", required=True, help=f"a JSONL file of held-out texts; {MOST} are read")
    parser.add_argument("--questions", required=True, help="a JSONL file of conversations, as many")
    args = parser.parse_args(argv)
    folder = find_checkpoint([args.folder], "expected the folder of a checkpoint, such as out/SFT")
    texts = list(islice(read_all(args.texts, "text"), MOST))
    if not texts:
        raise UserError(f"{args.texts}: expected texts, found an empty file")
    to_prompt = partial(prompt_ids, ChatTokenizer(folder))
    questions = [prompt for prompt, _ in read_questions(args.questions, to_prompt)]
    report(folder, texts, questions[:MOST])


if __name__ == "__main__":
    run_script(main)
