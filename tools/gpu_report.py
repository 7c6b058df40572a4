"""python tools/gpu_report.py --data_path sft_512.jsonl --tokenizer WeakWater_tokenizer

Everything about a card in one command: is it right (tests/test_cuda.py), then how fast (benchmark.py's
candidates in training and generation). After --minutes nothing more is begun. Results are written to
benchmarks/gpu_<device>.json as they come, so that a run cut short keeps what it had.

A rehearsal without a card:

    python tools/gpu_report.py --device cpu --preset tiny --batch_size 2 --steps 2
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.cli import add_flag, flag, make_parser, run_script
from infra.device import pick_device
from infra.files import write_json
from tools import benchmark

ROWS = [  # candidate of benchmark.py, tokens in a row; the most telling first
    ("weakwater", 512),
    ("transformers eager padded, AdamW", 512),
    ("transformers compiled packed", 512),
    ("transformers compiled packed, AdamW", 512),
    ("transformers eager packed", 512),
    ("weakwater eager", 512),
    ("weakwater", 1024),
    ("transformers compiled packed", 1024),
    ("transformers compiled padded", 512),
]
FLAGS = {"data_path", "tokenizer", "out_dir", "preset", "vocab_size", "device"}
FLAGS |= {"batch_size", "steps", "minutes"}


@dataclass(frozen=True)
class ReportConfig(benchmark.BenchmarkConfig):
    batch_size: int = flag(80, "rows of 512 tokens in a micro-batch", above=0)
    steps: int = flag(20, "steps that are timed", above=0)
    minutes: float = flag(7.0, "nothing is begun after so many", above=0)


class Report:
    """Results by name, in a file that is rewritten after each; nothing is begun after the deadline."""

    def __init__(self, path: Path, about: dict, minutes: float):
        self.path, self.results = path, {**about, "checks": {}, "training": {}, "generation": {}}
        self.deadline = time.monotonic() + minutes * 60
        path.parent.mkdir(parents=True, exist_ok=True)

    def do(self, part: str, name: str, measure: Callable[[], dict]) -> None:
        start = time.monotonic()
        if start > self.deadline:
            result = {"error": "not begun: the time was over"}
        else:
            try:
                result = measure()
            except Exception as error:  # whatever it is, the other parts are worth having
                result = {"error": f"{type(error).__name__}: {error}"[-1500:]}
            result["took_seconds"] = round(time.monotonic() - start, 1)
        self.results[part][name] = result
        write_json(self.path, self.results)
        values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in result.items()}
        print(" | ".join([part, name, *(f"{key} {value}" for key, value in values.items())]), flush=True)


def run_checks(seconds: float) -> dict:
    """{passed, failed, skipped, output} of tests/test_cuda.py. Raises subprocess.TimeoutExpired."""
    flags = ["tests/test_cuda.py", "-m", "cuda", "-o", "addopts=", "-q", "-rs"]
    command = [sys.executable, "-m", "pytest", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=seconds)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", result.stdout)
    found = {"passed": 0, "failed": 0} | {name: int(count) for count, name in counts}
    return {**found, "exit_code": result.returncode, "output": (result.stdout + result.stderr)[-3000:]}


def report(config: ReportConfig, folder: Path) -> None:
    device, config = pick_device(config.device), benchmark.prepare(config, folder)
    about = benchmark.about_machine(device)
    name = "rehearsal" if device.type == "cpu" else about["device"].replace(" ", "_")
    command = shlex.join(["python", "tools/gpu_report.py", *sys.argv[1:]])
    report = Report(Path(config.out_dir) / f"gpu_{name}.json", {"command": command, **about}, config.minutes)
    report.do("checks", "tests/test_cuda.py", lambda: run_checks(config.minutes * 60))
    for candidate, length in ROWS:
        shaped = replace(config, max_seq_len=length, batch_size=max(1, config.batch_size * 512 // length))
        measure = lambda: benchmark.in_a_process("train", candidate, shaped)
        report.do("training", f"{candidate}, {length}", measure)
    for candidate in ("weakwater", "transformers"):
        report.do("generation", candidate, lambda: benchmark.in_a_process("generate", candidate, config))
    print(report.path)


def main(argv=None):
    parser = make_parser(__doc__)
    for f in fields(ReportConfig):
        if f.name in FLAGS:
            add_flag(parser, f, f.default)
    config = ReportConfig(**vars(parser.parse_args(argv)))
    with tempfile.TemporaryDirectory() as folder:
        report(config, Path(folder))


if __name__ == "__main__":
    run_script(main)
