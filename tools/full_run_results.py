"""What tools/full_run.py found out, as tables, replies and charts."""

import json
import math
import shutil
from pathlib import Path

from infra.files import write_text
from infra.metrics import read_metrics, without_texts
from infra.questions import interval
from infra.scoring import is_right, is_well_formed
from tools.full_run_grades import QUESTIONS
from tools.ladder import VOTES

TRAINING_HEAD = "stage | steps | useful tokens | minutes | tokens/s | MFU"
TRAINING_HEAD += " | loss | val_loss | val_ppl | bits per byte"
TRAINING_ROW = "{name} | {step} | {millions:.1f}M | {minutes:.1f} | {tokens_per_second:,.0f} | {mfu}"
TRAINING_ROW += " | {loss:.3f} | {val_loss:.3f} | {val_ppl:.2f} | {val_bpb:.3f}"
LADDER = ("SFT_512", "SFT_1024", "equations", "plain", "worked", "rejection", "GRPO")  # the lowest rung first
GRADES_HEAD = "model | right, of held-out Chinese word problems | 95% interval | won and lost against"
GRADES_HEAD += " | equation right | calculations right"
GRADES_HEAD += " | tokens a reply | well formed | loss of ordinary replies"
MOST_SHOWN = 300  # characters of a reply in experiments.md; report.json has all


def signs_test(won: int, lost: int) -> float:
    """McNemar's exact test: the two-sided p-value of questions that only one of two models got right."""
    count = won + lost
    return min(1.0, 2 * sum(math.comb(count, smaller) for smaller in range(min(won, lost) + 1)) / 2**count)


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
                right = f"{percent(parts['majority'], 'samples_right')} of them right"
                rows.append(
                    grade_row(f"worked, majority of {VOTES} samples, {right}", voted, "worked", parts)
                )
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
    cells += [percent(row, "equation_right"), percent(row, "calculations_right")]
    cells += [f"{row['reply_tokens']:.0f}" if "reply_tokens" in row else "-", percent(row, "well_formed")]
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
        f"{change} | {of_all(len(found['right']), found['questions'])}"
        f" | {percent(found, 'equation_right')} | {percent(found, 'calculations_right')}"
        for change, found in parts.get("changed", {}).items()
        if change != "seconds"
    ]
    head = "worked, the problems with | right | equation right | calculations right"
    return lines + (table(head, changed) if changed else [])


def percent(row: dict, name: str) -> str:
    """'40.6%', or '-' where there was nothing to count."""
    return f"{row[name]:.1%}" if name in row else "-"


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
    (folder / "results/metrics").mkdir(parents=True, exist_ok=True)
    for stage in chosen:
        # texts of the data stay where they are
        lines = map(without_texts, read_metrics(folder / stage.name / "metrics.jsonl"))
        if numbers := "".join(json.dumps(line) + "\n" for line in lines):
            write_text(folder / f"results/metrics/{stage.name}.jsonl", numbers)
        recipe = "Distill" if stage.recipe == "distill" else stage.recipe
        for chart in (folder / stage.name / "charts").glob("*.png"):
            kept[chart] = f"charts_{recipe}/{chart.stem.removesuffix(stage.recipe)}{stage.name}.png"
    for path, name in kept.items():
        if path.is_file():
            (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "results" / name)
