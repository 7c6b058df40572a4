"""python tools/benchmark.py train

Measure this project beside transformers' Llama of the same sizes and write benchmarks/<what>_<device>.json.

    python tools/benchmark.py train      useful tokens a second, share of the matrix peak, peak memory
    python tools/benchmark.py generate   tokens a second of prefill and of decoding, one by one and together
    python tools/benchmark.py chat       seconds to the first token, tokens a second: what the chat costs
    python tools/benchmark.py start      seconds from the command to the first step, cold and warm token cache
    python tools/benchmark.py tokenize   megabytes a second and peak memory of making the token cache
    python tools/benchmark.py learn      seconds and peak memory of learning the tokenizer

Every measurement is a process of its own, so that its memory is its own. The candidates take turns, --rounds
times. Written are the medians of each, and of the first candidate's ratios to it in the same round.

train: weakwater is compiled, as long runs are. transformers' Llama runs on packed rows under a plain causal
mask, which lets documents see each other, and on padded rows, each conversation alone in one. It runs in our
loop with our optimizers and, where the name says AdamW, in a plain loop with AdamW, which is what most people
run.

generate: names without a prefix are of one prompt of 256 tokens, batched_ of 32 such prompts together,
question_ of one of 64 tokens, questions_ of 128 such ones together, as in scoring.
"""

import io
import os
import platform
import shlex
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from Config import TrainConfig
from infra.cli import UserError, add_flag, flag, make_parser, run_script
from infra.device import pick_device, pick_dtype
from infra.files import write_json
from infra.jsonl import detect_field
from infra.text_sample import sample_lines, texts_of
from tools.chat_speed import measure_chat
from tools.data_speed import measure_learn, measure_start, measure_tokenize
from tools.generate_speed import measure_generate
from tools.sample_data import write_sample_data
from tools.train_speed import measure_train
from train_tokenizer import save_tokenizer, train_tokenizer


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


EAGER = [f"transformers eager {rows}" for rows in ("packed", "packed, AdamW", "padded", "padded, AdamW")]
COMPILED = [name.replace("eager", "compiled") for name in EAGER]

FLAGS = {f.name for f in fields(BenchmarkConfig)} - {f.name for f in fields(TrainConfig)}
FLAGS |= {"data_path", "tokenizer", "cache_dir", "out_dir", "preset", "batch_size", "accumulation_steps"}
FLAGS |= {"max_seq_len", "num_workers", "compile", "dtype", "device"}

CANDIDATES = {  # how to measure it, and the candidates, the one to compare with first
    "train": (measure_train, ["weakwater", "weakwater eager", *EAGER, *COMPILED]),
    "generate": (measure_generate, ["weakwater", "transformers", "llama.cpp"]),
    "chat": (measure_chat, ["bare loop", "terminal", "page"]),
    "start": (measure_start, ["cold", "warm"]),
    "tokenize": (measure_tokenize, ["weakwater"]),
    "learn": (measure_learn, ["weakwater", "tokens of any length"]),
}


def measure(what: str, candidate: str, config: BenchmarkConfig) -> dict:
    with redirect_stdout(io.StringIO()):  # the log of training
        return CANDIDATES[what][0](candidate, config)


def in_a_process(what: str, candidate: str, config: BenchmarkConfig) -> dict:
    """The result of one candidate, measured by a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, what, candidate, config).result()


def candidates(what: str, device: torch.device, only=()) -> list[str]:
    """The names of what to measure. Raises UserError for unknown ones, or if nothing is left."""
    known = CANDIDATES[what][1]
    if unknown := sorted(set(only) - set(known)):
        raise UserError(f"--only {unknown} is unknown to {what}, expected some of {known}")
    names = list(only or known)
    if device.type != "cpu" or not find_spec("llama_cpp"):
        names = [name for name in names if name != "llama.cpp"]
    if not names:
        raise UserError("nothing to measure: llama.cpp needs a CPU and pip install llama-cpp-python")
    return names


def prepare(config: BenchmarkConfig, folder: Path) -> BenchmarkConfig:
    """With what was not given filled in: generated conversations, and a tokenizer for them."""
    config = replace(config, cache_dir=config.cache_dir or str(folder))
    if not config.data_path:
        data_path = str(write_sample_data(folder / "data", 0, 1.0)["sft"])
        config = replace(config, data_path=data_path, vocab_size=min(config.vocab_size, 1536))
    if config.tokenizer:
        return config
    texts = texts_of(sample_lines(Path(config.data_path)), detect_field(config.data_path))
    save_tokenizer(train_tokenizer(texts, config.vocab_size), folder / "tokenizer", 1024)
    return replace(config, tokenizer=str(folder / "tokenizer"))


def about_machine(device: torch.device) -> dict:
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "load_before": getattr(os, "getloadavg", lambda: [None])()[0],  # processes that were running
    }


def medians(rounds: list[dict], name: str, first: str) -> tuple[dict, dict]:
    """({key: median}, {key: median of the first's number over this one's in the same round})"""
    found = {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
    compared = [key for key in found if name != first and found[key] and key in rounds[0][first]]
    ratio = lambda key: statistics.median(one[first][key] / one[name][key] for one in rounds)
    return found, {key: ratio(key) for key in compared}


def compare(what: str, names: list[str], config: BenchmarkConfig, device: torch.device) -> None:
    """Let the candidates take turns; print and write the medians."""
    command = shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]])
    result = {"what": what, "command": command, **about_machine(device)}
    result |= {"dtype": str(pick_dtype(config.dtype, device)), "rounds": config.rounds, "candidates": {}}
    rounds = [{name: in_a_process(what, name, config) for name in names} for _ in range(config.rounds)]
    first = names[0]
    for name in names:
        optimizer = "AdamW" if name.endswith(", AdamW") else "Muon and AdamW"
        about = {"optimizer": optimizer} if what == "train" else {}
        found, ratios = medians(rounds, name, first)
        result["candidates"][name] = about | found | ({f"ratio_of_{first}": ratios} if ratios else {})
        print(name, *about.values(), sep=" | ")
        for key, value in found.items():
            ratio = f"  ({ratios[key]:.2f} x)" if key in ratios else ""
            print(f"  {key:34} {value:12,.{0 if value >= 100 else 3}f}{ratio}")
    place = config.name or ("cpu" if device.type == "cpu" else result["device"].replace(" ", "_"))
    path = Path(config.out_dir) / f"{what}_{place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"{path} | (n x): {first}'s number is n times this one's, the median of {config.rounds} rounds")


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=list(CANDIDATES))
    for f in fields(BenchmarkConfig):
        if f.name in FLAGS:
            add_flag(parser, f, f.default)
    told = "some of the candidates, by the names that are printed, the one to compare with first"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=told)
    args = vars(parser.parse_args(argv))
    what, only = args.pop("what"), args.pop("only")
    config = BenchmarkConfig(**args)
    device = pick_device(config.device)
    names = candidates(what, device, only)
    with tempfile.TemporaryDirectory() as folder:
        compare(what, names, prepare(config, Path(folder)), device)


if __name__ == "__main__":
    run_script(main)
