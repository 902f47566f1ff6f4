"""The loss curve of a run, drawn from its `metrics.jsonl`."""

import re
from pathlib import Path

from lrk.picture import new_figure, save_figure
from lrk.train.telemetry import read_metrics

_EVALUATION = re.compile(r"eval_(\d+)_loss")


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Training loss by step, and the evaluation loss at each simulated length, as a PNG."""
    curves: dict[str, list[tuple[int, float]]] = {"training": []}
    for row in read_metrics(metrics):
        for name, value in row.items():
            match = _EVALUATION.fullmatch(name)
            if match or name == "loss":
                label = f"evaluation at {int(match[1]):,}" if match else "training"
                curves.setdefault(label, []).append((row["step"], value))
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for label, points in curves.items():
        marker = "" if label == "training" and len(points) > 1 else "o"
        axes.plot(*zip(*points, strict=True), marker=marker, label=label) if points else None
    axes.set(xlabel="step", ylabel="loss in nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, picture)
