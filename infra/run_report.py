"""report.html: a finished training run on one page, from its command to what it replies."""

import platform
import shlex
import time
from contextlib import suppress
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from infra.charts import MOST_POINTS, histogram, line_chart, points_of, smooth, svg, thin
from infra.device import dtype_name, pick_dtype
from infra.distributed import world_size
from infra.extent import describe
from infra.files import write_text
from infra.html_page import charts, element, page, table
from infra.lens import COLOURS, bad_lines, facts, named_tokens
from infra.metrics import NO_SHARES, number_text, read_metrics

MOST_TOKENS = 600  # of the document whose loss mask is shown
MOST_VALIDATIONS = 40  # whose replies are shown
OF_TRAINING = {"loss": "{:.4f}", "tokens": "{:,}", "seconds": "{:,.0f}", "dropped": "{}"}
SMOOTH = (
    "Dots: each logged loss, the mean of its interval. Line: the mean of a dot and its neighbours, a "
    "twentieth of all dots to either side, fewer at the ends."
)


def write_report(config, rows, model) -> None:
    """Write report.html into the folder of a finished run. rows: PackedRows, or what has their facts."""
    folder = Path(config.out_dir)
    lines = read_metrics(folder / "metrics.jsonl")
    parts = [
        origin(config, rows, model),
        result(lines),
        curves(lines),
        data(rows),
        mask(rows),
        samples(lines),
    ]
    write_text(folder / "report.html", page(f"{config.stage}: {folder}", "".join(parts)))


def origin(config, rows, model) -> str:
    """When and where it ran, the command that makes it again, and the versions."""
    device = model.lm_head.weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    dtype = dtype_name(pick_dtype(config.dtype, device))
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    with suppress(metadata.PackageNotFoundError):  # no stage needs it
        versions.append(f"transformers {metadata.version('transformers')}")
    versions += [platform.platform(), name, f"processes: {world_size()}"]
    command = " ".join(element("span", word, "flag") for word in command_of(config))
    return (
        element("h1", config.stage)
        + element("p", f"{time.strftime('%Y-%m-%d %H:%M')}, {config.out_dir}")
        + element("p", describe(model, rows, config, f"{device} in {dtype}"))
        + f"<pre>{command}</pre>"
        + element("p", " | ".join(versions), "note")
    )


def command_of(config) -> list[str]:
    """The command that makes the run again, word by word, a flag with its value as one.

    Scripts have defaults of their own, so no number is left out.
    """
    start = f"torchrun --nproc_per_node {world_size()}" if world_size() > 1 else "python"
    words = [start, f"{config.stage}.py"]
    for f in fields(config):
        value = getattr(config, f.name)
        if "help" not in f.metadata or f.name == "resume" or value in ("", None):
            continue
        if f.type is not bool:
            words.append(f"--{f.name} {shlex.quote(str(value))}")
        elif value != f.default:
            words.append(f"--{f.name}" if value else f"--no-{f.name}")
    return words


def result(lines: list[dict]) -> str:
    rows = [[name, text] for name, text in last_values(lines).items()]
    return "<h2>Result</h2>" + table(["metric", "last value"], rows, "numbers")


def last_values(lines: list[dict]) -> dict[str, str]:
    """The last value of each metric, and the mean speed."""
    last = {name: value for line in lines for name, value in line.items() if value is not None}
    texts = {name: number_text(name, last[name]) for name in measured(lines)}
    texts |= {name: form.format(last[name]) for name, form in OF_TRAINING.items() if name in last}
    if last.get("seconds"):
        texts["tokens per second"] = f"{last['tokens'] / last['seconds']:,.0f}"
    return texts


def measured(lines: list[dict]) -> list[str]:
    """The names of what the last validation measured, as far as these are numbers."""
    validations = [line for line in lines if "val_loss" in line]
    last = validations[-1] if validations else {}
    return [
        name
        for name, value in last.items()
        if isinstance(value, int | float) and name not in ("step", "tokens", "val_seconds")
    ]


def curves(lines: list[dict]) -> str:
    """Loss with its smooth line, learning rate, gradient, speed, and what the probe measured."""

    def of(*keys):
        return {key: thin(points_of(lines, key)) for key in keys}

    loss, others = points_of(lines, "loss"), [name for name in measured(lines) if not name.startswith("val_")]
    shares = [name for name in others if name not in NO_SHARES]
    both = {"training": thin(smooth(loss)), "validation": thin(points_of(lines, "val_loss"))}
    thinned = f" Of {len(loss)} intervals, about {MOST_POINTS} are drawn." * (len(loss) > MOST_POINTS)
    figures = [
        (
            line_chart(both, "loss (nats per token)", dots={"training": thin(loss)}),
            f"{SMOOTH} Validation: as measured.{thinned}",
        ),
        (line_chart(of("lr"), "learning rate"), "Learning rate."),
        (line_chart(of("grad_norm"), "gradient norm"), "Norm of the gradient before it is clipped."),
        (
            line_chart(of("tokens_per_second"), "tokens per second"),
            "Useful tokens a second, padding left out.",
        ),
    ]
    if shares:
        figures.append((line_chart(of(*shares), "share"), "What the probe measured at each validation."))
    figures += [(line_chart(of(name), name), name) for name in others if name in NO_SHARES]
    return "<h2>Curves</h2>" + charts([(svg(figure), caption) for figure, caption in figures])


def data(rows) -> str:
    """What the file holds: lengths, padding, bad lines."""
    about, lengths = rows.cache.about, np.diff(rows.cache.ends, prepend=0)
    picture = svg(histogram(lengths, rows.row_length, f"a row: {rows.row_length} tokens"))
    bad = element("pre", "\n".join(bad_lines(about))) if about["bad_lines"] else ""
    caption = "Lengths of all documents of the file."
    listed = table(["", about["file"]], [list(item) for item in facts(rows).items()], "facts")
    return "<h2>Data</h2>" + listed + bad + charts([(picture, caption)])


def mask(rows) -> str:
    """The first document of the file, token by token, as `dataset.py --show` prints it."""
    ids, loss_mask = (array[:MOST_TOKENS] for array in rows.cache.document(0))
    is_cut = rows.cache.about["source"]["field"] == "conversations"  # of texts, segments lose nothing
    tokens = named_tokens(ids, loss_mask, rows.cache.tokenizer, rows.row_length if is_cut else len(ids))
    shown = "".join(element("span", text, css(name)) + "\n" * text.endswith("⏎") for text, name in tokens)
    legend = " ".join(element("span", name, css(name)) for name in COLOURS)
    told = f"The first document of the file, at most {MOST_TOKENS} tokens. What is counted is in the loss."
    if not hasattr(rows, "documents"):  # SampledRows
        told += (
            " That holds for validation: this run learned from its own replies, weighed by their advantages."
        )
    return (
        f'<h2>Loss mask</h2>{element("p", told, "note")}<p class="document">{legend}</p>'
        f'<p class="document" lang="zh">{shown}</p>'
    )


def css(name: str) -> str:
    return name.replace(" ", "-")


def samples(lines: list[dict]) -> str:
    """Below each prompt, what the model replied to it at each validation."""
    told = [line for line in lines if "reply_1" in line]
    chosen = (
        sorted({round(place) for place in np.linspace(0, len(told) - 1, MOST_VALIDATIONS)}) if told else []
    )
    replies = {}  # prompt -> [(step, reply), ...]
    for line in (told[place] for place in chosen):
        for number in range(1, sum(name.startswith("reply_") for name in line) + 1):
            if f"prompt_{number}" in line:
                shown = replies.setdefault(line[f"prompt_{number}"], [])
                shown.append([line["step"], line[f"reply_{number}"]])
    tables = "".join(
        f'<div lang="zh">{element("pre", prompt)}{table(["step", "reply"], rows)}</div>'
        for prompt, rows in replies.items()
    )
    note = "What the model replied to two held-out documents at each validation, greedily"
    note += f" ({MOST_VALIDATIONS} of the validations)." if len(told) > len(chosen) else "."
    return f"<h2>Samples</h2>{element('p', note, 'note')}{tables}" if tables else ""
