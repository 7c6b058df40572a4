"""python quickstart.py

The whole pipeline on generated data, on a laptop: data, tokenizer, pretraining, SFT, distillation, then a scoreboard.

Everything goes to out/quickstart. A second run goes on where the first one was stopped and redoes nothing that is
finished; --fresh starts from nothing.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import distill
import pretrain
import SFT
import train_tokenizer
from Config import DEVICES_HELP, run_script
from dataset import ChatTokenizer
from eval_model import score_file
from generate import Sampling, generate
from model import WeakWater, pick_device, write_atomically
from tools.sample_data import FACT_CHECKS, write_sample_data

VOCAB_SIZE = 1536
STEPS = {"pretrain": 300, "SFT": 150, "distill": 450}
COMMON = {"preset": "tiny", "batch_size": 16, "max_seq_len": 256, "epochs": 100, "log_every": 10}
FLAGS = {
    "pretrain": {"learning_rate": 3e-3, "eval_every": 100, "save_every": 100},
    "SFT": {"learning_rate": 2e-3, "eval_every": 50, "save_every": 50},
    "distill": {"learning_rate": 2e-3, "eval_every": 100, "save_every": 100, "tag_weight": 1.0},
}
SCRIPTS = {"pretrain": pretrain, "SFT": SFT, "distill": distill}
DATA = {"pretrain": "pretrain", "SFT": "sft", "distill": "r1"}
BEFORE = {"SFT": "pretrain", "distill": "SFT"}
STORY = "小明有345个苹果，又买了278个。小明一共有多少个苹果？"
CONVERSATIONS = {"pretrain": ["小明有"], "SFT": ["你是谁？", STORY], "distill": ["你是谁？", STORY]}


class Report:
    """report.json: what is finished, written anew after each part, so that a second run can skip it."""

    def __init__(self, folder, settings):
        self.path = folder / "report.json"
        self.parts = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {"seconds": 0.0}
        if self.parts.setdefault("settings", settings) != settings:
            raise ValueError(f"{self.path}: found a run with {self.parts['settings']}, expected {settings}: use the same flags, or --fresh")

    def do(self, name, title, work):
        """`work()` and its seconds, unless an earlier run has done it."""
        if name in self.parts:
            print(f"=== {title}: done before")
            return
        print(f"=== {title}", flush=True)
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.parts[name] = {**result, "seconds": round(seconds, 1)}
        self.parts["seconds"] = round(self.parts["seconds"] + seconds, 1)
        write_atomically(self.path, lambda path: path.write_text(json.dumps(self.parts, indent=2) + "\n", encoding="utf-8"))


def train_stage(stage, folder, args):
    """Run a stage's script; returns {val_loss, val_ppl, tokens}."""
    data = folder / "data" / DATA[stage]
    flags = {**COMMON, **FLAGS[stage], "seed": args.seed, "out_dir": folder / stage}
    flags |= {"data_path": f"{data}.jsonl", "val_path": f"{data}_val.jsonl", "max_steps": max(2, round(STEPS[stage] * args.scale))}
    flags |= {"init_from": folder / BEFORE[stage]} if stage in BEFORE else {"tokenizer": folder / "tokenizer"}
    if args.device:
        flags["device"] = args.device
    last = SCRIPTS[stage].main([f"--{name}={value}" for name, value in flags.items()] + ["--resume"])
    return {name: last[name] for name in ("val_loss", "val_ppl")}


def load_stage(stage, folder, args):
    return WeakWater.from_pretrained(folder / stage).to(pick_device(args.device)), ChatTokenizer(folder / stage)


def score_stage(stage, folder, args):
    """{reasoning_accuracy, well_formed, facts} of a stage on the held-out word problems and on FACT_CHECKS."""
    model, tokenizer = load_stage(stage, folder, args)
    scores = score_file(model, tokenizer, folder / "data" / f"{DATA[stage]}_test.jsonl")
    replies = answer(model, tokenizer, [question for question, _ in FACT_CHECKS])
    known = [expected in reply for reply, (_, expected) in zip(replies, FACT_CHECKS)]
    return {**scores, "facts": sum(known) / len(known)}


def answer(model, tokenizer, questions):
    """Greedy replies to single questions."""
    prompts = [tokenizer.prompt_ids([{"role": "user", "content": question}]) for question in questions]
    return [tokenizer.decode(ids) for ids in generate(model, prompts, Sampling(max_new_tokens=256))]


def print_scoreboard(parts):
    print(f"\n{'stage':<10}{'val_loss':>10}{'val_ppl':>10}{'reasoning':>11}{'well formed':>13}{'facts':>8}{'seconds':>9}")
    for stage in SCRIPTS:
        row = parts[stage]
        line = f"{stage:<10}{row['val_loss']:>10.4f}{row['val_ppl']:>10.2f}"
        if stage in BEFORE:
            scores = parts[f"score {stage}"]
            line += f"{scores['reasoning_accuracy']:>11.1%}{scores['well_formed']:>13.1%}{scores['facts']:>8.0%}"
        else:
            line += f"{'-':>11}{'-':>13}{'-':>8}"
        print(line + f"{row['seconds']:>9.0f}")
    print(f"{parts['seconds']:.0f} seconds in all, {parts['tokens_per_second']:.0f} useful tokens a second in training")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="delete out/quickstart first")
    parser.add_argument("--out_dir", default="out/quickstart", help="where everything goes (default: out/quickstart)")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and order (default: 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the data and the steps; less is a rehearsal (default: 1)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    folder = Path(args.out_dir)
    if args.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder, {"seed": args.seed, "scale": args.scale})

    report.do("data", "data", lambda: make_data(folder, args))
    report.do("tokenizer", "tokenizer", lambda: make_tokenizer(folder))
    for stage in SCRIPTS:
        report.do(stage, stage, lambda: train_stage(stage, folder, args))
        if stage in BEFORE:
            report.do(f"score {stage}", f"scoring {stage} on held-out word problems", lambda: score_stage(stage, folder, args))
    print_scoreboard(report.parts)
