"""What tools/full_run.py finds out: grades of the models, and all results as tables, replies and charts."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np

from Config import TrainConfig
from dataset import PackedRows, open_tokens, prompt_ids
from eval_model import EvalConfig, load
from generate import Sampling, generate, judged_replies
from infra.distributed import Process
from infra.files import write_text
from infra.scoring import final_answer, is_right, is_well_formed, shares
from infra.tokenizer import BOS
from tools.ladder import VOTES, changed_problems, look_into, majority, prompts_of
from tools.worked_r1 import first_turn, read_conversations
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
LADDER = (
    "SFT_512",
    "SFT_1024",
    "equations",
    "plain",
    "worked",
    "rejection",
    "GRPO",
)  # rungs, the lowest first
GRADES_HEAD = "model | right, of held-out Chinese word problems | 95% interval | won and lost against"
GRADES_HEAD += (
    " | equation right | calculations right | tokens a reply | well formed | loss of ordinary replies"
)
CHARTS = {
    "pretrain": "charts_pretrain",
    "SFT": "charts_SFT",
    "distill": "charts_Distill",
    "GRPO": "charts_GRPO",
}
FIRST = 10  # right and wrong replies to word problems that are shown
MOST_SHOWN = 300  # characters of a reply in experiments.md; report.json has all


def interval(share: float, count: int) -> list[float]:
    """The 95% interval of a share of `count` (Wilson 1927)."""
    z = 1.96
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [abs(round(bound / (1 + z * z / count), 4)) for bound in (middle - half, middle + half)]


def signs_test(won: int, lost: int) -> float:
    """McNemar's exact test: the two-sided p-value of questions that only one of two models got right."""
    count = won + lost
    return min(1.0, 2 * sum(math.comb(count, smaller) for smaller in range(min(won, lost) + 1)) / 2**count)


def grade(stage, config) -> dict:
    """What a model that converses is worth: word problems, the loss of ordinary replies, sample replies.

    right: the numbers of the word problems that it gets right.
    """
    folder, data = config.out_dir / stage.name, config.out_dir / "data"
    model, tokenizer = load(EvalConfig(model_dir=str(folder), device=config.device))
    found = {"questions": 0}
    if conversations := list(read_conversations(data / "word_problems.jsonl")):
        judged, found = answer(model, tokenizer, conversations, config)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in judged]
        write_text(folder / "replies.jsonl", "".join(lines))
        found["first"] = first_replies(judged, conversations)
    found["ordinary_loss"] = loss_on(model, tokenizer, data / "sft_val.jsonl", config.dtype)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    replies = generate(model, prompts, Sampling(max_new_tokens=config.max_new_tokens))
    return {**found, "replies": dict(zip(QUESTIONS, map(tokenizer.decode, replies)))}


def first_replies(judged: list[dict], conversations: list) -> dict[str, list]:
    """{"right", "wrong": the first replies, each as (number of the problem, expected answer, reply)}."""
    expected = (final_answer(first_turn(turns)[1]) for turns in conversations)
    numbered = [(number, *pair) for number, pair in enumerate(zip(expected, judged))]
    kinds = {"right": True, "wrong": False}
    return {
        kind: [(n, answer, one["reply"]) for n, answer, one in numbered if one["is_right"] == is_right][
            :FIRST
        ]
        for kind, is_right in kinds.items()
    }


def grade_changed(name: str, config) -> dict:
    """{change: what `answer` finds} for the held-out problems, changed."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / name), device=config.device))
    conversations = list(read_conversations(config.out_dir / "data/word_problems.jsonl"))
    changed = changed_problems(conversations, random.Random(config.seed))
    return {change: answer(model, tokenizer, those, config)[1] for change, those in changed.items() if those}


def grade_majority(name: str, config) -> dict:
    """{"right": numbers of the word problems that a majority of sampled replies gets right}."""
    model, tokenizer = load(EvalConfig(model_dir=str(config.out_dir / name), device=config.device))
    conversations = list(read_conversations(config.out_dir / "data/word_problems.jsonl"))
    questions = prompts_of(tokenizer, conversations)
    return majority(model, tokenizer, questions, most_tokens(tokenizer, config), config.seed)


def most_tokens(tokenizer, config) -> int:
    """In a reply: a prompt may have half the context."""
    return min(config.max_new_tokens, tokenizer.max_length // 2)


def answer(model, tokenizer, conversations: list, config) -> tuple[list[dict], dict]:
    """The verdicts on greedy replies to the first questions, and what they come to."""
    questions = prompts_of(tokenizer, conversations)
    judged = judged_replies(model, tokenizer, questions, most_tokens(tokenizer, config), shows_progress=True)
    found = look_into(judged, questions, [len(tokenizer.encode(one["reply"])) for one in judged])
    right = [number for number, one in enumerate(judged) if one["is_right"]]
    return judged, {"questions": len(judged), **shares(judged), **found, "right": right}


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
    devices = [row["device"] for row in trained.values() if "device" in row] or [about["device"]]
    device = ", then ".join(dict.fromkeys(devices))
    parameters = f"{trained['pretrain']['parameters']:,} parameters; " if trained else ""
    minutes = f"{parts['seconds'] / 60:.0f} minutes in all, from the first byte to this table."
    lines = [f"# {device}, preset {about['preset']}", "", "```bash", *parts["commands"], "```", ""]
    lines += [f"{parameters}{device}, torch {about['torch']}, {about['dtype']}; {minutes}"]
    lines += table(TRAINING_HEAD, [training_row(name, row) for name, row in trained.items()])
    rows = ladder(parts, chosen)
    lines += (table(GRADES_HEAD, rows) if rows else []) + details(parts, chosen)
    return "\n".join(lines) + "\n"


def table(head: str, rows: list[str]) -> list[str]:
    return ["", f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows)]


def training_row(name: str, row: dict) -> str:
    if "failed" in row:
        return f"{name} | failed" + 8 * " | -"
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
    cells = {"millions": row["tokens"] / 1e6, "minutes": row["train_seconds"] / 60, "mfu": mfu}
    return TRAINING_ROW.format(**row | cells, name=name)


def ladder(parts: dict, chosen: list) -> list[str]:
    """A row for each model that was graded, for its majority, and for the commonest answer."""
    known, rows = parts.get("tokens", {}), []
    rungs = sorted((stage for stage in chosen if stage.name in LADDER), key=lambda it: LADDER.index(it.name))
    for stage in rungs:
        if row := parts.get(f"grade {stage.name}"):
            rows.append(grade_row(stage.name, row, stage.against, parts))
            if stage.name == "worked" and "majority" in parts:
                same = {name: row[name] for name in ("questions", "ordinary_loss")}
                voted = {**same, "right": parts["majority"]["right"]}
                rows.append(grade_row(f"worked, majority of {VOTES}", voted, "worked", parts))
    if rows and known["word_problems"]:
        right = of_all(known["constant_right"], known["word_problems"])
        rows.append(f"always {known['constant_answer']} | {right}" + 7 * " | -")
    return rows


def grade_row(name: str, row: dict, against: str, parts: dict) -> str:
    if not row["questions"]:
        return f"{name} | -" + 6 * " | -" + f" | {row['ordinary_loss']:.3f}"
    count, other = row["questions"], parts.get(f"grade {against}")
    bounds = "{:.1%} to {:.1%}".format(*interval(len(row["right"]) / count, count))
    cells = [name, of_all(len(row["right"]), count), bounds, compared(row, other, against) if other else "-"]
    for key in ("equation_right", "calculations_right", "reply_tokens", "well_formed"):
        cells.append(
            "-" if key not in row else f"{row[key]:.0f}" if key == "reply_tokens" else f"{row[key]:.1%}"
        )
    return " | ".join([*cells, f"{row['ordinary_loss']:.3f}"])


def compared(row: dict, other: dict, name: str) -> str:
    """'plain: +12 -3 (p = 0.035)': the questions that only this model, and only the other one, got right."""
    won, lost = len(set(row["right"]) - set(other["right"])), len(set(other["right"]) - set(row["right"]))
    p = signs_test(won, lost)
    return f"{name}: +{won} -{lost} ({f'p = {p:.2g}' if p >= 1e-6 else 'p < 1e-6'})"


def details(parts: dict, chosen: list) -> list[str]:
    """Right answers by kind of problem, and to changed problems."""
    graded = {stage.name: parts.get(f"grade {stage.name}", {}) for stage in chosen}
    graded = {name: row for name, row in graded.items() if row.get("by_kind")}
    if not graded:
        return []
    kinds = sorted({kind for row in graded.values() for kind in row["by_kind"]})
    rows = [" | ".join([kind, *(of_all(*row["by_kind"][kind]) for row in graded.values())]) for kind in kinds]
    lines = table(" | ".join(["problems with", *graded]), rows)
    changed = [
        f"{change} | {of_all(len(found['right']), found['questions'])} | {found['equation_right']:.1%} | "
        + (f"{found['calculations_right']:.1%}" if "calculations_right" in found else "-")
        for change, found in parts.get("changed", {}).items()
        if change != "seconds"
    ]
    head = "worked, the problems with | right | equation right | calculations right"
    return lines + (table(head, changed) if changed else [])


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
        for kind, first in parts.get(f"grade {stage.name}", {}).get("first", {}).items():
            lines += ["", f"## {stage.name}, the first {kind} replies to held-out problems"]
            for number, expected, reply in first:
                lines += ["", f"problem {number}, expected {expected}", "", "```text", reply, "```"]
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
