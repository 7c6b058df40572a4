"""python quickstart.py

The whole pipeline on generated data, on a laptop: data, tokenizer, pretraining, SFT, distillation, then a scoreboard.

Everything goes to out/quickstart. A second run goes on where the first one was stopped and redoes nothing that is
finished; --fresh starts from nothing.
"""

import argparse
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import distill
import pretrain
import SFT
from Config import DEVICES_HELP, LLMConfig, run_script, write_atomically
from dataset import BOS, ChatTokenizer
from eval_model import is_right, score_file
from generate import Sampling, generate
from model import WeakWater, has_fast_bf16, pick_device
from tools.sample_data import probe_turns, write_sample_data
from train_tokenizer import sample_lines, save_tokenizer, texts_of, train_tokenizer

VOCAB_SIZE = 1536
COMMON = {"preset": "tiny", "batch_size": 8, "max_seq_len": 256, "epochs": 100, "log_every": 10, "eval_every": 300, "save_every": 150}
STAGES = {
    "pretrain": {"script": pretrain, "folder": "pretrain", "data": "pretrain", "steps": 600, "flags": {"learning_rate": 1e-2, "embedding_rate": 1}},
    "sft": {"script": SFT, "folder": "SFT", "data": "sft", "steps": 120, "from": "pretrain", "flags": {"learning_rate": 4e-3}},
    "distill": {"script": distill, "folder": "distill", "data": "r1", "steps": 1240, "from": "SFT", "flags": {"learning_rate": 6e-3, "min_lr_ratio": 0.02}},
}
BEGINNING = "小明有"
QUESTIONS = ["你是谁？", "小明有345个苹果，又买了278个。小明一共有多少个苹果？"]


class Report:
    """report.json: what is finished, written anew after each part, so that a second run can skip it.

    anew: how to start over, for the message when the settings differ. may_change: names of those that may; the newest are kept.
    """

    def __init__(self, folder, settings, anew, may_change=()):
        self.path = folder / "report.json"
        self.parts = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {"settings": settings, "seconds": 0.0}
        stored = self.parts["settings"]
        for name in {**settings, **stored}:
            if name not in may_change and stored.get(name) != settings.get(name):
                raise ValueError(f"{self.path}: found a run with {name} {stored.get(name)}, here it is {settings.get(name)}: use the same, another --out_dir, or {anew} to start over")
        self.parts["settings"] = settings

    def do(self, name, title, work):
        """Put what `work()` returns under `name`, with its seconds, unless an earlier run has done it. Returns whether it was done now."""
        if name in self.parts:
            print(f"=== {title}: done before")
            return False
        print(f"=== {title}", flush=True)
        start = time.perf_counter()
        try:
            result = work()
        except BaseException:
            if self.path.is_file():  # time that was spent, if there is a run that it was spent on
                with suppress(OSError):  # a full disk, say, which is what ended it
                    self.add_seconds(time.perf_counter() - start)
            raise
        seconds = time.perf_counter() - start
        self.parts[name] = {**result, "seconds": round(seconds, 1)}
        self.add_seconds(seconds)
        return True

    def forget(self, *names):
        """Let the next run do these parts again."""
        self.parts = {name: part for name, part in self.parts.items() if name not in names}
        if self.path.is_file():
            self.add_seconds(0.0)

    def add_seconds(self, seconds):
        self.parts["seconds"] = round(self.parts["seconds"] + seconds, 1)
        write_atomically(self.path, lambda path: path.write_text(json.dumps(self.parts, indent=2) + "\n", encoding="utf-8"))


def make_data(folder, args):
    paths = write_sample_data(folder / "data", args.seed, min(1.0, args.scale * 4))
    return {"megabytes": round(sum(path.stat().st_size for path in paths.values()) / 1e6, 1)}


def make_tokenizer(folder):
    """From texts and conversations, since a vocabulary this small has no room for what only one of them needs."""
    texts = [
        text
        for name, kind in (("pretrain", "text"), ("sft", "conversations"))
        for text in texts_of(sample_lines(folder / "data" / f"{name}.jsonl"), kind)
    ]
    save_tokenizer(train_tokenizer(texts, VOCAB_SIZE), folder / "tokenizer", LLMConfig.preset("tiny").max_position_embeddings)
    return {"vocab_size": VOCAB_SIZE}


def run_stage(name, folder, args):
    """Train and, if it can answer, score a stage: {val_loss, val_ppl, tokens, train_seconds, ...}."""
    stage = STAGES[name]
    data = folder / "data" / stage["data"]
    flags = COMMON | stage["flags"] | {"seed": args.seed, "out_dir": folder / stage["folder"], "max_steps": max(2, round(stage["steps"] * args.scale))}
    flags |= {"data_path": f"{data}.jsonl", "val_path": f"{data}_val.jsonl"}
    flags |= {"init_from": folder / stage["from"]} if "from" in stage else {"tokenizer": folder / "tokenizer"}
    flags |= {"device": args.device} if args.device else {}
    flags |= {"dtype": "bf16"} if has_fast_bf16(pick_device(args.device)) else {}  # on CPUs that can, it learns the same sooner
    resume = (folder / stage["folder"] / "training_state.pt").is_file()
    try:
        last = stage["script"].main([f"--{flag}={value}" for flag, value in flags.items()] + ["--resume"] * resume)
    except SystemExit:  # Ctrl-C or SIGTERM
        print("here: run quickstart.py again, without --fresh, and it goes on from the last save")
        raise
    result = {"val_loss": last["val_loss"], "val_ppl": last["val_ppl"], "tokens": last["tokens"], "train_seconds": round(last["seconds"], 1)}
    return result | (score_stage(name, folder, args) if "from" in stage else {})


def load_stage(name, folder, args):
    folder = folder / STAGES[name]["folder"]
    return WeakWater.from_pretrained(folder).to(pick_device(args.device)), ChatTokenizer(folder)


def score_stage(name, folder, args):
    """{reasoning_accuracy, well_formed, facts}: of the held-out word problems, and the share of taught facts answered right."""
    model, tokenizer = load_stage(name, folder, args)
    scores = score_file(model, tokenizer, folder / "data" / f"{STAGES[name]['data']}_test.jsonl")
    known = [is_right(answer(model, tokenizer, turn.question), turn.reply) for turn in probe_turns()]
    return {"reasoning_accuracy": scores["reasoning_accuracy"], "well_formed": scores["well_formed"], "facts": sum(known) / len(known)}


def answer(model, tokenizer, question):
    """The greedy reply to a question; a stage that cannot converse continues the text."""
    prompt = tokenizer.prompt_ids([{"role": "user", "content": question}])
    return tokenizer.decode(generate(model, [prompt], Sampling(max_new_tokens=256))[0])


def print_conversations(folder, args):
    for name, stage in STAGES.items():
        model, tokenizer = load_stage(name, folder, args)
        print(f"\n--- {name}")
        if "from" in stage:
            for question in QUESTIONS:
                print(f"> {question}\n{answer(model, tokenizer, question)}")
        else:
            ids = generate(model, [[BOS, *tokenizer.encode(BEGINNING)]], Sampling(max_new_tokens=60))[0]
            print(f"{BEGINNING}|{tokenizer.decode(ids)}")


def print_scoreboard(parts):
    print(f"\n{'stage':<10}{'val_loss':>10}{'val_ppl':>10}{'right':>11}{'well formed':>13}{'facts':>8}{'seconds':>9}")
    for name in STAGES:
        row = parts[name]
        shares = [f"{row[key]:.1%}" if key in row else "-" for key in ("reasoning_accuracy", "well_formed", "facts")]
        print(f"{name:<10}{row['val_loss']:>10.4f}{row['val_ppl']:>10.2f}{shares[0]:>11}{shares[1]:>13}{shares[2]:>8}{row['train_seconds']:>9.0f}")
    print(f"{parts['seconds']:.0f} seconds in all, {parts['tokens_per_second']} useful tokens a second in training")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="delete out_dir first")
    parser.add_argument("--out_dir", default="out/quickstart", help="where everything goes (default: out/quickstart)")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and order (default: 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the steps and, four times as much, of the data; less than 1 is a rehearsal (default: 1)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    if not 0 < args.scale <= 1:
        raise ValueError(f"--scale ({args.scale}) must be above 0 and at most 1")
    folder = Path(args.out_dir)
    if args.fresh and folder.is_dir():
        if any(folder.iterdir()) and not (folder / "report.json").is_file():
            raise ValueError(f"{folder}: found no report.json in it, so --fresh does not delete it: delete it yourself, or pass another --out_dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder, {"seed": args.seed, "scale": args.scale}, anew="--fresh")
    report.do("data", "generated data", lambda: make_data(folder, args))
    report.do("tokenizer", "tokenizer", lambda: make_tokenizer(folder))
    for name in STAGES:
        report.do(name, name, lambda: run_stage(name, folder, args))
    trained = [report.parts[name] for name in STAGES]
    report.parts["tokens_per_second"] = round(sum(part["tokens"] for part in trained) / sum(part["train_seconds"] for part in trained))
    report.add_seconds(0.0)
    print_conversations(folder, args)
    print_scoreboard(report.parts)
    distilled = folder / STAGES["distill"]["folder"]
    print(f"all numbers: {report.path} | charts: {distilled / 'charts'} | go on chatting:\n    python eval_model.py --model_dir {distilled} --temperature 0")


if __name__ == "__main__":
    run_script(main)
