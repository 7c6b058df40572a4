"""What measurements of tools/benchmark.py share: an untrained checkpoint, and the memory that was taken."""

import sys
from pathlib import Path

import torch

from Config import LLMConfig
from infra.checkpoint import save_model
from infra.tokenizer import ChatTokenizer
from model import WeakWater


def untrained(config) -> Path:
    """A checkpoint of random weights, made once for a preset and a tokenizer."""
    tokenizer = ChatTokenizer(config.tokenizer)
    folder = Path(config.cache_dir) / f"{config.preset}_{tokenizer.fingerprint}"
    if not folder.is_dir():
        model = WeakWater(LLMConfig.preset(config.preset, vocab_size=len(tokenizer)))
        save_model(model, folder, tokenizer, model.config.max_position_embeddings)
    return folder


def peak_megabytes(device: torch.device | None = None) -> float:
    """Of the device if it is a card, else of the process."""
    if device and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage tells at least the peak of the process that started this one
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e6
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
