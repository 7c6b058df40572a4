"""How fast rows are trained on, here and by the peers: what `tools/benchmark.py train` measures."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

import trainer
from Config import LLMConfig
from dataset import PackedRows, open_tokens
from infra.device import pick_device, pick_dtype
from infra.extent import mean_context, token_flops
from infra.jsonl import detect_field
from infra.metrics import read_metrics
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from tools import peers
from tools.measures import peak_megabytes

WARMUP_STEPS = 2


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


def measure_train(candidate: str, config) -> dict:
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


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(1).mean for _ in range(10))
