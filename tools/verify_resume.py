"""python tools/verify_resume.py --kills 10

Kill a small training run again and again at random moments, resume it each time, and compare what it leaves with the
result of a run that was never interrupted: the weights to the bit, and the lines of metrics.jsonl but for their times.

A fifth of the kills is aimed at the tokenizing of the data. A run that comes to its end before it is killed is compared and
begun anew. Exit code 0 if all were the same, else 1.
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file

from Config import DEVICES_HELP, run_script
from tools.sample_data import write_sample_data
from train_tokenizer import sample_lines, save_tokenizer, texts_of, train_tokenizer
from trainer import TIMED_METRICS, read_metrics

STEPS, SAVE_EVERY, EVAL_EVERY = 12, 3, 2
VAL_LINES = 20  # of validation text
VOCAB_SIZE = 500


def command(folder, run, args):
    """One small pretraining run with a cache and an out_dir of its own."""
    flags = {
        "data_path": folder / "pretrain.jsonl", "val_path": folder / "pretrain_val.jsonl", "tokenizer": folder / "tokenizer",
        "cache_dir": folder / run / "cache", "out_dir": folder / run / "out", "preset": "tiny", "max_seq_len": 256, "batch_size": 2,
        "max_steps": STEPS, "save_every": SAVE_EVERY, "eval_every": EVAL_EVERY, "log_every": 1, "seed": args.seed,
    }  # fmt: skip
    flags |= {"device": args.device} if args.device else {}
    return [sys.executable, str(ROOT / "pretrain.py"), *(f"--{name}={value}" for name, value in flags.items()), "--resume"]


def run_for(command, log, seconds=None, begun=lambda: True):
    """Run a command, killing it so many seconds after `begun()` is true; its exit code, or None if it was killed."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while not begun() and process.poll() is None:
            time.sleep(0.01)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def is_tokenizing(folder):
    return bool(list((folder / "cache").glob("*.tmp")))


def moment(folder, log):
    """What a killed run was doing, from what it left."""
    if is_tokenizing(folder):
        return "tokenizing"
    if list((folder / "out").rglob("*.tmp")):
        return "saving"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith("step ")]
    if not lines:
        return "starting"
    step = int(lines[-1].split()[1].split("/")[0])
    return "validating" if step % EVAL_EVERY == 0 and "val_loss" not in lines[-1] else "training"


def result(folder):
    """(SHA-256 of the weights, the lines of metrics.jsonl without times)."""
    weights = hashlib.sha256((folder / "out" / "model.safetensors").read_bytes()).hexdigest()
    lines = read_metrics(folder / "out" / "metrics.jsonl")
    return weights, [{name: value for name, value in line.items() if name not in TIMED_METRICS} for line in lines]


def finish(folder, run, args):
    """Let a run come to its end. Raises ValueError with its last words if it does not."""
    log = folder / f"{run}.log"
    if run_for(command(folder, run, args), log) != 0:
        raise ValueError(f"the run failed: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return result(folder / run)


def compare(expected, found, folder, run):
    """Print whether a run's result is the uninterrupted one's; True if so."""
    is_same = expected == found
    print(f"{run}: weights {found[0]} | {len(found[1])} lines of metrics | {'identical' if is_same else 'DIFFERENT'}", flush=True)
    if not is_same:
        ours, theirs = (load_file(folder / name / "out" / "model.safetensors") for name in ("uninterrupted", run))
        print(f"  largest difference of a weight: {max(float((ours[name] - theirs[name]).abs().max()) for name in ours):.3g}")
        print(f"  lines of metrics that differ: {[a['step'] for a, b in zip(expected[1], found[1]) if a != b] or len(found[1]) - len(expected[1])}")
    return is_same


def verify(folder, args):
    paths = write_sample_data(folder, args.seed, 0.25)
    val_lines = paths["pretrain_val"].read_bytes().splitlines(keepends=True)
    paths["pretrain_val"].write_bytes(b"".join(val_lines[:VAL_LINES]))
    texts = texts_of(sample_lines(paths["pretrain"]), "text")
    save_tokenizer(train_tokenizer(texts, VOCAB_SIZE), folder / "tokenizer", 1024)
    start = time.perf_counter()
    expected = finish(folder, "uninterrupted", args)
    seconds = time.perf_counter() - start
    print(f"uninterrupted: weights {expected[0]} | {len(expected[1])} lines of metrics | {seconds:.1f} s", flush=True)
    rng, moments, run, same = random.Random(args.seed), Counter(), 1, True
    while moments.total() < args.kills:
        name = f"run_{run}"
        log = folder / f"{name}.log"
        if moments.total() % 5 == 0:  # a fifth of the kills is aimed at tokenizing, which is over too soon to be hit
            shutil.rmtree(folder / name / "cache", ignore_errors=True)
            code = run_for(command(folder, name, args), log, rng.uniform(0, 0.2), partial(is_tokenizing, folder / name))
        else:
            code = run_for(command(folder, name, args), log, rng.uniform(0, seconds))
        if code is None:
            moments[moment(folder / name, log)] += 1
        elif code:
            raise ValueError(f"the run failed: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        else:  # it came to its end, which tells as much
            same &= compare(expected, finish(folder, name, args), folder, name)
            run += 1
    name = f"run_{run}"
    same &= compare(expected, finish(folder, name, args), folder, name)
    print(f"killed {moments.total()} times: " + ", ".join(f"{count} while {what}" for what, count in moments.items()))
    return same


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="runs that are killed at a random moment (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the moments (default: 0)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if not verify(Path(folder), args):
            sys.exit(1)


if __name__ == "__main__":
    run_script(main)
