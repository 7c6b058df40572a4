"""How fast prompts are answered, here and by the peers: what `tools/benchmark.py generate` measures."""

import statistics
import time
from dataclasses import replace

import torch

from Config import LLMConfig
from generate import Sampling, stream
from infra.device import pick_device, synchronize
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from tools import peers
from tools.measures import peak_megabytes, untrained

PROMPT_TOKENS, NEW_TOKENS, TOGETHER = 256, 128, 32
QUESTION_TOKENS, QUESTIONS = 64, 128  # as in scoring; with as many new tokens as the question has


def measure_generate(candidate: str, config) -> dict:
    """{prefill and decode tokens per second}; medians, after one to warm up."""
    device, vocab_size = pick_device(config.device), len(ChatTokenizer(config.tokenizer))
    shape = LLMConfig.preset(config.preset, vocab_size=vocab_size)
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
