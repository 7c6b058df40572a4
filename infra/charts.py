"""Pictures of a run's metrics: PNG files, and SVG that stands in a page."""

import io
import math
import re
from itertools import cycle
from pathlib import Path

import numpy as np

from infra.files import write_atomically
from infra.metrics import read_metrics

Points = list[tuple[float, float]]
CHARTS = {  # name: ({metric: legend}, label of the axis)
    "loss": ({"loss": "training", "val_loss": "validation"}, "loss (nats per token)"),
    "lr": ({"lr": "lr"}, "learning rate"),
    "epoch_Time": ({"epoch_minutes_left": "left"}, "minutes left in the epoch"),
    "reward": ({"reward": "reward", "teaching": "groups that teach", "entropy": "entropy"}, "share, or nats"),
}
COLOURS = ("#3b82c4", "#d97706", "#2e9e6b", "#a05fc0", "#c0504d", "#7f7f7f")  # seen on white and on black
STYLES = ("-", "--", ":", "-.")  # seen without colours
MOST_POINTS = 1000  # of a curve in an SVG: a long run has many times as many
UNNAMED = re.compile(r'(?s)^.*?(?=<svg)|<metadata>.*?</metadata>| id="[\w.]+_\d+"')


def draw_charts(folder: str | Path, stage: str) -> None:
    """charts/loss_<stage>.png, lr_<stage>.png, ... of what metrics.jsonl has."""
    folder = Path(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    (folder / "charts").mkdir(exist_ok=True)
    for name, (curves, label) in CHARTS.items():
        found = {legend: points_of(lines, key) for key, legend in curves.items()}
        if any(found.values()):
            figure = line_chart(found, label, title=f"{name}_{stage}")
            path = folder / "charts" / f"{name}_{stage}.png"
            write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def points_of(lines: list[dict], key: str, x: str = "step") -> Points:
    """(x, value) of each line of metrics that has this one."""
    return [(line[x], line[key]) for line in lines if line.get(key) is not None]


def smooth(points: Points) -> Points:
    """Each value as the mean of itself and its neighbours, a twentieth of all points on either side.

    Near an end there are fewer, as many before as after: the values 6, 3, 0, 3 become 6, 3, 2, 3.
    """
    sums, reach = np.cumsum([0.0, *(y for _, y in points)]), max(1, len(points) // 20)
    sides = [min(reach, place, len(points) - 1 - place) for place in range(len(points))]
    totals = [sums[place + side + 1] - sums[place - side] for place, side in enumerate(sides)]
    return [(x, float(total) / (2 * side + 1)) for (x, _), total, side in zip(points, totals, sides)]


def thin(points: Points) -> Points:
    """Every second, third, ... point and the last one, so that no more than MOST_POINTS + 1 are left."""
    each = math.ceil(len(points) / MOST_POINTS) or 1
    return points if each == 1 else points[::each] + points[-1:]


def line_chart(curves: dict[str, Points], label: str, x="step", title="", dots=None):
    """A matplotlib figure of curves by legend, those without points left out; `dots`: faint, by legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, lines = figure.add_subplot(), []
    for (legend, points), colour, style in zip(curves.items(), cycle(COLOURS), cycle(STYLES)):
        if points:
            if dots and legend in dots:
                axes.plot(*zip(*dots[legend]), ".", color=colour, alpha=0.35, markersize=5)
            marker = "o" if len(points) < 30 else None
            (line,) = axes.plot(*zip(*points), style, color=colour, marker=marker, markersize=4)
            lines.append((line, legend.replace("$", r"\$")))  # a folder's name is no formula
    axes.set(xlabel=x, ylabel=label, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(curves) > 1 and lines:
        axes.legend(*zip(*lines), frameon=False)
    return figure


def histogram(lengths: np.ndarray, mark: int, mark_name: str):
    """A figure of how many documents have which length, on a logarithmic axis, with one length marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    edges = np.geomspace(lengths.min(), max(lengths.max(), mark) + 1, 41)
    axes.hist(lengths, bins=edges, color=COLOURS[0])
    axes.axvline(mark, color=COLOURS[1], linestyle="--", label=mark_name)
    axes.set(xlabel="tokens in a document", ylabel="documents")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def svg(figure) -> str:
    """A figure as an SVG element: the same for the same figure, its ink the colour of the page's text."""
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "WeakWater", "axes.unicode_minus": False}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True)
    return UNNAMED.sub("", buffer.getvalue()).replace("#000000", "currentColor")
