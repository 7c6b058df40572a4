"""python tools/benchmark.py train

Measure this project beside transformers' Llama of the same sizes and write benchmarks/<what>_<device>.json.

    python tools/benchmark.py train      useful tokens a second, share of the measured matrix peak, peak memory
    python tools/benchmark.py generate   tokens a second of prefill and of decoding, one by one and many together
    python tools/benchmark.py start      seconds from the command to the first step, with a cold and a warm token cache
    python tools/benchmark.py tokenize   megabytes a second and peak memory of making the token cache and of opening it
    python tools/benchmark.py learn      seconds and peak memory of learning the tokenizer

Every measurement is a process of its own, so that its memory is its own. The candidates take turns for --rounds rounds;
written are each one's medians, and the medians of the first candidate's ratios to it in the same round. In `train` the peer
runs in the same loop with the same optimizer: on packed rows under a plain causal mask, which lets documents see each other
(less work than keeping them apart), and on padded rows, each conversation alone in one. Without --data_path, generated
conversations are used. llama.cpp takes part in `generate` where llama_cpp can be imported.

In `generate`, names without a prefix are of one prompt of 256 tokens, batched_ of 32 such prompts together, question_ of one of
64 tokens and questions_ of 128 such ones together, as in scoring.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import trainers

import model as decoder
import trainer
from Config import DEVICES_HELP, DTYPES, LLMConfig, TrainConfig, run_script, write_atomically
from dataset import ChatTokenizer, PackedRows, detect_kind, load_rows, open_cache
from generate import Sampling, stream
from model import WeakWater, pick_device
from tools.sample_data import write_sample_data
from train_tokenizer import sample_lines, save_tokenizer, texts_of, train_tokenizer
from trainer import Run, pick_dtype

CANDIDATES = {
    "train": ["weakwater", "transformers eager packed", "transformers eager padded"],
    "generate": ["weakwater", "transformers", "llama.cpp"],
    "start": ["cold", "warm"],
    "tokenize": ["weakwater"],
    "learn": ["weakwater", "tokens of any length"],
}
ON_CUDA = [  # more candidates for `train`
    "weakwater eager", "weakwater whole logits", "weakwater dense mask", "transformers compiled packed", "transformers compiled padded",
]  # fmt: skip
PROMPT_TOKENS, NEW_TOKENS, TOGETHER = 256, 128, 32
QUESTION_TOKENS, QUESTIONS = 64, 128  # as in scoring; with as many new tokens as the question has
WARMUP_STEPS = 2


# ---- training ----


class Peer(torch.nn.Module):
    """transformers' Llama behind the forward that the training loop calls."""

    def __init__(self, config):
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.config = config
        llama = LlamaForCausalLM(LlamaConfig(**asdict(config)))
        self.model, self.lm_head = llama.model, llama.lm_head
        self.llama = [llama]  # in a list, so that its parameters have one name

    def forward(self, input_ids, mask, labels, weights):
        logits = self.llama[0](input_ids).logits  # under its own causal mask
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * weights.flatten()).sum()

    def num_parameters(self):
        return sum(parameter.numel() for parameter in self.parameters())


def unpack(rows):
    """The same pieces, each alone in a row and in random order: what a script that pads would train on."""
    rows.order = np.random.default_rng(0).permutation(len(rows.order))
    rows.first_piece = np.arange(len(rows.order) + 1)
    return rows


def measure_train(args):
    """{useful_tokens_per_second, ...} of `--steps` steps after WARMUP_STEPS, at the real size of a step."""
    device = pick_device(args.device)
    tokenizer = ChatTokenizer(args.tokenizer)
    cache = open_cache(args.data_path, tokenizer, detect_kind(args.data_path), cache_dir=args.cache_dir)
    rows = PackedRows(cache, np.arange(len(cache)), args.max_seq_len)
    rows = unpack(rows) if "padded" in args.candidate else rows
    torch.manual_seed(0)
    shape = LLMConfig.preset(args.preset, vocab_size=len(tokenizer))
    is_ours = args.candidate.startswith("weakwater")
    model = (WeakWater if is_ours else Peer)(shape).to(device)
    compile = None if is_ours and "eager" not in args.candidate else "compiled" in args.candidate
    if "whole logits" in args.candidate:
        decoder.LOGITS_AT_ONCE = 2**40
    if "dense mask" in args.candidate:
        trainer.document_mask = lambda document_ids, in_blocks: decoder.document_mask(document_ids)
    config = TrainConfig(
        batch_size=args.batch_size, accumulation_steps=args.accumulation_steps, max_seq_len=args.max_seq_len, epochs=1000, dtype=args.dtype,
        device=args.device, compile=compile, num_workers=args.num_workers, out_dir=str(Path(args.cache_dir) / "out"),
    )  # fmt: skip
    run = Run(model, rows, config, 0, 1, device)
    tokens, losses, start = 0, [], 0.0
    for step in range(1, WARMUP_STEPS + args.steps + 1):
        if step == WARMUP_STEPS + 1:
            synchronize(device)
            start = time.perf_counter()
        measured = run.take_step(step, run.forward)
        losses.append(measured["loss"])
        tokens += measured["tokens"] if step > WARMUP_STEPS else 0
    synchronize(device)
    seconds = time.perf_counter() - start
    positions, memory = args.steps * run.rows_per_step * args.max_seq_len, peak_megabytes(device)
    peak = matrix_peak(device, run.dtype)
    flops = 6 * (model.num_parameters() + shape.num_hidden_layers * shape.hidden_size * args.max_seq_len)  # a position, as if all earlier ones were seen half the time
    return {
        "useful_tokens_per_second": tokens / seconds,
        "positions_per_second": positions / seconds,
        "padding": 1 - tokens / positions,
        "seconds_per_step": seconds / args.steps,
        "share_of_matrix_peak": positions * flops / seconds / peak,
        "matrix_peak_teraflops": peak / 1e12,
        "peak_megabytes": memory,
        "last_loss": float(losses[-1]),
    }


# ---- generation ----


def measure_generate(args):
    """{prefill and decode tokens per second: one prompt, TOGETHER of them, one question, QUESTIONS of them}; medians, after one to warm up.

    Decoding includes what is made anew for each reply, such as our CUDA graph, but not what a chat's first reply leaves to the next.
    """
    device = pick_device(args.device)
    shape = LLMConfig.preset(args.preset)
    torch.manual_seed(0)
    prompt = torch.randint(7, shape.vocab_size, (PROMPT_TOKENS,)).tolist()
    if args.candidate == "llama.cpp":
        return measure_llama_cpp(shape, prompt, args)
    if args.candidate == "weakwater":
        model = WeakWater(replace(shape, eos_token_id=-1)).to(device).eval()  # so that no reply ends early
        run = partial(generate_ours, model, {})
    else:
        model = Peer(shape).llama[0].to(device).eval()
        run = partial(generate_theirs, model, device)
    result = {}
    question = prompt[:QUESTION_TOKENS]
    for name, prompts, count, times in (
        ("", [prompt], NEW_TOKENS, 4), ("batched_", [prompt] * TOGETHER, NEW_TOKENS, 2),
        ("question_", [question], QUESTION_TOKENS, 4), ("questions_", [question] * QUESTIONS, QUESTION_TOKENS, 2),
    ):  # fmt: skip
        timings = [(run(prompts, 1), run(prompts, count)) for _ in range(1 + times)][1:]
        prefill = statistics.median(first for first, _ in timings)
        decode = statistics.median(both for _, both in timings) - prefill
        result[f"{name}prefill_tokens_per_second"] = len(prompts) * len(prompts[0]) / prefill
        result[f"{name}decode_tokens_per_second"] = len(prompts) * (count - 1) / decode
    return {**result, "peak_megabytes": peak_megabytes(device)}


def generate_ours(model, shared, prompts, count):
    """Seconds to generate `count` tokens for each prompt; `shared` by all calls, as by the replies of a chat."""
    start = time.perf_counter()
    steps = sum(1 for _ in stream(model, prompts, Sampling(max_new_tokens=count), shared))
    seconds = time.perf_counter() - start
    assert steps == count, f"generated {steps} tokens, expected {count}"
    return seconds


def generate_theirs(model, device, prompts, count):
    ids = torch.tensor(prompts, device=device)
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    synchronize(device)
    seconds = time.perf_counter() - start
    assert out.shape[1] == len(prompts[0]) + count, f"generated {out.shape[1] - len(prompts[0])} tokens, expected {count}"
    return seconds


def measure_llama_cpp(shape, prompt, args):
    """The same for llama.cpp in float32, one prompt at a time."""
    import llama_cpp

    from tools.export_gguf import export_gguf

    checkpoint = Path(args.cache_dir) / "checkpoint"
    if not checkpoint.is_dir():
        WeakWater(replace(shape, vocab_size=len(ChatTokenizer(args.tokenizer)))).save_pretrained(checkpoint)
        ChatTokenizer(args.tokenizer).save_pretrained(checkpoint, shape.max_position_embeddings)
    path = export_gguf(checkpoint, Path(args.cache_dir) / "model.gguf")
    llm = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=512, n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(), verbose=False, flash_attn=True)
    prompt = [id % llm.n_vocab() for id in prompt]
    timings = []
    for _ in range(5):
        llm.reset()
        start = time.perf_counter()
        tokens = llm.generate(prompt, temp=0.0, top_k=1, reset=True)
        next(tokens)
        first = time.perf_counter() - start
        for _ in range(NEW_TOKENS - 1):
            next(tokens)
        timings.append((first, time.perf_counter() - start - first))
    prefill, decode = (statistics.median(timing[i] for timing in timings[1:]) for i in (0, 1))
    return {"prefill_tokens_per_second": PROMPT_TOKENS / prefill, "decode_tokens_per_second": (NEW_TOKENS - 1) / decode, "peak_megabytes": peak_megabytes(torch.device("cpu"))}


# ---- data ----


def measure_start(args):
    """{seconds} from the command to the first line of the log of `pretrain.py` or, with conversations, `SFT.py`."""
    cache = Path(args.cache_dir) / ("warm" if args.candidate == "warm" else f"cold{time.time_ns()}")
    flags = [f"--data_path={args.data_path}", f"--tokenizer={args.tokenizer}", f"--cache_dir={cache}", f"--out_dir={args.cache_dir}/out"]
    flags += ["--max_steps=1", f"--batch_size={args.batch_size}", "--log_every=1", "--compile" if args.compile else "--no-compile"]
    script = "pretrain.py"
    if detect_kind(args.data_path) == "text":
        flags += [f"--preset={args.preset}"]
    else:
        script, checkpoint = "SFT.py", Path(args.cache_dir) / "checkpoint"
        flags += [f"--init_from={checkpoint}"]
        if not checkpoint.is_dir():
            tokenizer = ChatTokenizer(args.tokenizer)
            WeakWater(LLMConfig.preset(args.preset, vocab_size=len(tokenizer))).save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint, 1024)
    seconds = 0.0
    for _ in range(2 if args.candidate == "warm" else 1):
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, str(ROOT / script), *flags], stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            seconds = next(time.perf_counter() - start for line in process.stdout if line.startswith("step "))
            process.kill()  # what comes after the first step, a validation and a checkpoint, is not measured
    return {"seconds": seconds}


def measure_tokenize(args):
    """{megabytes_per_second, bytes_per_token, peak_megabytes} of making a cache, then {open_seconds} of opening it as training does."""
    tokenizer = ChatTokenizer(args.tokenizer)
    config = TrainConfig(data_path=args.data_path, max_seq_len=args.max_seq_len, cache_dir=str(Path(args.cache_dir) / str(time.time_ns())))
    kind, size = detect_kind(args.data_path), Path(args.data_path).stat().st_size
    before = peak_megabytes(torch.device("cpu"))
    start = time.perf_counter()
    cache = open_cache(args.data_path, tokenizer, kind, cache_dir=config.cache_dir)
    seconds = time.perf_counter() - start
    after = peak_megabytes(torch.device("cpu"))
    start = time.perf_counter()
    rows, _ = load_rows(config, tokenizer, kind)
    return {
        "megabytes": size / 1e6,
        "megabytes_per_second": size / 1e6 / seconds,
        "bytes_per_token": size / len(cache.ids),
        "documents": len(cache),
        "rows": len(rows),
        "open_seconds": time.perf_counter() - start,
        "peak_megabytes_before": before,  # of Python with torch
        "peak_megabytes_of_tokenizing": after,
        "peak_megabytes": peak_megabytes(torch.device("cpu")),
    }


def measure_learn(args):
    """{seconds, bytes_per_token, peak_megabytes} of the tokenizer that train_tokenizer.py makes, or one without its limits."""
    kind, path = detect_kind(args.data_path), Path(args.data_path)
    limits = {} if args.candidate == "weakwater" else {"max_token_length": None}
    bpe_trainer = trainers.BpeTrainer
    start = time.perf_counter()
    with patch.object(trainers, "BpeTrainer", lambda **settings: bpe_trainer(**{**settings, **limits})):
        tokenizer = train_tokenizer(texts_of(sample_lines(path), kind), args.vocab_size)
    seconds = time.perf_counter() - start
    texts = list(texts_of(sample_lines(path), kind))[:: max(1, path.stat().st_size // 10**7)]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    return {"seconds": seconds, "bytes_per_token": sum(len(text.encode()) for text in texts) / tokens, "peak_megabytes": peak_megabytes(torch.device("cpu"))}


# ---- the machine ----


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_megabytes(device):
    """Of the card if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage tells there is at least the peak of the process that started this one
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) * 1024 / 1e6
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def matrix_peak(device, dtype):
    """Floating-point operations a second of one large matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def processor():
    """The name of the CPU, as far as the system tells."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] if Path("/proc/cpuinfo").is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def about_machine(device):
    import transformers

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # processes that were running, over a minute
    }


# ---- taking turns ----


def candidates(args, device):
    known = CANDIDATES[args.what] + (ON_CUDA if args.what == "train" else [])
    if unknown := set(args.only or []) - set(known):
        raise ValueError(f"--only {', '.join(map(repr, sorted(unknown)))} is unknown to {args.what}, expected some of {', '.join(map(repr, known))}")
    names = args.only or CANDIDATES[args.what] + (ON_CUDA if args.what == "train" and device.type == "cuda" else [])
    if "llama.cpp" in names and (device.type != "cpu" or not can_import("llama_cpp")):
        names = [name for name in names if name != "llama.cpp"]
    if not names:
        raise ValueError("--only llama.cpp wants a CPU and pip install llama-cpp-python")
    return names


def can_import(name):
    from importlib.util import find_spec

    return find_spec(name) is not None


def in_a_process(flags, candidate):
    """The result of one candidate, measured by a process of its own; flags: those of this script."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, flags), f"--candidate={candidate}"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        raise ValueError(f"{candidate} failed: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def prepare(args, folder):
    """Fill in what was not given: generated conversations, and a tokenizer for them."""
    args.cache_dir = args.cache_dir or str(folder)
    if not args.data_path:
        args.data_path = str(write_sample_data(folder / "data", 0, 1.0)["sft"])
    if not args.tokenizer:
        texts = texts_of(sample_lines(Path(args.data_path)), detect_kind(args.data_path))
        args.vocab_size = min(args.vocab_size, 1536) if args.data_path.startswith(str(folder)) else args.vocab_size
        save_tokenizer(train_tokenizer(texts, args.vocab_size), folder / "tokenizer", 1024)
        args.tokenizer = str(folder / "tokenizer")


def compare(args, folder):
    device = pick_device(args.device)
    names = candidates(args, device)
    prepare(args, folder)
    command = " ".join(["python", "tools/benchmark.py", *sys.argv[1:]])
    result = {"what": args.what, "command": command, **about_machine(device), "dtype": str(pick_dtype(args.dtype, device)), "rounds": args.rounds, "candidates": {}}
    flags = [*sys.argv[1:], *(f"--{name}={getattr(args, name)}" for name in ("data_path", "tokenizer", "cache_dir"))]
    rounds = [{name: in_a_process(flags, name) for name in names} for _ in range(args.rounds)]
    for name in names:
        shared = [key for key in rounds[0][name] if key in rounds[0][names[0]]]
        found = {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
        ratios = {key: statistics.median(r[names[0]][key] / r[name][key] for r in rounds if r[name][key]) for key in shared if name != names[0]}
        result["candidates"][name] = found | ({f"ratio_of_{names[0]}": ratios} if ratios else {})
        print(name)
        for key, value in found.items():
            print(f"  {key:34} {value:12,.{0 if value >= 100 else 3}f}" + (f"  ({ratios[key]:.2f} x)" if key in ratios else ""))
    path = Path(args.out_dir) / f"{args.what}_{args.name or ('cpu' if device.type == 'cpu' else result['device'].replace(' ', '_'))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda path: path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"))
    print(f"{path} | (n x): {names[0]}'s number is n times this one's, the median of {args.rounds} rounds")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(CANDIDATES))
    parser.add_argument("--data_path", default="", help="JSONL texts or conversations (default: generated conversations)")
    parser.add_argument("--tokenizer", default="", help="the tokenizer's folder (default: one learned from the data)")
    parser.add_argument("--cache_dir", default="", help="where token caches go (default: a temporary folder)")
    parser.add_argument("--out_dir", default="benchmarks", help="where the JSON goes (default: benchmarks)")
    parser.add_argument("--name", default="", help="in the JSON's file name (default: cpu, or the card's)")
    parser.add_argument("--only", nargs="+", help="some of the candidates by the names that are printed, the one to compare with first (default: all)")
    parser.add_argument("--preset", default="30m", help="the model's shape (default: 30m)")
    parser.add_argument("--vocab_size", type=int, default=6400, help="of a tokenizer to learn (default: 6400)")
    parser.add_argument("--batch_size", type=int, default=8, help="rows in a micro-batch (default: 8)")
    parser.add_argument("--accumulation_steps", type=int, default=1, help="micro-batches in a step (default: 1)")
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens in a row (default: 512)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate (default: 3)")
    parser.add_argument("--compile", action="store_true", help="start: with torch.compile")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="arithmetic of the matrix products in training (default: auto)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    parser.add_argument("--candidate", default="", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    args = parser.parse_args(argv)
    if args.candidate:
        measure = {"train": measure_train, "generate": measure_generate, "start": measure_start, "tokenize": measure_tokenize, "learn": measure_learn}[args.what]
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    run_script(main)
