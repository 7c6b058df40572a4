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
is for all up to GRPO, or to --last; --last GRPO leaves out what is for comparison only. A failure after SFT
is reported and the others go on. The same command continues a stopped run, also on another machine, or with
other budgets for the stages to come: --last tokens prepares the data where there is no card. Results are
written as they come: report.json, experiments.md, each stage's replies.jsonl; results/ has all that is small.

On a CPU, a small model:

    python tools/full_run.py --data_dir data --preset 5m --vocab_size 4000 --step_tokens 4096 \\
        --most_tokens 4096 --minutes 175 --last GRPO --variants 6 --validations 2 --max_new_tokens 384 \\
        --compile
"""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from infra.cli import UserError, parse_args, run_script
from infra.device import dtype_name, pick_device, pick_dtype
from infra.jsonl import BAD_LINE_ADVICE
from infra.metrics import read_metrics, without_texts
from infra.report import Report
from infra.resume import STATE
from model import WeakWater
from tools.full_run_data import HELD_OUT, OWN, gather, make_tokenizer, reason, sample_own, tokenize
from tools.full_run_grades import continuations, grade, grade_changed, grade_majority
from tools.full_run_plan import STAGES, FullRunConfig, Stage, command_line, flags_of, plan
from tools.full_run_results import publish, tables
from tools.ladder import VOTES

MAY_CHANGE = (  # from one start of a run to the next
    "minutes", "pretrain_tokens", "sft_tokens", "distill_tokens", "grpo_tokens", "most_tokens", "validations",
    "last", "data_dir", "out_dir", "num_workers", "device", "dtype", "compile", "torch",
)  # fmt: skip


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
    found = without_texts(last) | typical(read_metrics(folder / "metrics.jsonl"))
    found |= {"device": processor(config.device), "train_seconds": round(last["seconds"], 1)}
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
        do("problems", "worked R1", lambda: reason(config))
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
    report.parts["commands"] = list(dict.fromkeys([*report.parts.get("commands", []), command]))

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
