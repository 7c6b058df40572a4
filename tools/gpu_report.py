"""python tools/gpu_report.py --data_path sft_512.jsonl --tokenizer WeakWater_tokenizer

Everything about a card in one command: is it right, then how fast. After --minutes nothing more is begun. Results are written to
benchmarks/gpu_<device>.json as they come, so that a run cut short keeps what it had.

Right: logits and gradients against transformers' Llama, packed rows against one document at a time, compiled against eager,
bf16 and fp16 against fp32, captured decoding against plain, a resumed run against one that was not stopped; that no step
waits for the card, and that nothing is compiled anew during a run. Fast: `benchmark.py`'s candidates in training with rows
of 512 and 1024 tokens, and in generation. Without a data_path, generated conversations are used.

    python tools/gpu_report.py --device cpu --preset tiny --batch_size 2 --steps 2     a rehearsal without a card
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import trainer
from Config import DEVICES_HELP, LLMConfig, TrainConfig, run_script, write_atomically
from dataset import Batch, ChatTokenizer, PackedRows, detect_kind, open_cache
from generate import CapturedDecoding, Decoding
from model import KVCache, WeakWater, pick_device
from tools import benchmark

ROWS = [  # candidate of benchmark.py, tokens in a row; the most telling first
    ("weakwater", 512),
    ("transformers eager padded", 512),
    ("transformers compiled packed", 512),
    ("transformers eager packed", 512),
    ("weakwater eager", 512),
    ("weakwater", 1024),
    ("transformers compiled packed", 1024),
    ("weakwater whole logits", 512),
    ("weakwater dense mask", 512),
    ("transformers compiled padded", 512),
]


class Report:
    """Results by name, in a file that is rewritten after each; nothing is begun after the deadline."""

    def __init__(self, path, about, minutes):
        self.path, self.results = path, {**about, "checks": {}, "training": {}, "generation": {}}
        self.deadline = time.monotonic() + minutes * 60
        path.parent.mkdir(parents=True, exist_ok=True)

    def do(self, part, name, measure):
        if time.monotonic() > self.deadline:
            result = {"error": "not begun: the time was over"}
        else:
            start = time.monotonic()
            try:
                result = measure()
            except (RuntimeError, ValueError, AssertionError, ImportError) as error:  # the other parts are worth having
                result = {"error": str(error)[-1500:]}
            result["took_seconds"] = round(time.monotonic() - start, 1)
        self.results[part][name] = result
        write_atomically(self.path, lambda path: path.write_text(json.dumps(self.results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"))
        print(f"{part} | {name} | " + " | ".join(f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()), flush=True)


# ---- is it right ----


class Bench:
    """A model, rows and a batch of them on the device, for all checks."""

    def __init__(self, args):
        self.args, self.device = args, pick_device(args.device)
        self.tokenizer = ChatTokenizer(args.tokenizer)
        kind = detect_kind(args.data_path)
        cache = open_cache(args.data_path, self.tokenizer, kind, cache_dir=args.cache_dir)
        self.rows = PackedRows(cache, np.arange(min(len(cache), 2000)), args.max_seq_len)
        self.config = LLMConfig.preset(args.preset, vocab_size=len(self.tokenizer))
        self.batch = trainer.stack([self.rows[row] for row in range(args.batch_size)], args.batch_size, args.max_seq_len)

    def model(self):
        torch.manual_seed(0)
        return WeakWater(self.config).to(self.device)

    def run(self, model=None, **changes):
        config = TrainConfig(
            batch_size=self.args.batch_size, max_seq_len=self.args.max_seq_len, epochs=1000, device=self.args.device, out_dir=str(Path(self.args.cache_dir) / "run"),
        )  # fmt: skip
        return trainer.Run(model or self.model(), self.rows, replace(config, **changes), 0, 1, self.device)

    def loss_and_gradients(self, **changes):
        """Mean loss of the batch and all gradients of it in one vector."""
        run = self.run(**changes)
        scale = float(self.batch.weights.sum())
        loss = run.loss_sum(run.forward, self.batch) / scale
        run.scaler.scale(loss).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])
        return float(loss.detach()), gradients / run.scaler.get_scale()


@contextmanager
def exact_products():
    """float32 products in float32, where a card would otherwise take TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def against_transformers(bench):
    """Logits and gradients in fp32 on one text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = bench.model()
    llama = LlamaForCausalLM(LlamaConfig(**vars(bench.config))).to(bench.device)
    llama.load_state_dict(ours.state_dict())
    ids = torch.randint(7, bench.config.vocab_size, (2, 200), device=bench.device)
    with exact_products():
        logits, expected = ours(ids), llama(ids).logits
        logits.square().mean().backward()
        expected.square().mean().backward()
        logits, expected = logits.detach(), expected.detach()
    theirs = dict(llama.named_parameters())
    gradients = [(parameter.grad - theirs[name].grad).norm() / theirs[name].grad.norm() for name, parameter in ours.named_parameters()]
    return {"largest_logit_difference": float((logits - expected).abs().max()), "largest_relative_gradient_difference": float(max(gradients))}


def packed_against_alone(bench):
    """The summed loss of packed rows, and of each of their documents alone, in fp32."""
    run = bench.run(dtype="fp32", compile=None)
    with torch.no_grad(), exact_products():
        packed = float(run.loss_sum(run.forward, bench.batch))
        alone = 0.0
        for row in range(min(2, len(bench.batch.input_ids))):
            for document in range(1, int(bench.batch.document_ids[row].max()) + 1):
                here = bench.batch.document_ids[row] == document
                ids, labels, weights = (tensor[row][here][None].to(bench.device) for tensor in bench.batch[:3])
                alone += float(run.model(ids, None, labels, weights))
        two = Batch(*(tensor.clone() for tensor in bench.batch))
        two.weights[2:] = 0
        of_two = float(run.loss_sum(run.forward, two))
    return {"packed": of_two, "alone": alone, "relative_difference": abs(of_two - alone) / alone, "whole_batch": packed}


def compiled_against_eager(bench):
    with exact_products():
        (loss, gradients), (expected, expected_gradients) = (bench.loss_and_gradients(dtype="fp32", compile=compile) for compile in (bench.compiles, False))
    return {"loss_difference": abs(loss - expected), "relative_gradient_difference": float((gradients - expected_gradients).norm() / expected_gradients.norm())}


def half_against_full(bench, dtype):
    (loss, gradients), (expected, expected_gradients) = (bench.loss_and_gradients(dtype=kind, compile=False) for kind in (dtype, "fp32"))
    return {"loss_difference": abs(loss - expected), "relative_gradient_difference": float((gradients - expected_gradients).norm() / expected_gradients.norm())}


def steps_that_do_not_wait(bench):
    """Twenty steps with every synchronization an error, and every compilation after the first step one."""
    import torch._dynamo

    run = bench.run(log_every=10**6)
    run.take_step(1, run.forward)
    is_cuda = bench.device.type == "cuda"
    before, torch._dynamo.config.error_on_recompile = torch._dynamo.config.error_on_recompile, True
    if is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 22 if is_cuda else 4):
            run.take_step(step, run.forward)
    finally:
        torch._dynamo.config.error_on_recompile = before
        if is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": run.step, "skipped": run.skipped, "compiled": run.compiled}


def captured_against_plain(bench):
    """The same 60 tokens through a decoding step recorded as a CUDA graph and one that is not: how far their logits differ."""
    model = bench.model().eval()
    ids = torch.randint(7, bench.config.vocab_size, (2, 100), device=bench.device)
    kinds = (CapturedDecoding if bench.device.type == "cuda" else Decoding, Decoding)
    found = []
    with torch.inference_mode():
        for kind in kinds:
            cache = KVCache(bench.config, 2, 100, bench.device)
            model(ids[:, :40], cache=cache, last_only=True)
            decode = kind(model, cache, {})
            found.append(torch.stack([decode(ids[:, position : position + 1]).clone() for position in range(40, 100)]))
    return {"largest_logit_difference": float((found[0] - found[1]).abs().max()), "largest_logit": float(found[1].abs().max())}


def resumed_against_unbroken(bench):
    """The largest difference between the weights of six steps, and of three, a save, a load and three."""
    found = []
    for stop in (None, 3):
        folder = tempfile.mkdtemp(dir=bench.args.cache_dir)
        flags = {"out_dir": folder, "max_steps": 6, "compile": False, "warmup_steps": 1, "learning_rate": 1e-3}
        run = bench.run(**flags)
        log = trainer.Log(run)
        for step in range(1, (stop or 6) + 1):
            log.add(run.take_step(step, run.forward))
        if stop:
            run.save(stop, log)
            run = bench.run(**flags, resume=True)
            log = trainer.Log(run)
            run.load(log)
            for step in range(stop + 1, 7):
                run.take_step(step, run.forward)
        log.close()
        found.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    return {"largest_weight_difference": float((found[0] - found[1]).abs().max()), "largest_weight": float(found[0].abs().max())}


CHECKS = {
    "logits and gradients against transformers": against_transformers,
    "packed against alone": packed_against_alone,
    "compiled against eager": compiled_against_eager,
    "bf16 against fp32": lambda bench: half_against_full(bench, "bf16"),
    "fp16 against fp32": lambda bench: half_against_full(bench, "fp16"),
    "no step waits or compiles": steps_that_do_not_wait,
    "captured decoding against plain": captured_against_plain,
    "resumed against unbroken": resumed_against_unbroken,
}


# ---- all of it ----


def report(args, folder):
    args.cache_dir = str(folder)
    benchmark.prepare(args, folder)
    bench = Bench(args)
    bench.compiles = None if bench.device.type == "cuda" else False  # None: as training does
    about = benchmark.about_machine(bench.device)
    name = "rehearsal" if bench.device.type == "cpu" else about["device"].replace(" ", "_")
    result = Report(Path(args.out_dir) / f"gpu_{name}.json", {"command": " ".join(["python", "tools/gpu_report.py", *sys.argv[1:]]), **about}, args.minutes)
    for check, measure in CHECKS.items():
        if "fp16" in check and bench.device.type != "cuda":
            continue
        result.do("checks", check, lambda: measure(bench))
    del bench
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    shared = ["--batch_size", args.batch_size, "--steps", args.steps, "--preset", args.preset, "--device", args.device, "--data_path", args.data_path]
    shared += ["--tokenizer", args.tokenizer, "--cache_dir", args.cache_dir]
    for candidate, length in ROWS:
        rows = args.batch_size * 512 // length
        flags = ["train", *shared, "--max_seq_len", length, "--batch_size", max(1, rows)]
        result.do("training", f"{candidate}, {length}", lambda: benchmark.in_a_process(flags, candidate))
    for candidate in ("weakwater", "transformers"):
        result.do("generation", candidate, lambda: benchmark.in_a_process(["generate", *shared], candidate))
    print(result.path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="", help="JSONL conversations (default: generated ones)")
    parser.add_argument("--tokenizer", default="", help="the tokenizer's folder (default: one learned from the data)")
    parser.add_argument("--out_dir", default="benchmarks", help="where the JSON goes (default: benchmarks)")
    parser.add_argument("--minutes", type=float, default=7.0, help="nothing is begun after so many (default: 7)")
    parser.add_argument("--preset", default="30m", help="the model's shape (default: 30m)")
    parser.add_argument("--vocab_size", type=int, default=6400, help="of a tokenizer to learn (default: 6400)")
    parser.add_argument("--batch_size", type=int, default=80, help="rows of 512 tokens in a micro-batch (default: 80)")
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens in a row, for the checks (default: 512)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (default: 20)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report(args, Path(folder))


if __name__ == "__main__":
    run_script(main)
