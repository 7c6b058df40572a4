"""python tools/full_run.py --data_dir data

The whole path on real text in one command: tokenizer, pretraining, SFT on rows of 512 and of 1024 tokens, distillation at
several learning rates and, at the first of them, on a mix with ordinary conversations; then scores and conversations.

The folder holds pretrain.jsonl or its shards (pretrain-00.jsonl, ...), sft_512, sft_1024 and r1_1024, each as .jsonl or
.jsonl.xz. The last lines of pretrain, sft_512 and r1_1024 are held out to validate on, unless there are pretrain_val, sft_val
and r1_val. More of r1_1024 is held out for its word problems, questions in Chinese whose answer is a number: on them the
models are graded.

A stage trains on its budget of tokens or, with --minutes, on as much of it as its share of the time that is left allows, at
the speed that its first steps show; all distillations take equally many steps, and one that diverges is told of and left. The
same command again goes on where it was stopped, also on another machine, or with other budgets for the stages to come. Results
are written as they come: report.json, experiments.md (tables and conversations), and each stage's metrics and charts; the
folder results/ has copies of all that is small. All graded replies are in replies.jsonl of each stage's folder.

On a CPU (this is the run of EXPERIMENTS.md):

    python tools/full_run.py --data_dir data --preset 5m --step_tokens 4096 --most_tokens 4096 --minutes 122 \\
        --validations 5 --dtype bf16 --compile
"""

import argparse
import json
import lzma
import math
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import distill
import pretrain
import SFT
import train_tokenizer
from Config import DEVICES_HELP, DTYPES, PRESETS, TrainConfig, run_script, write_atomically
from dataset import BAD_LINE_ADVICE, BOS, ChatTokenizer, PackedRows, numbered_lines, open_cache, parse_line
from eval_model import NUMBER, answer_of, is_right, is_well_formed, judged_replies, number_value, read_questions, shares
from generate import Sampling, generate
from model import WeakWater, pick_device
from quickstart import Report
from trainer import Diverged, Run, evaluate, pick_dtype, read_metrics, world_size

FILES = ("pretrain", "sft_512", "sft_1024", "r1_1024")
HELD_OUT = {  # what is taken from the end of a file, unless it is there: (from where, lines, at most a tenth of all)
    "pretrain_val": ("pretrain", 1500), "sft_val": ("sft_512", 500), "r1_val": ("r1_1024", 200), "r1_test": ("r1_1024", 700),
}  # fmt: skip
MIX = "r1_mixed"   # r1_1024 and the beginning of sft_512
MIXED_IN = 0.5     # bytes of sft_512 for each byte of r1_1024
BEGINNINGS = ("中国的首都是", "春天来了，", "The")
CHARTS = {"pretrain": "charts_pretrain", "SFT": "charts_SFT", "distill": "charts_Distill"}
MOST_SHOWN = 300  # characters of a reply in experiments.md; report.json has all
GRADING = 0.01    # of the time, for each stage that is graded
MAY_CHANGE = (    # from one start of a run to the next
    "data_dir", "minutes", "pretrain_tokens", "sft_tokens", "distill_tokens", "most_tokens", "validations", "distill_rates", "device", "torch", "compile",
)  # fmt: skip
QUESTIONS = {  # with the number that is right, if there is one
    "你好，请介绍一下你自己。": "",
    "怎样才能睡得好？": "",
    "请用一句话解释什么是递归。": "",
    "学校买了24盒彩笔，每盒12支，一共有多少支彩笔？": "288",
    "小华有85元钱，买书用去37元，还剩多少元？": "48",
    "一辆汽车3小时行驶180千米，照这样计算，5小时行驶多少千米？": "300",
    "果园里有苹果树120棵，梨树的棵数是苹果树的2/3，梨树有多少棵？": "80",
    "What is 17 plus 26?": "43",
}


@dataclass(frozen=True)
class Stage:
    name: str
    script: object
    data: str
    val: str
    tokens: float     # the default budget, in positions: useful tokens and padding
    share: float      # of the time; the distillations divide theirs
    is_graded: bool = False
    start: str = ""   # the stage that it goes on from
    max_seq_len: int = 512
    learning_rate: float = 0.0  # 0: the script's own


def stages(rates):
    """What is trained, in order: three stages, then one distillation for each learning rate, and one on the mix at the first."""
    distillations = [(f"distill_{rate:g}", "r1_1024", rate) for rate in rates] + [(f"distill_{rates[0]:g}_mixed", MIX, rates[0])]
    return [
        Stage("pretrain", pretrain, "pretrain", "pretrain_val", 350e6, 0.5),
        Stage("SFT_512", SFT, "sft_512", "sft_val", 40e6, 0.14, is_graded=True, start="pretrain"),
        Stage("SFT_1024", SFT, "sft_1024", "sft_val", 20e6, 0.08, is_graded=True, start="SFT_512", max_seq_len=1024),
        *(
            Stage(name, distill, data, "r1_val", 15e6, 0.24 / len(distillations), True, "SFT_1024", 1024, rate)
            for name, data, rate in distillations
        ),
    ]


def gather(data_dir, folder):
    """Each file in one piece under its own name, unpacked, its shards joined, and what is held out of it in files of their own.

    Raises FileNotFoundError for one that is missing, ValueError for one that is there twice, cut short or too small.
    """
    if data_dir.resolve() == folder.resolve():
        raise ValueError(f"{folder} is where the files are copied to, which would destroy them: pass another --out_dir")
    found = {name: parts_of(name, data_dir) for name in (*FILES, *HELD_OUT)}
    for name in FILES:
        if not found[name]:
            raise FileNotFoundError(f"{data_dir}: found no {name}.jsonl (nor shards {name}-00.jsonl, ... nor .jsonl.xz)")
    folder.mkdir(parents=True, exist_ok=True)
    for cache in folder.glob("*.cache"):  # of copies made before
        shutil.rmtree(cache)
    for name, parts in found.items():
        if parts:
            join(parts, folder / f"{name}.jsonl")
    for name, (source, lines) in HELD_OUT.items():
        if not found[name]:
            hold_out(folder / f"{source}.jsonl", folder / f"{name}.jsonl", lines)
    mix(folder / "r1_1024.jsonl", folder / "sft_512.jsonl", folder / f"{MIX}.jsonl")
    return {"megabytes": {name: round((folder / f"{name}.jsonl").stat().st_size / 1e6, 1) for name in found}}


def parts_of(name, data_dir):
    """The files that make up `name`: one, or its shards in order, or none."""
    parts = sorted(path for path in data_dir.glob(f"{name}*.jsonl*") if re.fullmatch(rf"{name}(-\d+)?\.jsonl(\.xz)?", path.name))
    stems = [path.name.removesuffix(".xz") for path in parts]
    if len(set(stems)) < len(stems) or (f"{name}.jsonl" in stems and len(stems) > 1):
        raise ValueError(f"{data_dir}: found {', '.join(path.name for path in parts)}, expected {name} once: as one file or as shards, packed or not")
    return parts


def join(parts, to):
    with open(to, "wb") as joined:
        for part in parts:
            last = b"\n"
            with lzma.open(part) if part.suffix == ".xz" else open(part, "rb") as file:
                try:
                    while block := file.read(2**20):
                        joined.write(block)
                        last = block[-1:]
                except (EOFError, lzma.LZMAError) as error:
                    raise ValueError(f"{part}: not a whole xz file ({error}): download it again") from None
            if last != b"\n":
                joined.write(b"\n")


def hold_out(path, to, lines):
    """Move the last `lines` lines of a file, at most a tenth of all, to another. Raises ValueError where that is none."""
    with open(path, "rb+") as file:
        total = sum(1 for _ in file)
        if total < 10:
            raise ValueError(f"{path.name}: found {total} lines, expected at least 10, a tenth of which is held out as {to.name}")
        file.seek(0)
        for _ in range(total - min(lines, total // 10)):
            file.readline()
        end = file.tell()
        to.write_bytes(file.read())
        file.truncate(end)


def mix(path, other, to):
    """Write a file and, after it, as many lines of another as have MIXED_IN times its bytes. Training shuffles them."""
    left = path.stat().st_size * MIXED_IN
    shutil.copy(path, to)
    with open(other, "rb") as lines, open(to, "ab") as mixed:
        for line in lines:
            left -= len(line)
            if left < 0:
                break
            mixed.write(line)


def tokenize(folder):
    """The tokens of each file, and what is told of the word problems, which are written to a file of their own.

    All files are tokenized now: a bad line is found before anything is trained, and planning, which leaves nothing behind,
    need not do it again.
    """
    data, tokenizer = folder / "data", ChatTokenizer(folder / "tokenizer")
    kinds = {name: "text" if name.startswith("pretrain") else "conversations" for name in (*FILES, *HELD_OUT, MIX)}
    tokens = {name: len(open_cache(data / f"{name}.jsonl", tokenizer, kind).ids) for name, kind in kinds.items()}
    trained_on = [data / f"{name}.jsonl" for name in ("sft_512", "sft_1024", "r1_1024")]
    found = word_problems(data / "r1_test.jsonl", data / "word_problems.jsonl", tokenizer, trained_on)
    if not found["word_problems"]:
        print("the end of r1_1024 has no questions in Chinese whose answer is a bare number: nothing will be graded")
    return {"tokens": tokens, **found}


def word_problems(path, to, tokenizer, trained_on):
    """Write the conversations of a file that ask in Chinese for a number, but those that are asked in the files `trained_on`
    to the letter, and those whose prompt alone fills half of the context.

    Returns {"word_problems": how many, "constant_answer": the commonest answer, "constant_right": how many it is right for}.
    """
    asked = {message["content"] for other in trained_on for _, line in numbered_lines(other) for message in parse_line(line, "conversations") if message["role"] == "user"}
    lines, answers = [], Counter()
    for _, line in numbered_lines(path):
        messages = parse_line(line, "conversations")
        contents = {message["role"]: message["content"] for message in reversed(messages)}  # of each role's first
        question, expected = contents.get("user", ""), answer_of(contents.get("assistant", ""))
        if not re.search("[\u4e00-\u9fff]", question) or not NUMBER.fullmatch(expected) or question in asked:
            continue
        first_reply = [message["role"] for message in messages].index("assistant")
        if len(tokenizer.prompt_ids(messages[:first_reply])) <= tokenizer.max_length // 2:
            lines.append(line if line.endswith(b"\n") else line + b"\n")
            answers[number_value(expected)] += 1
    to.write_bytes(b"".join(lines))
    commonest, count = answers.most_common(1)[0] if answers else ("", 0)
    return {"word_problems": len(lines), "constant_answer": str(commonest), "constant_right": count}


# ---- training ----


def flags_of(stage, folder, args):
    """The command-line flags of the stage's script, but for what `plan` decides."""
    data = folder / "data"
    flags = {
        "data_path": data / f"{stage.data}.jsonl", "val_path": data / f"{stage.val}.jsonl", "out_dir": folder / stage.name,
        "max_seq_len": stage.max_seq_len, "epochs": 1000, "seed": args.seed, "dtype": args.dtype, "num_workers": args.num_workers,
    }  # fmt: skip
    rows, most_rows = max(1, args.step_tokens // stage.max_seq_len), max(1, args.most_tokens // stage.max_seq_len)
    flags["accumulation_steps"] = math.ceil(rows / most_rows)
    flags["batch_size"] = math.ceil(rows / flags["accumulation_steps"])
    flags["learning_rate"] = stage.learning_rate or stage.script.RECIPE.learning_rate * args.rate_scale
    flags |= {"init_from": folder / stage.start} if stage.start else {"tokenizer": folder / "tokenizer", "preset": args.preset}
    flags |= {"device": args.device} if args.device else {}
    return flags | ({"compile": True} if args.compile else {})


def command_line(flags):
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]


def plan(stage, folder, args, parts, chosen):
    """{"steps", "flags", ...}: as many steps as the budget of tokens pays for, or the stage's share of the time that is left."""
    flags = flags_of(stage, folder, args)
    first = next(other for other in chosen if other.script is stage.script and other.start == stage.start)
    if first is not stage:  # another distillation
        return {name: parts[f"plan {first.name}"][name] for name in ("steps", "flags")}
    budget, measured = getattr(args, f"{stage.name.split('_')[0].lower()}_tokens") or stage.tokens, {}
    steps = max(2, round(budget / (flags["batch_size"] * flags["accumulation_steps"] * stage.max_seq_len)))
    if args.minutes or pick_device(args.device).type == "cuda":  # whose memory a micro-batch may not fit into
        start = time.perf_counter()
        measured = stage.script.main(command_line(flags) + ["--max_steps=5", "--eval_every=1000000", "--dry_run"])
        measured["start_seconds"] = time.perf_counter() - start  # to read, pack and compile, which training will do once more
        flags |= {name: measured[name] for name in ("batch_size", "accumulation_steps")}  # halved where they did not fit
    if args.minutes:
        seconds = time_for(stage, parts["seconds"] + measured["start_seconds"], chosen, args.minutes)
        seconds -= measured["start_seconds"] + args.validations * measured["validation_seconds"]
        steps = min(steps, int(seconds / measured["step_seconds"]))
        if steps < 2:
            steps = 2
            print(f"{stage.name}: --minutes {args.minutes:g} leaves no time for it, so that it takes 2 steps only")
    decided = {name: flags[name] for name in ("batch_size", "accumulation_steps")}
    decided |= {"max_steps": steps, "eval_every": math.ceil(steps / args.validations), "save_every": math.ceil(steps / 10), "log_every": max(1, min(10, steps // 20))}
    return {"steps": steps, "flags": decided} | {name: measured[name] for name in ("step_seconds", "validation_seconds", "start_seconds") if measured}


def time_for(stage, spent, chosen, minutes):
    """Seconds for a stage: what is left of the minutes is divided by the shares of all that is left to do."""
    left = chosen[chosen.index(stage) :]
    return max(0.0, minutes * 60 - spent) * stage.share / sum(other.share + GRADING * other.is_graded for other in left)


def train_stage(stage, planned, folder, args):
    """The last value of each metric, but of loss and speed what is `typical`; the device, the seconds and the parameters.

    A distillation that diverges gives {"diverged": why}: other learning rates may do better.
    """
    resume = (folder / stage.name / "training_state.pt").is_file()
    try:
        last = stage.script.main(command_line(flags_of(stage, folder, args) | planned["flags"]) + ["--resume"] * resume)
    except SystemExit as stop:
        if stop.code != 2:  # Ctrl-C or SIGTERM
            print("here: run the same full_run.py command again, and it goes on from the last save")
        raise
    except Diverged as error:
        if stage.script is not distill:
            raise
        print(error)
        return {"diverged": str(error)}
    told = typical(read_metrics(folder / stage.name / "metrics.jsonl"))
    model, _ = load(folder / stage.name, "cpu")
    return {**last, **told, "device": device_name(args), "train_seconds": round(last["seconds"], 1), "parameters": model.num_parameters()}


def typical(lines):
    """{"loss", "tokens_per_second", "mfu"} of the lines of a metrics.jsonl.

    loss: the mean of the last twentieth of the training lines, at least 5; the others: medians, without the first line, whose
    steps compiled.
    """
    lines = [line for line in lines if line.get("loss") is not None]  # a validation's have none
    found = {"loss": mean(line["loss"] for line in lines[-max(5, len(lines) // 20) :])}
    for name in ("tokens_per_second", "mfu"):
        if values := [line[name] for line in lines[1:] or lines if name in line]:
            found[name] = median(values)
    return found


def device_name(args):
    device = pick_device(args.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"


# ---- grading ----


def load(folder, device):
    return WeakWater.from_pretrained(folder).to(pick_device(device)).eval(), ChatTokenizer(folder)


def interval(share, count):
    """The 95% interval of a share of `count` (Wilson 1927)."""
    z = 1.96
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round((middle - half) / (1 + z * z / count), 4), round((middle + half) / (1 + z * z / count), 4)]


def signs_test(more, fewer):
    """The two-sided p-value of McNemar's exact test: of the questions that one model alone is right on, how many each has."""
    count = more + fewer
    return min(1.0, 2 * sum(math.comb(count, smaller) for smaller in range(min(more, fewer) + 1)) / 2**count)


def grade(stage, folder, args, parts):
    """What a stage that converses is worth: held-out word problems, form, the loss of ordinary replies, and replies as they are.

    right: the numbers of the word problems that it is right on. against: how many of them are won and lost by going on from
    stage.start, with the p-value of that difference.
    """
    model, tokenizer = load(folder / stage.name, args.device)
    problems, found = folder / "data" / "word_problems.jsonl", {"questions": 0}
    if problems.stat().st_size:
        judged = judged_replies(model, tokenizer, read_questions(tokenizer, problems), min(args.max_new_tokens, tokenizer.max_length // 2), shows_progress=True)
        write_atomically(folder / stage.name / "replies.jsonl", lambda path: path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in judged), encoding="utf-8"))
        found = {"questions": len(judged), **shares(judged), "right": [number for number, one in enumerate(judged) if one["is_right"]]}
        found["interval"] = interval(found["reasoning_accuracy"], found["questions"])
        if before := parts.get(f"grade {stage.start}"):
            won, lost = (len(set(a) - set(b)) for a, b in ((found["right"], before["right"]), (before["right"], found["right"])))
            found["against"] = {"model": stage.start, "won": won, "lost": lost, "p": signs_test(won, lost)}
    found["ordinary_loss"] = loss_on(model, tokenizer, folder / "data" / "sft_val.jsonl", folder, args)
    prompts = [tokenizer.prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    replies = generate(model, prompts, Sampling(max_new_tokens=args.max_new_tokens))
    return {**found, "replies": dict(zip(QUESTIONS, map(tokenizer.decode, replies)))}


def loss_on(model, tokenizer, path, folder, args):
    """Nats per graded token of the conversations in a file."""
    config = TrainConfig(batch_size=8, max_seq_len=1024, dtype=args.dtype, device=args.device, compile=False, out_dir=str(folder / "graded"))
    cache = open_cache(path, tokenizer, "conversations", cache_dir=str(folder / "data"))
    rows = PackedRows(cache, np.arange(len(cache)), config.max_seq_len)
    return round(evaluate(Run(model, rows, config, 0, 1, pick_device(args.device)), rows)["val_loss"], 4)


def continuations(folder, args):
    model, tokenizer = load(folder / "pretrain", args.device)
    prompts = [[BOS, *tokenizer.encode(beginning)] for beginning in BEGINNINGS]
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=80, seed=args.seed)  # the likeliest tokens alone go round in circles
    return {"texts": dict(zip(BEGINNINGS, map(tokenizer.decode, generate(model, prompts, sampling))))}


# ---- what is told ----


def percent(share):
    return f"{share:.1%}"


def as_markdown(parts, chosen):
    """Tables and conversations from report.json."""
    about = parts["settings"]
    devices = list(dict.fromkeys(row["device"] for stage in chosen if "device" in (row := parts.get(stage.name, {})))) or [about["device"]]
    device = ", then ".join(devices)
    parameters = f"{parts['pretrain']['parameters']:,} parameters; " if "pretrain" in parts else ""
    lines = [
        f"# {device}, preset {about['preset']}", "", "```bash", *parts["commands"], "```", "",
        f"{parameters}{device}, torch {about['torch']}, {about['dtype']}; {parts['seconds'] / 60:.0f} minutes in all, from the first byte to this table.", "",
        "| stage | steps | useful tokens | minutes | tokens/s | MFU | loss | val_loss | val_ppl | bits per byte |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for stage in chosen:
        if "diverged" in (row := parts.get(stage.name, {})):
            lines.append(f"| {stage.name} | diverged |" + 8 * " - |")
        if "step" not in row:
            continue
        lines.append(
            f"| {stage.name} | {row['step']} | {row['tokens'] / 1e6:.1f}M | {row['train_seconds'] / 60:.1f} | {row['tokens_per_second']:,.0f} | "
            f"{percent(row['mfu']) if 'mfu' in row else '-'} | {row['loss']:.3f} | {row['val_loss']:.3f} | {row['val_ppl']:.2f} | {row['val_bpb']:.3f} |"
        )
    graded = [(stage, parts[f"grade {stage.name}"]) for stage in chosen if f"grade {stage.name}" in parts]
    if graded:
        lines += ["", "| model | right, of held-out Chinese word problems | 95% interval | won and lost against the model before | well formed | loss of ordinary replies |", "|---|---|---|---|---|---|"]
    for stage, row in graded:
        share, against, formed = "- | -", "-", "-"
        if row["questions"]:
            share = f"{len(row['right'])} of {row['questions']}, {percent(row['reasoning_accuracy'])} | {percent(row['interval'][0])} to {percent(row['interval'][1])}"
            formed = percent(row["well_formed"])
        if "against" in row:
            against = "+{won} -{lost} (p = {p:.2g})".format(**row["against"])
        lines.append(f"| {stage.name} | {share} | {against} | {formed} | {row['ordinary_loss']:.3f} |")
    if graded and (known := parts["tokens"])["word_problems"]:
        lines.append(f"| always {known['constant_answer']} | {known['constant_right']} of {known['word_problems']}, {percent(known['constant_right'] / known['word_problems'])} | - | - | - | - |")
    if "continuations" in parts:
        lines += ["", "## pretrain goes on with", *(f"- {beginning}**|**{text!r}" for beginning, text in parts["continuations"]["texts"].items())]
    for stage, row in graded:
        lines += ["", f"## {stage.name} replies"]
        for question, reply in row["replies"].items():
            expected = QUESTIONS[question]
            verdict = f" ({'right' if is_right(reply, expected) else f'wrong, expected {expected}'}{', well formed' if is_well_formed(reply) else ''})" if expected else ""
            shown = reply if len(reply) <= MOST_SHOWN else f"{reply[:MOST_SHOWN]} ... ({len(reply)} characters in all)"
            lines += ["", f"> {question}{verdict}", "", "```text", shown, "```"]
    return "\n".join(lines) + "\n"


def publish(folder, chosen):
    """Copy what is worth keeping, and small, to results/: report.json, experiments.md, metrics and charts."""
    kept = {folder / name: name for name in ("report.json", "experiments.md")}
    for stage in chosen:
        kept[folder / stage.name / "metrics.jsonl"] = f"metrics/{stage.name}.jsonl"
        kind = stage.script.RECIPE.stage
        for chart in (folder / stage.name / "charts").glob("*.png"):
            kept[chart] = f"{CHARTS[kind]}/{chart.stem.removesuffix(kind)}{stage.name}.png"
    for path, name in kept.items():
        if path.is_file():
            (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "results" / name)
    distillations = {stage.name.removeprefix("distill_").replace("_", ", "): lines for stage in chosen if stage.script is distill and (lines := read_metrics(folder / stage.name / "metrics.jsonl"))}
    if distillations:
        draw_rates(distillations, folder / "results" / CHARTS["distill"] / "rates.png")


def draw_rates(distillations, path):
    """Validation loss and share of well-formed replies of each learning rate {name: lines of metrics.jsonl}, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(both, ("val_loss", "well_formed"), ("validation loss (nats per token)", "share of well-formed replies")):
        for rate, lines in distillations.items():
            points = [(line["step"], line[key]) for line in lines if key in line]
            axes.plot([step for step, _ in points], [value for _, value in points], label=f"learning rate {rate}", marker="o", markersize=3)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    both[1].set_ylim(-0.03, 1.03)
    both[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    pyplot.close(figure)


def check(args):
    """Raises ValueError for what a stage would refuse hours later."""
    if world_size() > 1:
        raise ValueError("found torchrun, expected one process: the files are copied and cut by it alone")
    for name, least in {"step_tokens": 1, "most_tokens": 1, "validations": 1, "max_new_tokens": 1, "num_workers": 0, "seed": 0, "minutes": 0, "pretrain_tokens": 0, "sft_tokens": 0, "distill_tokens": 0}.items():
        if not least <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name} ({getattr(args, name):g}) must be at least {least}, and a number")
    for name, rates in {"rate_scale": [args.rate_scale], "distill_rates": args.distill_rates}.items():
        if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError(f"--{name} ({' '.join(map('{:g}'.format, rates))}) must be greater than 0, and each another")


def flag_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=".", help="the folder with the data (default: .)")
    parser.add_argument("--out_dir", default="out/full", help="where everything goes (default: out/full)")
    parser.add_argument("--preset", default="30m", choices=list(PRESETS), help="the model's shape (default: 30m)")
    parser.add_argument("--vocab_size", type=int, default=6400, help="entries of the tokenizer (default: 6400)")
    parser.add_argument("--minutes", type=float, default=0, help="for everything together, about (default: as many as the tokens take)")
    for stage, default in (("pretrain", "350e6"), ("sft", "40e6 and 20e6"), ("distill", "15e6")):
        parser.add_argument(f"--{stage}_tokens", type=float, default=0, help=f"positions to train on, at most{' in each of its two phases' * (stage == 'sft')} (default: {default})")
    parser.add_argument("--step_tokens", type=int, default=80 * 512, help="positions in one step (default: 40960)")
    parser.add_argument("--most_tokens", type=int, default=80 * 512, help="positions in a micro-batch, at most (default: 40960)")
    parser.add_argument("--validations", type=int, default=10, help="in each stage (default: 10)")
    parser.add_argument("--rate_scale", type=float, default=1.0, help="factor of the learning rates of pretraining and SFT: runs of a few hundred steps take 2 (default: 1)")
    parser.add_argument("--distill_rates", type=float, nargs="+", default=[3e-3, 3e-4, 1e-6], help="learning rates to distil with (default: 3e-3 3e-4 1e-6)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="tokens in a reply (default: 512)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    parser.add_argument("--seed", type=int, default=42, help="of weights and order (default: 42)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="arithmetic of the matrix products (default: auto)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    parser.add_argument("--compile", action="store_true", help="torch.compile also on a CPU, which needs a C++ compiler (on CUDA it is the default)")
    parser.add_argument("--last", default="", help="stop after the stage of this name: pretrain, SFT_512, SFT_1024, distill_0.003, ...")
    return parser


def main(argv=None):
    args = flag_parser().parse_args(argv)
    folder, chosen = Path(args.out_dir), stages(args.distill_rates)
    if args.last and args.last not in [stage.name for stage in chosen]:
        raise ValueError(f"--last {args.last!r} is unknown, expected one of {', '.join(stage.name for stage in chosen)}")
    check(args)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        **{name: value for name, value in vars(args).items() if name not in ("last", "out_dir", "num_workers")},
        "device": device_name(args),
        "dtype": str(pick_dtype(args.dtype, pick_device(args.device))).removeprefix("torch."), "torch": torch.__version__,
    }  # fmt: skip
    report = Report(folder, settings, f"delete {folder}", MAY_CHANGE)
    command = shlex.join(["python", "tools/full_run.py", *(sys.argv[1:] if argv is None else argv)])
    if command not in report.parts.setdefault("commands", []):
        report.parts["commands"].append(command)

    def do(name, title, work):
        if report.do(name, title, work):
            write_atomically(folder / "experiments.md", lambda path: path.write_text(as_markdown(report.parts, chosen), encoding="utf-8"))
            publish(folder, chosen)
        return report.parts[name]

    tokenizer_flags = {"data_path": folder / "data" / "pretrain.jsonl", "vocab_size": args.vocab_size, "out_dir": folder / "tokenizer"}
    try:
        do("data", "data", lambda: gather(Path(args.data_dir), folder / "data"))
        do("tokenizer", "tokenizer", lambda: train_tokenizer.main(command_line(tokenizer_flags)) or {})
        do("tokens", "tokens", lambda: tokenize(folder))
    except ValueError as error:
        report.forget("data", "tokenizer")  # what is mended must be read again
        found = str(error)
        if found.endswith(BAD_LINE_ADVICE):
            held_out = ", ".join(f"{name} of {source}" for name, (source, _) in HELD_OUT.items())
            found = f"{found.removesuffix(BAD_LINE_ADVICE)}Mend it in {args.data_dir}, then run the same command again (shards are joined, and the last lines of some files held out: {held_out})"
        raise ValueError(found) from None
    for stage in chosen:
        torch.compiler.reset()  # else rows of another length than the stage before had would be compiled for any length
        planned = do(f"plan {stage.name}", f"{stage.name}: planning", lambda: plan(stage, folder, args, report.parts, chosen))
        trained = do(stage.name, stage.name, lambda: train_stage(stage, planned, folder, args))
        if stage.name == "pretrain":
            do("continuations", "texts that it goes on with", lambda: continuations(folder, args))
        if stage.is_graded and "diverged" not in trained:
            do(f"grade {stage.name}", f"{stage.name}: grading", lambda: grade(stage, folder, args, report.parts))
        if stage.name == args.last:
            break
    print(f"\n{as_markdown(report.parts, chosen).split(chr(10) + '## ')[0]}\neverything: {folder / 'experiments.md'}")


if __name__ == "__main__":
    run_script(main)
