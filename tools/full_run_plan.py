"""The stages of tools/full_run.py, and how long each is to take."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import distill
import GRPO
import pretrain
import SFT
from Config import DEVICES_HELP, DTYPES, PRESETS
from infra.cli import UserError, flag
from infra.device import pick_device
from infra.distributed import world_size
from tools.full_run_data import OWN
from tools.more_problems import Amounts

GRADING = 0.01  # of the time, for each stage that is graded
BATCH = ("batch_size", "accumulation_steps")


@dataclass(frozen=True)
class FullRunConfig(Amounts):
    data_dir: Path = flag(Path("."), "the folder with the data")
    out_dir: Path = flag(Path("out/full"), "where everything goes")
    preset: str = flag("30m", "the model's shape", choices=list(PRESETS))
    vocab_size: int = flag(6400, "entries of the tokenizer")
    minutes: float = flag(0, "for all up to GRPO or --last (default: as many as the tokens take)", least=0)
    pretrain_tokens: float = flag(0, "positions, at most (default: 350e6, or what --minutes allow)", least=0)
    sft_tokens: float = flag(0, "the same, in each of two phases (default: 40e6 and 20e6)", least=0)
    distill_tokens: float = flag(0, "the same, in a distillation (default: 40e6, own replies 5e6)", least=0)
    grpo_tokens: float = flag(0, "the same, in rewarded rows (default: 3e6)", least=0)
    conversations: float = flag(0.5, "bytes of ordinary ones for each byte of reasoning", least=0)
    step_tokens: int = flag(80 * 512, "positions in one step", above=0)
    most_tokens: int = flag(80 * 512, "positions in a micro-batch; GRPO has 16 rows of 1024", above=0)
    validations: int = flag(10, "in each stage", above=0)
    rate_scale: float = flag(1.0, "factor of the scripts' own rates: 2 for a few hundred steps", above=0)
    max_new_tokens: int = flag(512, "tokens in a reply", above=0)
    num_workers: int = flag(0, "processes that prepare batches", least=0)
    dtype: str = flag("auto", "arithmetic of the matrix products", choices=DTYPES)
    device: str = flag("", DEVICES_HELP)
    compile: bool = flag(False, "torch.compile also on a CPU, which needs a C++ compiler")
    last: str = flag("", "stop after tokens (the data), or after a stage: pretrain, SFT_512, ...")

    def __post_init__(self):
        super().__post_init__()
        if world_size() > 1:
            raise UserError("found torchrun, expected one process: it alone copies and cuts the files")
        if self.last and self.last not in NAMES:
            raise UserError(f"--last {self.last!r} is unknown, expected one of {', '.join(NAMES)}")


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
NAMES = ["tokens", *(stage.name for stage in STAGES)]  # of what --last may be


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
        found = stage.script.main([*command_line(flags), "--max_steps=50", "--dry_run"])
        flags |= {name: found[name] for name in BATCH}  # halved where they did not fit
        measured = {name: found[name] for name in ("step_seconds", "validation_seconds")}
        # to read, pack and compile, which training will do once more
        measured["start_seconds"] = max(0.0, time.perf_counter() - start - found["timed_seconds"])
    if config.minutes:
        starting, validating = measured["start_seconds"], measured["validation_seconds"]
        seconds = time_for(stage, parts["seconds"] + starting + validating, config.minutes, config.last)
        seconds -= starting + config.validations * validating
        fitting = int(seconds / measured["step_seconds"])
        if fitting < 2:
            print(f"{stage.name}: --minutes {config.minutes:g} leaves no time for it: it takes 2 steps only")
        steps = min(steps, max(2, fitting))
    often = {"eval_every": math.ceil(steps / config.validations), "save_every": math.ceil(steps / 10)}
    often["log_every"] = max(1, min(10, steps // 20))
    decided = {name: flags[name] for name in BATCH} | {"max_steps": steps} | often
    return {"steps": steps, "flags": decided, **measured}


def time_for(stage: Stage, spent: float, minutes: float, last="") -> float:
    """Seconds for a stage: what is left of the minutes, divided by the shares of what is left, to `last`."""
    left = STAGES[STAGES.index(stage) : NAMES.index(last) if last else None]
    shares = sum(other.share + GRADING for other in left if other.share)
    return max(0.0, minutes * 60 - spent) * stage.share / shares
