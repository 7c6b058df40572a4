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

from dataset import prompt_ids
from generate import Sampling, generate
from infra.cli import make_parser, run_script
from infra.questions import read_all, read_questions
from infra.tokenizer import BOS, ChatTokenizer
from model import WeakWater
from tools.export_gguf import TYPES, export_gguf
from tools.gguf_proof import NEW_TOKENS, logits_of, open_llama, reply_of


def text_loss(llama, texts: list[list[int]]) -> float:
    """Mean loss, in nats per token, of texts of ids."""
    nats = []
    for ids in texts:
        log_probabilities = logits_of(llama, ids[:-1]).log_softmax(-1)
        nats += (-log_probabilities.gather(1, torch.tensor(ids[1:])[:, None])).flatten().tolist()
    return mean(nats)


def compare(folder: str, texts: list[str], questions: list[list[int]]) -> list[dict]:
    """A row for each type: {"type", "megabytes", "loss", "equal_replies", "tokens_per_second"}."""
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    context = min(tokenizer.max_length, model.config.max_position_embeddings)
    ids = [[BOS, *tokenizer.encode(text)][: context + 1] for text in texts]
    ids, questions = [text for text in ids if len(text) > 1], [one for one in questions if len(one) < context]
    replies = generate(model, questions, Sampling(max_new_tokens=NEW_TOKENS))
    with tempfile.TemporaryDirectory() as temporary:
        paths = {type: export_gguf(folder, Path(temporary) / type, type) for type in TYPES}
        llamas = {type: open_llama(path, context) for type, path in paths.items()}
        rows = {type: {"type": type, "megabytes": path.stat().st_size / 1e6} for type, path in paths.items()}
    equal, speeds = dict.fromkeys(rows, 0), {type: [] for type in rows}
    for prompt, reply in zip(questions, replies):
        for type, llama in llamas.items():
            llama.reset()
            start = time.perf_counter()
            found = reply_of(llama, prompt, NEW_TOKENS)
            speeds[type].append(len(found) / (time.perf_counter() - start))
            equal[type] += found == reply
    for type, llama in llamas.items():
        more = {"equal_replies": equal[type] / len(questions), "tokens_per_second": median(speeds[type])}
        rows[type] |= {"loss": text_loss(llama, ids), **more}
    return list(rows.values())


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the checkpoint's folder")
    parser.add_argument("--texts", required=True, help="a JSONL file of held-out texts")
    parser.add_argument("--questions", required=True, help="a JSONL file of conversations")
    parser.add_argument("--count", type=int, default=100, help="texts and questions, at most (default: 100)")
    args = parser.parse_args(argv)
    texts = list(islice(read_all(args.texts, "text"), args.count))
    tokenizer = ChatTokenizer(args.folder)
    questions = [ids for ids, _ in read_questions(args.questions, partial(prompt_ids, tokenizer))][
        : args.count
    ]
    print("| type | MB | loss | equal replies | tokens a second |\n|---|---|---|---|---|")
    for row in compare(args.folder, texts, questions):
        shown = f"{row['megabytes']:.1f} | {row['loss']:.4f} | {row['equal_replies']:.0%}"
        print(f"| {row['type']} | {shown} | {row['tokens_per_second']:.0f} |")


if __name__ == "__main__":
    run_script(main)
