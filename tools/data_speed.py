"""How fast a file becomes tokens: what `tools/benchmark.py start`, `tokenize` and `learn` measure."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from dataset import load_rows, open_tokens
from infra.jsonl import detect_field
from infra.text_sample import sample_lines, texts_of
from infra.tokenizer import ChatTokenizer
from tools.measures import peak_megabytes, untrained
from train_tokenizer import LONGEST_TOKEN, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def measure_start(candidate: str, config) -> dict:
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


def measure_tokenize(candidate: str, config) -> dict:
    """{megabytes_per_second, ...} of making a token cache, {open_seconds} of opening it as training does."""
    tokenizer, cache_dir = ChatTokenizer(config.tokenizer), str(Path(config.cache_dir) / str(time.time_ns()))
    field, size = detect_field(config.data_path), Path(config.data_path).stat().st_size
    before, start = peak_megabytes(), time.perf_counter()
    cache = open_tokens(config.data_path, tokenizer, field, cache_dir=cache_dir)
    seconds, after = time.perf_counter() - start, peak_megabytes()
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
        "peak_megabytes": peak_megabytes(),
    }


def measure_learn(candidate: str, config) -> dict:
    """{seconds, bytes_per_token, peak_megabytes} of train_tokenizer.py, with or without its limit."""
    field, path = detect_field(config.data_path), Path(config.data_path)
    longest_token = LONGEST_TOKEN if candidate == "weakwater" else None
    start = time.perf_counter()
    tokenizer = train_tokenizer(texts_of(sample_lines(path), field), config.vocab_size, longest_token)
    seconds = time.perf_counter() - start
    texts = list(texts_of(sample_lines(path), field))[:: max(1, path.stat().st_size // 10**7)]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    bytes_per_token = sum(len(text.encode()) for text in texts) / tokens
    return {"seconds": seconds, "bytes_per_token": bytes_per_token, "peak_megabytes": peak_megabytes()}
