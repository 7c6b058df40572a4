"""python tools/full_run.py --data_dir data

The whole path on real text: tokenizer, pretraining, SFT on rows of 512 and of 1024 tokens, distillation from
R1 with its calculations written out, mixed with ordinary conversations; then reward, by rejection sampling
and by GRPO. For comparison, distillation in as many steps from the equations without their calculations, and
from R1 as it is. All models are graded on the same held-out word problems.

The folder holds pretrain, sft_512, sft_1024 and r1_1024, each as .jsonl or .jsonl.xz, or in shards
(pretrain-00.jsonl, ...). Their last lines are held out for validation, unless there are pretrain_val, sft_val
and r1_val; the word problems of r1_1024 that models are graded on are chosen by their wording
(tools/worked_r1.py).

A stage trains on its budget of tokens or, with --minutes, on what fits into its share of the time left, which
is for all up to GRPO; --last GRPO leaves out what is for comparison only. A failure after SFT is reported and
the others go on. The same command continues a stopped run, also on another machine, or with other budgets for
the stages to come: --last tokens prepares the data where there is no card. Results are written as they come:
report.json, experiments.md, each stage's replies.jsonl; results/ has copies of all that is small.

On a CPU, a small model:

    python tools/full_run.py --data_dir data --preset 5m --vocab_size 4000 --step_tokens 4096 \\
        --most_tokens 4096 --minutes 175 --variants 6 --validations 2 --max_new_tokens 384 --compile
"""

import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

import distill
import GRPO
import pretrain
import SFT
from Config import DEVICES_HELP, DTYPES, PRESETS
from infra.cli import Flags, UserError, flag, parse_args, run_script
from infra.device import dtype_name, pick_device, pick_dtype
from infra.distributed import world_size
from infra.jsonl import BAD_LINE_ADVICE
from infra.metrics import read_metrics, without_texts
from infra.report import Report
from infra.resume import STATE
from model import WeakWater
from tools.full_run_data import HELD_OUT, OWN, gather, make_tokenizer, reason, sample_own, tokenize
from tools.full_run_grades import continuations, grade, grade_changed, grade_majority
from tools.full_run_results import publish, tables
from tools.ladder import VOTES

GRADING = 0.01  # of the time, for each stage that is graded
MAY_CHANGE = (  # from one start of a run to the next
    "minutes", "pretrain_tokens", "sft_tokens", "distill_tokens", "grpo_tokens", "most_tokens", "validations",
    "last", "data_dir", "out_dir", "num_workers", "device", "dtype", "compile", "torch",
)  # fmt: skip
BATCH = ("batch_size", "accumulation_steps")


@dataclass(frozen=True)
class FullRunConfig(Flags):
    data_dir: Path = flag(Path("."), "the folder with the data")
    out_dir: Path = flag(Path("out/full"), "where everything goes")
    preset: str = flag("30m", "the model's shape", choices=list(PRESETS))
    vocab_size: int = flag(6400, "entries of the tokenizer")
    minutes: float = flag(0, "for all up to GRPO, about (default: as many as the tokens take)", least=0)
    pretrain_tokens: float = flag(0, "positions, at most (default: 350e6, or what --minutes allow)", least=0)
    sft_tokens: float = flag(0, "the same, in each of two phases (default: 40e6 and 20e6)", least=0)
    distill_tokens: float = flag(
        0, "the same, in each distillation (default: 40e6, of own replies 5e6)", least=0
    )
    grpo_tokens: float = flag(0, "the same, in rewarded rows (default: 3e6)", least=0)
    variants: int = flag(3, "of each word problem, its numbers exchanged", least=0)
    drills: int = flag(40_000, "single calculations to train on", least=0)
    step_tokens: int = flag(80 * 512, "positions in one step", above=0)
    most_tokens: int = flag(80 * 512, "positions in a micro-batch; GRPO has 16 rows of 1024", above=0)
    validations: int = flag(10, "in each stage", above=0)
    rate_scale: float = flag(1.0, "factor of the scripts' own rates: 2 for a few hundred steps", above=0)
    max_new_tokens: int = flag(512, "tokens in a reply", above=0)
    num_workers: int = flag(0, "processes that prepare batches", least=0)
    seed: int = flag(42, "of weights and order", least=0)
    dtype: str = flag("auto", "arithmetic of the matrix products", choices=DTYPES)
    device: str = flag("", DEVICES_HELP)
    compile: bool = flag(False, "torch.compile also on a CPU, which needs a C++ compiler")
    last: str = flag("", "stop after tokens (the data), or after a stage: pretrain, SFT_512, ...")

    def __post_init__(self):
        super().__post_init__()
        if world_size() > 1:
            raise UserError("found torchrun, expected one process: it alone copies and cuts the files")
        names = ["tokens", *(stage.name for stage in STAGES)]
        if self.last and self.last not in names:
            raise UserError(f"--last {self.last!r} is unknown, expected one of {', '.join(names)}")


@dataclass(frozen=True)
class Stage:
    name: str
    script: object
    data: str
    tokens: float  # the default budget, in positions: useful tokens and padding
    share: float  # of the time; 0: as many steps as the first stage with the same script and start
    start: str = ""  # the stage that it starts from; a stage without one is not graded
    against: str = ""  # the stage that its grade is compared with
    may_fail: bool = True  # the others go on without it
    max_seq_len: int = 512
    learning_rate: float = 0.0  # 0: the script's own
    rows: int = 0  # in one step; 0: as many as make up step_tokens
    epochs: int = 1000  # at most

    @property
    def recipe(self) -> str:
        return self.script.RECIPE.stage


STAGES = [
    Stage("pretrain", pretrain, "pretrain", 350e6, 0.17, may_fail=False),
    Stage("SFT_512", SFT, "sft_512", 40e6, 0.09, "pretrain", may_fail=False),
    Stage("SFT_1024", SFT, "sft_1024", 20e6, 0.04, "SFT_512", "SFT_512", max_seq_len=1024, may_fail=False),
    Stage("worked", distill, "worked_mixed", 40e6, 0.55, "SFT_1024", "SFT_1024"),
    Stage("rejection", distill, OWN, 5e6, 0.04, "worked", "worked", learning_rate=1e-3, epochs=3),
    Stage("GRPO", GRPO, "worked_reward", 3e6, 0.11, "worked", "worked", max_seq_len=1024, rows=16),
    # for comparison, in as many steps as `worked`, however long they take
    Stage("equations", distill, "equations_mixed", 40e6, 0, "SFT_1024", "worked"),
    Stage("plain", distill, "plain_mixed", 40e6, 0, "SFT_1024", "worked"),
]


def flags_of(stage: Stage, config: FullRunConfig) -> dict:
    """The flags of the stage's script, but for what `plan` decides."""
    folder, data, length = config.out_dir, config.out_dir / "data", stage.max_seq_len
    rows = stage.rows or max(1, config.step_tokens // length)
    micro_batches = 1 if stage.rows else math.ceil(rows / max(1, config.most_tokens // length))
    flags = {name: getattr(config, name) for name in ("seed", "dtype", "device", "num_workers", "compile")}
    val = f"{stage.data.split('_')[0]}_val"  # of sft_512: sft_val
    flags |= {"data_path": data / f"{stage.data}.jsonl", "val_path": data / f"{val}.jsonl"}
    flags |= {"out_dir": folder / stage.name, "max_seq_len": length, "epochs": stage.epochs}
    flags |= {"batch_size": math.ceil(rows / micro_batches), "accumulation_steps": micro_batches}
    if stage.script is GRPO:
        flags |= {"max_new_tokens": config.max_new_tokens, "num_workers": 0}
    flags["learning_rate"] = stage.learning_rate or stage.script.RECIPE.learning_rate * config.rate_scale
    new = {"tokenizer": folder / "tokenizer", "preset": config.preset}
    return flags | ({"init_from": folder / stage.start} if stage.start else new)


def command_line(flags: dict) -> list[str]:
    """{"seed": 1, "compile": True, "resume": False} -> ["--seed=1", "--compile"]"""
    given = {name: value for name, value in flags.items() if value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def plan(stage: Stage, config: FullRunConfig, parts: dict) -> dict:
    """{"steps", "flags", ...}: steps for the budget of tokens, or for the stage's share of the time."""
    first = next(other for other in STAGES if (other.recipe, other.start) == (stage.recipe, stage.start))
    if first is not stage:  # another distillation
        planned = parts[f"plan {first.name}"]
        if "failed" in planned:
            raise UserError(f"{stage.name}: there is no plan of {first.name} to follow")
        return {name: planned[name] for name in ("steps", "flags")}
    flags, measured = flags_of(stage, config), {}
    budget = getattr(config, f"{stage.recipe.lower()}_tokens") or (1e12 if config.minutes else stage.tokens)
    budget = min(budget, stage.tokens) if stage.data == OWN else budget  # few, and seen three times
    step = flags["batch_size"] * flags["accumulation_steps"] * stage.max_seq_len  # positions
    steps = max(2, round(budget / step))
    if config.minutes or pick_device(config.device).type == "cuda":  # whose memory may not hold a micro-batch
        start = time.perf_counter()
        found = stage.script.main([*command_line(flags), "--max_steps=5", "--dry_run"])
        flags |= {name: found[name] for name in BATCH}  # halved where they did not fit
        measured = {name: found[name] for name in ("step_seconds", "validation_seconds")}
        # to read, pack and compile, which training will do once more
        measured["start_seconds"] = max(0.0, time.perf_counter() - start - found["validation_seconds"])
    if config.minutes:
        starting, validating = measured["start_seconds"], measured["validation_seconds"]
        seconds = time_for(stage, parts["seconds"] + starting + validating, config.minutes)
        seconds -= starting + config.validations * validating
        fitting = int(seconds / measured["step_seconds"])
        if fitting < 2:
            print(f"{stage.name}: --minutes {config.minutes:g} leaves no time for it: it takes 2 steps only")
        steps = min(steps, max(2, fitting))
    often = {"eval_every": math.ceil(steps / config.validations), "save_every": math.ceil(steps / 10)}
    often["log_every"] = max(1, min(10, steps // 20))
    decided = {name: flags[name] for name in BATCH} | {"max_steps": steps} | often
    return {"steps": steps, "flags": decided, **measured}


def time_for(stage: Stage, spent: float, minutes: float) -> float:
    """Seconds for a stage: what is left of the minutes is divided by the shares of all that is left to do."""
    left = STAGES[STAGES.index(stage) :]
    shares = sum(other.share + GRADING for other in left if other.share)
    return max(0.0, minutes * 60 - spent) * stage.share / shares


def run_stage(stage: Stage, config: FullRunConfig, parts: dict, do) -> None:
    """Plan a stage, train it and look at the result, each with `do(name, title, work)`."""
    name = stage.name

    def attempt(work):
        """What work() returns; of a stage after SFT that fails, {"failed": why}: the others go on."""
        try:
            return work()
        except (UserError, FileNotFoundError) as error:
            if not stage.may_fail:
                raise
            print(error)
            return {"failed": str(error)}

    if stage.data == OWN:
        do("own replies", "sampling for rejection", lambda: attempt(lambda: sample_own(config)))
    planned = do(f"plan {name}", f"{name}: planning", lambda: attempt(lambda: plan(stage, config, parts)))
    if "failed" not in planned:
        trained = do(name, name, lambda: attempt(lambda: train_stage(stage, planned, config)))
        if not stage.start:
            do("continuations", "continued texts", lambda: continuations(config))
        elif "failed" not in trained:
            do(f"grade {name}", f"{name}: grading", lambda: grade(stage, config))


def train_stage(stage: Stage, planned: dict, config: FullRunConfig) -> dict:
    """The last value of each metric, but of loss and speed what is `typical`; device, seconds, parameters."""
    folder = config.out_dir / stage.name
    flags = flags_of(stage, config) | planned["flags"] | {"resume": (folder / STATE).is_file()}
    try:
        last = stage.script.main(command_line(flags))
    except SystemExit:  # Ctrl-C or SIGTERM
        print("here: run the same full_run.py command again, and it continues from the last save")
        raise
    found = {
        **without_texts(last),
        **typical(read_metrics(folder / "metrics.jsonl")),
        "device": processor(config.device),
    }
    found["train_seconds"] = round(last["seconds"], 1)
    return found | {"parameters": WeakWater.from_pretrained(folder).num_parameters()}


def typical(lines: list[dict]) -> dict:
    """{"loss": mean of the last twentieth of the lines, at least 5; "tokens_per_second", "mfu": medians}."""
    lines = [line for line in lines if line.get("loss") is not None]  # a validation's have none
    found = {"loss": mean(line["loss"] for line in lines[-max(5, len(lines) // 20) :])}
    for name in ("tokens_per_second", "mfu"):  # the steps of the first line compiled
        if values := [line[name] for line in lines[1:] or lines if name in line]:
            found[name] = median(values)
    return found


def processor(name: str) -> str:
    device, cores = pick_device(name), f"{torch.get_num_threads()} CPU cores"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cores


def prepare_data(do, report: Report, config: FullRunConfig) -> None:
    """Files, tokenizer and tokens. After a UserError, the next run reads the files anew."""
    data = config.out_dir / "data"
    try:
        do("data", "data", lambda: gather(config.data_dir, data))
        do("problems", "worked R1", lambda: reason(data, config.variants, config.drills, config.seed))
        do("tokenizer", "tokenizer", lambda: make_tokenizer(config.out_dir, config.vocab_size))
        do("tokens", "tokens", lambda: tokenize(config.out_dir))
    except UserError as error:
        report.forget("data", "problems", "tokenizer")
        ends = ", ".join(f"{name} of {source}" for name, (source, _) in HELD_OUT.items())
        advice = f"Fix it in {config.data_dir}, then rerun (shards are joined, and ends held out: {ends})"
        raise UserError(f"{str(error).removesuffix(f'. {BAD_LINE_ADVICE}')}. {advice}") from None


def main(argv=None):
    config = parse_args(FullRunConfig(), __doc__, argv)
    folder = config.out_dir
    settings = asdict(config) | {"data_dir": str(config.data_dir), "out_dir": str(folder)}
    settings |= {"device": processor(config.device), "torch": torch.__version__}
    settings["dtype"] = dtype_name(pick_dtype(config.dtype, pick_device(config.device)))
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder, settings, f"delete {folder}", MAY_CHANGE)
    failed = [name for name, part in report.parts.items() if isinstance(part, dict) and "failed" in part]
    report.forget(*failed)  # to be tried again
    command = shlex.join(["python", "tools/full_run.py", *(sys.argv[1:] if argv is None else argv)])
    if command not in report.parts.setdefault("commands", []):
        report.parts["commands"].append(command)

    def do(name, title, work):
        if report.do(name, title, work):
            publish(folder, report.parts, STAGES)
        return report.parts[name]

    prepare_data(do, report, config)
    for stage in STAGES if config.last != "tokens" else []:
        name = stage.name
        torch.compiler.reset()  # else rows of another length than before would be compiled for any length
        if "failed" not in report.parts.get(stage.start, {}):
            run_stage(stage, config, report.parts, do)
        if name == config.last:
            break
    if not config.last and "grade worked" in report.parts:
        do("changed", "changed problems", lambda: grade_changed("worked", config))
        do("majority", f"a majority of {VOTES}", lambda: grade_majority("worked", config))
    print(f"\n{tables(report.parts, STAGES)}\neverything: {folder / 'experiments.md'}")


if __name__ == "__main__":
    run_script(main)
