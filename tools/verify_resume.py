"""python tools/verify_resume.py --kills 10

Kill a small training run again and again at random moments, resume it each time, and compare its result with
that of a run that was never interrupted: the weights to the bit, the lines of metrics.jsonl without times.

A fifth of the kills is aimed at the tokenizing of the data. A run that ends before it is killed is compared,
and the next one begins. Exit code 0 if all results were the same, else 1.
"""

import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file

from Config import DEVICES_HELP
from infra.cli import Flags, UserError, flag, parse_args, run_script
from infra.metrics import TIMING_METRICS, read_metrics
from infra.text_sample import sample_lines, texts_of
from tools.sample_data import write_sample_data
from train_tokenizer import save_tokenizer, train_tokenizer

EVAL_EVERY = 2
FLAGS = "--resume --preset tiny --max_seq_len 256 --batch_size 2 --max_steps 12 --save_every 3 --log_every 1"
DATA = "--data_path pretrain.jsonl --val_path pretrain_val.jsonl --tokenizer tokenizer"
VAL_LINES = 20  # of validation text
VOCAB_SIZE = 500
AIMED = 5  # each fifth kill comes while the data is tokenized, which a random moment would hardly hit


@dataclass(frozen=True)
class VerifyConfig(Flags):
    kills: int = flag(10, "runs that are killed at a random moment", least=0)
    seed: int = flag(0, "of the data, the weights and the moments", least=0)
    device: str = flag("", DEVICES_HELP)


@dataclass(frozen=True)
class SmallRun:
    """A small pretraining run; its folder has its cache and its out_dir, the data lies beside it."""

    folder: Path
    config: VerifyConfig

    @property
    def out_dir(self) -> Path:
        return self.folder / "out"

    def command(self) -> list[str]:
        folders = f"--cache_dir {self.folder.name}/cache --out_dir {self.folder.name}/out"
        others = f"--eval_every {EVAL_EVERY} --seed {self.config.seed} --device={self.config.device}"
        return [sys.executable, str(ROOT / "pretrain.py"), *f"{FLAGS} {DATA} {folders} {others}".split()]

    def last_words(self) -> str:
        return self.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def is_tokenizing(self) -> bool:
        return any((self.folder / "cache").glob("*.tmp"))

    def go_on(self, seconds: float | None = None, begun=lambda: True) -> bool:
        """Train on, and kill that so many seconds after `begun()`. True if it ended before, with code 0."""
        with open(self.folder.with_suffix(".log"), "wb") as log:
            process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder.parent)
        while not begun() and process.poll() is None:
            time.sleep(0.01)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        if code:
            raise UserError(f"the run failed: {self.last_words()}")
        return True

    def moment(self) -> str:
        """What a killed run was doing, from what it left."""
        if self.is_tokenizing():
            return "tokenizing"
        if any(self.out_dir.rglob("*.tmp")):
            return "saving"
        lines = [line for line in self.last_words().splitlines() if line.startswith("step ")]
        if not lines:
            return "starting"
        step = int(lines[-1].split()[1].split("/")[0])
        return "validating" if step % EVAL_EVERY == 0 and "val_loss" not in lines[-1] else "training"

    def result(self) -> tuple[str, list[dict]]:
        """(SHA-256 of the weights, the lines of metrics.jsonl without times)."""
        lines = read_metrics(self.out_dir / "metrics.jsonl")
        untimed = [{name: line[name] for name in line if name not in TIMING_METRICS} for line in lines]
        return hashlib.sha256((self.out_dir / "model.safetensors").read_bytes()).hexdigest(), untimed


def compare(run: SmallRun, uninterrupted: SmallRun) -> bool:
    """Print whether the result of a run is that of the uninterrupted one. True if so."""
    (expected, expected_lines), (found, lines) = uninterrupted.result(), run.result()
    is_same = (found, lines) == (expected, expected_lines)
    verdict = "identical" if is_same else "DIFFERENT"
    print(f"{run.folder.name}: weights {found} | {len(lines)} lines of metrics | {verdict}", flush=True)
    if not is_same:
        ours, theirs = (load_file(one.out_dir / "model.safetensors") for one in (uninterrupted, run))
        largest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
        steps = sorted({a["step"] for a, b in zip(expected_lines, lines) if a != b})
        print(f"  largest difference of a weight: {largest:.3g}; steps whose lines differ: {steps}")
    return is_same


def make_data(folder: Path, seed: int) -> None:
    paths = write_sample_data(folder, seed, 0.25)
    val_lines = paths["pretrain_val"].read_bytes().splitlines(keepends=True)
    paths["pretrain_val"].write_bytes(b"".join(val_lines[:VAL_LINES]))
    texts = texts_of(sample_lines(paths["pretrain"]), "text")
    save_tokenizer(train_tokenizer(texts, VOCAB_SIZE), folder / "tokenizer", 1024)


def verify(folder: Path, config: VerifyConfig) -> bool:
    """Kill and resume runs until there were `config.kills` kills. True if every result was the same."""
    make_data(folder, config.seed)
    uninterrupted = SmallRun(folder / "uninterrupted", config)
    start = time.perf_counter()
    uninterrupted.go_on()
    seconds = time.perf_counter() - start
    weights, lines = uninterrupted.result()
    print(f"uninterrupted: weights {weights} | {len(lines)} lines of metrics | {seconds:.1f} s", flush=True)
    rng, moments, verdicts = random.Random(config.seed), Counter(), []
    run = SmallRun(folder / "run_1", config)
    while moments.total() < config.kills:
        if moments.total() % AIMED == 0:
            shutil.rmtree(run.folder / "cache", ignore_errors=True)
            has_ended = run.go_on(rng.uniform(0, 0.2), begun=run.is_tokenizing)
        else:
            has_ended = run.go_on(rng.uniform(0, seconds))
        if has_ended:
            verdicts.append(compare(run, uninterrupted))
            run = SmallRun(folder / f"run_{len(verdicts) + 1}", config)
        else:
            moments[run.moment()] += 1
    run.go_on()
    verdicts.append(compare(run, uninterrupted))
    counts = ", ".join(f"{count} while {what}" for what, count in moments.items())
    print(f"killed {moments.total()} times: {counts}")
    return all(verdicts)


def main(argv=None):
    config = parse_args(VerifyConfig(), __doc__, argv)
    with tempfile.TemporaryDirectory() as folder:
        if not verify(Path(folder), config):
            sys.exit(1)


if __name__ == "__main__":
    run_script(main)
