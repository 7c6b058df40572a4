"""Pictures of a run's metrics."""

from pathlib import Path

from infra.files import write_atomically
from infra.metrics import read_metrics

CHARTS = {  # name: ({metric: legend}, label of the axis)
    "loss": ({"loss": "training", "val_loss": "validation"}, "loss (nats per token)"),
    "lr": ({"lr": "lr"}, "learning rate"),
    "epoch_Time": ({"epoch_minutes_left": "left"}, "minutes left in the epoch"),
    "reward": ({"reward": "reward", "teaching": "groups that teach", "entropy": "entropy"}, "share, or nats"),
}


def draw_charts(folder: str | Path, stage: str) -> None:
    """charts/loss_<stage>.png, lr_<stage>.png, ... of what metrics.jsonl has."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = Path(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    (folder / "charts").mkdir(exist_ok=True)
    for name, (curves, label) in CHARTS.items():
        if not any(key in line for line in lines for key in curves):
            continue
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for key, legend in curves.items():
            if points := [(line["step"], line[key]) for line in lines if line.get(key) is not None]:
                marker = "o" if len(points) < 30 else None
                axes.plot(*zip(*points), label=legend, marker=marker, markersize=3, linewidth=1.2)
        axes.set(xlabel="step", ylabel=label, title=f"{name}_{stage}")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
        path = folder / "charts" / f"{name}_{stage}.png"
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
        pyplot.close(figure)
