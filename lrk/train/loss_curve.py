"""The loss curve of a run, drawn from its `metrics.jsonl`."""

import re
from pathlib import Path

from lrk.picture import GREY, faint, label_lines, new_picture
from lrk.train.telemetry import read_metrics

_EVALUATION = re.compile(r"eval_(\d+)_loss")
_TRAINING = "training"


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Training loss by step, and the evaluation loss at each simulated length, as a PNG."""
    curves: dict[str, list[tuple[int, float]]] = {_TRAINING: []}
    for row in read_metrics(metrics):
        for name, value in row.items():
            match = _EVALUATION.fullmatch(name)
            if match or name == "loss":
                label = f"evaluation at {int(match[1]):,}" if match else _TRAINING
                curves.setdefault(label, []).append((row["step"], value))
    with new_picture(picture, 6, 4, "Loss in nats per token") as figure:
        axes = figure.add_subplot()
        colours = iter(f"C{number}" for number in range(len(curves)))
        for label, points in curves.items():
            if points:
                is_training = label == _TRAINING
                axes.plot(
                    *zip(*points, strict=True),
                    color=GREY if is_training else next(colours),
                    linewidth=1.2 if is_training else 2,
                    marker="" if is_training and len(points) > 1 else "o",
                    label=label,
                )
        axes.set(xlabel="step")
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.grid(axis="y", color=faint())
        label_lines(axes)
