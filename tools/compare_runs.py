"""python tools/compare_runs.py out/a out/b [...] --out compare.html

The curves of several training runs over one another on one page, with their last values and the settings that
differ. Where their steps hold different numbers of tokens, the curves are drawn over tokens too.
"""

import html
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from infra.charts import line_chart, points_of, smooth, svg, thin
from infra.cli import UserError, make_parser, run_script
from infra.config_json import read_json
from infra.files import write_text
from infra.html_page import body_of, charts, element, page, table
from infra.metrics import read_metrics
from infra.run_report import SMOOTH, last_values

CURVES = {  # metric: (label of the axis, caption)
    "loss": ("loss (nats per token)", f"Training loss. {SMOOTH}"),
    "val_loss": ("validation loss (nats per token)", "Validation loss, of each run's own validation rows."),
    "lr": ("learning rate", "Learning rate."),
    "tokens_per_second": ("tokens per second", "Useful tokens a second, padding left out."),
}
FLAG = re.compile('<span class="flag">--(\\S+?)(?: (.*?))?</span>')
SAME = 0.01  # of the tokens in a step: rows are packed a little differently


def read_run(folder: str) -> list[dict]:
    """The metrics of a run, the tokens of a validation being those of its step. Raises UserError if none."""
    path = Path(folder) / "metrics.jsonl"
    expected = "expected what a training script writes into its --out_dir"
    try:
        lines = read_metrics(path)
        trained = [(line["step"], line["tokens"]) for line in lines if "tokens" in line]
        if not trained:
            found = "found no step in it" if path.is_file() else "not found"
            raise UserError(f"{path}: {found}, {expected}")
        steps, tokens = zip(*trained)
        return [{**line, "tokens": round(np.interp(line["step"], steps, tokens))} for line in lines]
    except (UnicodeDecodeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {expected} ({error})") from None


def settings_of(folder: Path) -> dict:
    """The fields of config.json and, where the run has its report, the flags of its command."""
    config = read_json(folder) if (folder / "config.json").is_file() else {}
    report = folder / "report.html"
    text = body_of(report.read_text(encoding="utf-8")) if report.is_file() else ""
    flags = {f"--{name}": html.unescape(value) or "on" for name, value in FLAG.findall(text)}
    return config | {name: value for name, value in flags.items() if name != "--out_dir"}


def differing(runs: dict[str, dict]) -> list[list]:
    """[name, value of each run] for what is not the same in all; a dash where a run has none."""
    names = dict.fromkeys(name for run in runs.values() for name in run)
    rows = [[name, *(run.get(name, "-") for run in runs.values())] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def compare(runs: dict[str, list[dict]], settings: dict[str, dict]) -> str:
    """The body of the page. runs: metrics by name; settings: what may differ."""
    head, last = ["", *runs], {name: last_values(lines) for name, lines in runs.items()}
    names = dict.fromkeys(name for values in last.values() for name in values)
    rows = [[name, *(values.get(name, "-") for values in last.values())] for name in names]
    parts = [element("h1", "Runs compared"), table(head, rows, "numbers"), "<h2>What differs</h2>"]
    different = differing(settings)
    parts.append(table(head, different, "numbers") if different else "<p>Nothing that the folders tell.</p>")
    sizes = [lines[-1]["tokens"] / lines[-1]["step"] for lines in runs.values()]  # tokens of a step
    for x in ["step", "tokens"] if max(sizes) > min(sizes) * (1 + SAME) else ["step"]:
        pictures = []
        for key, (label, caption) in CURVES.items():
            points = {name: points_of(lines, key, x) for name, lines in runs.items()}
            dots = {name: thin(each) for name, each in points.items()} if key == "loss" else None
            curves = {name: thin(smooth(each) if dots else each) for name, each in points.items()}
            if any(curves.values()):
                pictures.append((svg(line_chart(curves, label, x, dots=dots)), caption))
        parts += [f"<h2>By {x}</h2>", charts(pictures)]
    return "".join(parts)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="what runs wrote as --out_dir")
    parser.add_argument("--out", default="compare.html", help="the page (default: compare.html)")
    args = parser.parse_args(argv)
    runs = {folder: read_run(folder) for folder in args.folders}
    about = {folder: settings_of(Path(folder)) for folder in runs}
    write_text(Path(args.out), page("Runs compared", compare(runs, about)))
    print(f"{len(runs)} runs compared: {args.out}")


if __name__ == "__main__":
    run_script(main)
