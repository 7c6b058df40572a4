"""What tools/full_run.py finds out: grades of the models, and all results as tables, replies and charts."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from Config import TrainConfig
from dataset import PackedRows, open_tokens, prompt_ids
from eval_model import EvalConfig, load
from generate import Sampling, generate, judged_replies
from infra.distributed import Process
from infra.files import write_atomically, write_text
from infra.metrics import read_metrics
from infra.questions import read_questions
from infra.scoring import is_right, is_well_formed, shares
from infra.tokenizer import BOS
from trainer import evaluate, prepare

BEGINNINGS = ("中国的首都是", "春天来了，", "The")
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
TRAINING_HEAD = "stage | steps | useful tokens | minutes | tokens/s | MFU"
TRAINING_HEAD += " | loss | val_loss | val_ppl | bits per byte"
TRAINING_ROW = "{name} | {step} | {millions:.1f}M | {minutes:.1f} | {tokens_per_second:,.0f} | {mfu}"
TRAINING_ROW += " | {loss:.3f} | {val_loss:.3f} | {val_ppl:.2f} | {val_bpb:.3f}"
GRADES_HEAD = "model | right, of held-out Chinese word problems | 95% interval"
GRADES_HEAD += " | won and lost against the model before | well formed | loss of ordinary replies"
CHARTS = {"pretrain": "charts_pretrain", "SFT": "charts_SFT", "distill": "charts_Distill"}
CURVES = {"val_loss": "validation loss (nats per token)", "well_formed": "share of well-formed replies"}
MOST_SHOWN = 300  # characters of a reply in experiments.md; report.json has all


def interval(share: float, count: int) -> list[float]:
    """The 95% interval of a share of `count` (Wilson 1927)."""
    z = 1.96
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round(bound / (1 + z * z / count), 4) for bound in (middle - half, middle + half)]


def signs_test(won: int, lost: int) -> float:
    """McNemar's exact test: the two-sided p-value of questions that only one of two models got right."""
    count = won + lost
    return min(1.0, 2 * sum(math.comb(count, smaller) for smaller in range(min(won, lost) + 1)) / 2**count)


def grade(stage, config, parts: dict) -> dict:
    """What a model that converses is worth: word problems, the loss of ordinary replies, sample replies.

    right: the numbers of the word problems that it gets right. against: how many of them it won and lost by
    going on from `stage.start`, with the p-value of that.
    """
    folder, data = config.out_dir / stage.name, config.out_dir / "data"
    model, tokenizer = load(EvalConfig(model_dir=str(folder), device=config.device))
    problems, found = data / "word_problems.jsonl", {"questions": 0}
    if problems.stat().st_size:
        questions = read_questions(problems, partial(prompt_ids, tokenizer))
        most = min(config.max_new_tokens, tokenizer.max_length // 2)
        judged = judged_replies(model, tokenizer, questions, most, shows_progress=True)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in judged]
        write_text(folder / "replies.jsonl", "".join(lines))
        right = [number for number, one in enumerate(judged) if one["is_right"]]
        found = {"questions": len(judged), **shares(judged), "right": right}
        found["interval"] = interval(found["reasoning_accuracy"], len(judged))
        if before := parts.get(f"grade {stage.start}"):
            won, lost = len(set(right) - set(before["right"])), len(set(before["right"]) - set(right))
            found["against"] = {"model": stage.start, "won": won, "lost": lost, "p": signs_test(won, lost)}
    found["ordinary_loss"] = loss_on(model, tokenizer, data / "sft_val.jsonl", config.dtype)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    replies = generate(model, prompts, Sampling(max_new_tokens=config.max_new_tokens))
    return {**found, "replies": dict(zip(QUESTIONS, map(tokenizer.decode, replies)))}


def loss_on(model, tokenizer, path: Path, dtype: str) -> float:
    """Nats per token of the replies in a file."""
    config = TrainConfig(batch_size=8, max_seq_len=1024, dtype=dtype, compile=False)
    device = model.lm_head.weight.device
    cache = open_tokens(path, tokenizer, "conversations")
    rows = PackedRows(cache, np.arange(len(cache)), config.max_seq_len)
    found = evaluate(prepare(model, rows, config, device), rows, config, Process(0, 1, device))
    return round(found["val_loss"], 4)


def continuations(config) -> dict:
    """Texts that the pretrained model continues. The likeliest tokens alone would go round in circles."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / "pretrain"), device=config.device))
    prompts = [[BOS, *tokenizer.encode(beginning)] for beginning in BEGINNINGS]
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=80, seed=config.seed)
    return {"texts": dict(zip(BEGINNINGS, map(tokenizer.decode, generate(model, prompts, sampling))))}


def tables(parts: dict, chosen: list) -> str:
    """The machine, the trainings and the grades of report.json, in Markdown."""
    about, names = parts["settings"], [stage.name for stage in chosen]
    trained = {name: parts[name] for name in names if name in parts}
    graded = {name: parts[f"grade {name}"] for name in names if f"grade {name}" in parts}
    devices = [row["device"] for row in trained.values() if "device" in row] or [about["device"]]
    device = ", then ".join(dict.fromkeys(devices))
    parameters = f"{trained['pretrain']['parameters']:,} parameters; " if trained else ""
    minutes = f"{parts['seconds'] / 60:.0f} minutes in all, from the first byte to this table."
    lines = [f"# {device}, preset {about['preset']}", "", "```bash", *parts["commands"], "```", ""]
    lines += [f"{parameters}{device}, torch {about['torch']}, {about['dtype']}; {minutes}"]
    lines += table(TRAINING_HEAD, [training_row(name, row) for name, row in trained.items()])
    rows = [grade_row(name, row) for name, row in graded.items()]
    if rows and (known := parts["tokens"])["word_problems"]:
        right = of_all(known["constant_right"], known["word_problems"])
        rows.append(f"always {known['constant_answer']} | {right}" + 4 * " | -")
    return "\n".join(lines + (table(GRADES_HEAD, rows) if rows else [])) + "\n"


def table(head: str, rows: list[str]) -> list[str]:
    return ["", f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows)]


def training_row(name: str, row: dict) -> str:
    if "diverged" in row:
        return f"{name} | diverged" + 8 * " | -"
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
    cells = {"millions": row["tokens"] / 1e6, "minutes": row["train_seconds"] / 60, "mfu": mfu}
    return TRAINING_ROW.format(**row | cells, name=name)


def grade_row(name: str, row: dict) -> str:
    right = bounds = formed = against = "-"
    if row["questions"]:
        right, formed = of_all(len(row["right"]), row["questions"]), f"{row['well_formed']:.1%}"
        bounds = "{:.1%} to {:.1%}".format(*row["interval"])
    if "against" in row:
        against = "+{won} -{lost} (p = {p:.2g})".format(**row["against"])
    return f"{name} | {right} | {bounds} | {against} | {formed} | {row['ordinary_loss']:.3f}"


def of_all(right: int, count: int) -> str:
    return f"{right} of {count}, {right / count:.1%}"


def texts(parts: dict, chosen: list) -> str:
    """What the models wrote."""
    lines = []
    if "continuations" in parts:
        lines += ["", "## pretrain goes on with"]
        lines += [f"- {begin}**|**{text!r}" for begin, text in parts["continuations"]["texts"].items()]
    for stage in chosen:
        replies = parts.get(f"grade {stage.name}", {}).get("replies", {})
        lines += ["", f"## {stage.name} replies"] if replies else []
        for question, reply in replies.items():
            more = f" ... ({len(reply)} characters in all)" if len(reply) > MOST_SHOWN else ""
            asked = f"> {question}{verdict(reply, QUESTIONS[question])}"
            lines += ["", asked, "", "```text", reply[:MOST_SHOWN] + more, "```"]
    return "\n".join(lines) + "\n"


def verdict(reply: str, expected: str) -> str:
    """What is to be said of a reply; nothing where no answer is known to be right."""
    judged = "right" if is_right(reply, expected) else f"wrong, expected {expected}"
    return f" ({judged}{', well formed' * is_well_formed(reply)})" if expected else ""


def publish(folder: Path, parts: dict, chosen: list) -> None:
    """Write experiments.md, and copy what is worth keeping, and small, to results/."""
    write_text(folder / "experiments.md", tables(parts, chosen) + texts(parts, chosen))
    kept = {folder / name: name for name in ("report.json", "experiments.md")}
    for stage in chosen:
        kept[folder / stage.name / "metrics.jsonl"] = f"metrics/{stage.name}.jsonl"
        for chart in (folder / stage.name / "charts").glob("*.png"):
            kept[chart] = f"{CHARTS[stage.recipe]}/{chart.stem.removesuffix(stage.recipe)}{stage.name}.png"
    for path, name in kept.items():
        if path.is_file():
            (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "results" / name)
    if (folder / "results" / CHARTS["distill"]).is_dir():
        draw_rates(folder, [stage.name for stage in chosen if stage.recipe == "distill"])


def draw_rates(folder: Path, names: list[str]) -> None:
    """Validation loss and share of well-formed replies of each distillation, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, (key, label) in zip(both, CURVES.items()):
        for name in names:
            lines = read_metrics(folder / name / "metrics.jsonl")
            if points := [(line["step"], line[key]) for line in lines if key in line]:
                rate = name.removeprefix("distill_").replace("_", ", ")
                axes.plot(*zip(*points), label=f"learning rate {rate}", marker="o", markersize=3)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    both[1].set_ylim(-0.03, 1.03)
    both[0].legend()
    path = folder / "results" / CHARTS["distill"] / "rates.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    pyplot.close(figure)
