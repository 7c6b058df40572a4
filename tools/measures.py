"""What tools/benchmark.py measures: training, generation, the data's way, and the machine."""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import trainer
from Config import LLMConfig, TrainConfig
from dataset import PackedRows, load_rows, open_tokens
from generate import Sampling, stream
from infra.checkpoint import save_model
from infra.cli import flag
from infra.device import pick_device, pick_dtype, synchronize
from infra.extent import mean_context, token_flops
from infra.jsonl import detect_field
from infra.metrics import read_metrics
from infra.text_sample import sample_lines, texts_of
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from tools import peers
from train_tokenizer import LONGEST_TOKEN, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
PROMPT_TOKENS, NEW_TOKENS, TOGETHER = 256, 128, 32
QUESTION_TOKENS, QUESTIONS = 64, 128  # as in scoring; with as many new tokens as the question has
WARMUP_STEPS = 2


@dataclass(frozen=True)
class BenchmarkConfig(TrainConfig):
    """The flags of a training run that matter here (FLAGS), and some more."""

    data_path: str = flag("", "JSONL texts or conversations (default: generated conversations)")
    tokenizer: str = flag("", "the tokenizer's folder (default: one learned from the data)")
    cache_dir: str = flag("", "where token caches go (default: a temporary folder)")
    out_dir: str = flag("benchmarks", "where the JSON goes")
    batch_size: int = flag(8, "rows in a micro-batch", above=0)
    compile: bool = flag(False, "start: with torch.compile")
    name: str = flag("", "in the JSON's file name (default: cpu, or the card's)")
    vocab_size: int = flag(6400, "of a tokenizer to learn", above=0)
    steps: int = flag(4, "steps that are timed", above=0)
    rounds: int = flag(3, "turns of each candidate", above=0)


# ---- training ----


def unpack(rows):
    """The same segments in random order, each alone in a row: what a script that pads trains on."""
    rows.order = np.random.default_rng(0).permutation(len(rows.order))
    rows.first_segment = np.arange(len(rows.order) + 1)
    return rows


def train_ours(model, rows, config) -> list[dict]:
    """Lines {seconds, tokens, loss, ...} of the training loop, the first one after WARMUP_STEPS."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.train(model, rows, replace(config, out_dir=folder))
        return [line for line in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in line]


def measure_train(candidate: str, config: BenchmarkConfig) -> dict:
    """{useful_tokens_per_second, ...} of `steps` steps after WARMUP_STEPS, at the real size of a step."""
    device, tokenizer = pick_device(config.device), ChatTokenizer(config.tokenizer)
    field = detect_field(config.data_path)
    cache = open_tokens(config.data_path, tokenizer, field, cache_dir=config.cache_dir)
    rows = PackedRows(cache, np.arange(len(cache)), config.max_seq_len)
    rows = unpack(rows) if "padded" in candidate else rows
    torch.manual_seed(0)
    is_ours, has_adamw = candidate.startswith("weakwater"), candidate.endswith(", AdamW")
    model = (WeakWater if is_ours else peers.Peer)(LLMConfig.preset(config.preset, vocab_size=len(tokenizer)))
    low = {"epochs": 1000, "warmup_steps": 1000}  # rates, so that no candidate diverges
    steps = {"max_steps": WARMUP_STEPS + config.steps, "log_every": WARMUP_STEPS}
    run = replace(config, compile="eager" not in candidate, **low, **steps)
    first, *_, last = (peers.train_with_adamw if has_adamw else train_ours)(model, rows, run)
    seconds = last["seconds"] - first["seconds"]
    positions = config.steps * run.rows_per_step * config.max_seq_len
    memory = peak_megabytes(device)  # before more is taken
    speed = (last["tokens"] - first["tokens"]) / seconds
    peak = matrix_peak(device, pick_dtype(config.dtype, device))
    return {
        "useful_tokens_per_second": speed,
        "positions_per_second": positions / seconds,
        "padding": 1 - speed * seconds / positions,
        "seconds_per_step": seconds / config.steps,
        "share_of_matrix_peak": speed * token_flops(model, mean_context(rows.lengths)) / peak,
        "matrix_peak_teraflops": peak / 1e12,
        "peak_megabytes": memory,
        "last_loss": last["loss"],
    }


# ---- generation ----


def measure_generate(candidate: str, config: BenchmarkConfig) -> dict:
    """{prefill and decode tokens per second}; medians, after one to warm up."""
    device, shape = pick_device(config.device), LLMConfig.preset(config.preset)
    torch.manual_seed(0)
    prompt = torch.randint(7, shape.vocab_size, (PROMPT_TOKENS,)).tolist()
    if candidate == "weakwater":
        generate = generate_ours(shape, device)
    elif candidate == "transformers":
        generate = peers.transformers_generator(shape, device)
    else:
        generate = peers.llama_cpp_generator(untrained(config))
    result, question = {}, prompt[:QUESTION_TOKENS]

    def seconds(prompts, count):
        start = time.perf_counter()
        found = generate(prompts, count)
        synchronize(device)
        assert found == count, f"generated {found} tokens, expected {count}"
        return time.perf_counter() - start

    for name, prompts, count, times in (
        ("", [prompt], NEW_TOKENS, 4),
        ("batched_", [prompt] * TOGETHER, NEW_TOKENS, 2),
        ("question_", [question], QUESTION_TOKENS, 4),
        ("questions_", [question] * QUESTIONS, QUESTION_TOKENS, 2),
    ):
        if len(prompts) > 1 and candidate == "llama.cpp":
            continue
        timings = [(seconds(prompts, 1), seconds(prompts, count)) for _ in range(1 + times)][1:]
        prefill, both = (statistics.median(column) for column in zip(*timings))
        result[f"{name}prefill_tokens_per_second"] = len(prompts) * len(prompts[0]) / prefill
        result[f"{name}decode_tokens_per_second"] = len(prompts) * (count - 1) / (both - prefill)
    return {**result, "peak_megabytes": peak_megabytes(device)}


def generate_ours(shape, device):
    """A function (prompts, count) -> tokens for each prompt; its calls share what a chat's replies share."""
    model = WeakWater(replace(shape, eos_token_id=-1)).to(device).eval()  # so that no reply ends early
    shared = {}
    return lambda prompts, count: len(list(stream(model, prompts, Sampling(max_new_tokens=count), shared)))


def untrained(config: BenchmarkConfig) -> Path:
    """A checkpoint of random weights, made once."""
    folder, tokenizer = Path(config.cache_dir) / "checkpoint", ChatTokenizer(config.tokenizer)
    if not folder.is_dir():
        model = WeakWater(LLMConfig.preset(config.preset, vocab_size=len(tokenizer)))
        save_model(model, folder, tokenizer, model.config.max_position_embeddings)
    return folder


# ---- data ----


def measure_start(candidate: str, config: BenchmarkConfig) -> dict:
    """{seconds} from the command to the first step of `pretrain.py` or, with conversations, `SFT.py`."""
    cache = Path(config.cache_dir) / ("warm" if candidate == "warm" else f"cold{time.time_ns()}")
    flags = [f"--data_path={config.data_path}", f"--tokenizer={config.tokenizer}", f"--cache_dir={cache}"]
    flags += [f"--out_dir={cache}/out", f"--batch_size={config.batch_size}", "--max_steps=1", "--log_every=1"]
    flags += ["--compile" if config.compile else "--no-compile"]
    if detect_field(config.data_path) == "text":
        script, model = "pretrain.py", f"--preset={config.preset}"
    else:
        script, model = "SFT.py", f"--init_from={untrained(config)}"
    command = [sys.executable, str(ROOT / script), *flags, model]
    for _ in range(2 if candidate == "warm" else 1):
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            seconds = next(time.perf_counter() - start for line in process.stdout if line.startswith("step "))
            process.kill()  # what comes after the first step, a validation and a checkpoint, is not measured
    return {"seconds": seconds}


def measure_tokenize(candidate: str, config: BenchmarkConfig) -> dict:
    """{megabytes_per_second, ...} of making a token cache, {open_seconds} of opening it as training does."""
    tokenizer, cache_dir = ChatTokenizer(config.tokenizer), str(Path(config.cache_dir) / str(time.time_ns()))
    field, size = detect_field(config.data_path), Path(config.data_path).stat().st_size
    before, start = peak_megabytes(CPU), time.perf_counter()
    cache = open_tokens(config.data_path, tokenizer, field, cache_dir=cache_dir)
    seconds, after = time.perf_counter() - start, peak_megabytes(CPU)
    start = time.perf_counter()
    rows, _ = load_rows(replace(config, cache_dir=cache_dir), tokenizer, field)
    return {
        "megabytes": size / 1e6,
        "megabytes_per_second": size / 1e6 / seconds,
        "bytes_per_token": size / len(cache.ids),
        "documents": len(cache),
        "rows": len(rows),
        "open_seconds": time.perf_counter() - start,
        "peak_megabytes_before": before,  # of Python with torch
        "peak_megabytes_of_tokenizing": after,
        "peak_megabytes": peak_megabytes(CPU),
    }


def measure_learn(candidate: str, config: BenchmarkConfig) -> dict:
    """{seconds, bytes_per_token, peak_megabytes} of train_tokenizer.py, with or without its limit."""
    field, path = detect_field(config.data_path), Path(config.data_path)
    longest_token = LONGEST_TOKEN if candidate == "weakwater" else None
    start = time.perf_counter()
    tokenizer = train_tokenizer(texts_of(sample_lines(path), field), config.vocab_size, longest_token)
    seconds = time.perf_counter() - start
    texts = list(texts_of(sample_lines(path), field))[:: max(1, path.stat().st_size // 10**7)]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    bytes_per_token = sum(len(text.encode()) for text in texts) / tokens
    return {"seconds": seconds, "bytes_per_token": bytes_per_token, "peak_megabytes": peak_megabytes(CPU)}


# ---- the machine ----


def peak_megabytes(device: torch.device) -> float:
    """Of the card if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage tells at least the peak of the process that started this one
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e6
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product, the best of ten."""
    size, best = 8192 if device.type == "cuda" else 2048, 0.0
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
