"""A plan as a picture: stacked bars of its parts."""

from collections.abc import Mapping
from pathlib import Path

from lrk.picture import ink, new_picture
from lrk.plan.gpus import GPUS
from lrk.plan.ledger import DEVICE_PARTS, Usage
from lrk.plan.planner import GIB, Plan

# What stays through a step is blue, what a step comes to hold is orange and red, the rest grey.
COLOURS = {
    "weights": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#A6D8F0",
    "saved_activations": "#E69F00",
    "recomputation": "#F0E442",
    "attention_workspace": "#CC79A7",
    "loss_workspace": "#D55E00",
    "temporary": "#8c8c8c",
    "gathered": "#009E73",
}
NAMES = {"lrk": "lrk", "liger-style": "its loss and\nRoPE alone", "stock": "stock\ntransformers"}


def draw_plan(plan: Plan, file: Path) -> None:
    """One bar for the fullest instant of each phase of a step."""
    title = (
        f"{plan.model}, {plan.settings.length:,} tokens: {plan.peak_gib:.1f}\u00a0GiB at the peak"
    )
    _draw(plan.phases, plan.settings.gpu, title, file)


def draw_comparison(plans: Mapping[str, Plan], file: Path) -> None:
    """One bar for the peak of each plan."""
    first = next(iter(plans.values()))
    peaks = [plan.peak_gib for plan in plans.values()]
    title = (
        f"A training step of {first.model} on {first.settings.length:,} tokens: "
        f"{min(peaks):.0f}\u00a0GiB, not {max(peaks):.0f}"
    )
    bars = {NAMES.get(name, name): plan.peak for name, plan in plans.items()}
    _draw(bars, first.settings.gpu, title, file)


def _draw(bars: Mapping[str, Usage], gpu: str, title: str, file: Path) -> None:
    with new_picture(file, 6, 2.6 + 0.42 * len(bars), title) as figure:
        axes = figure.add_subplot()
        names = list(bars)
        left = [0.0] * len(bars)
        for part in DEVICE_PARTS:
            sizes = [usage.parts[part] / GIB for usage in bars.values()]
            if max(sizes) < 0.005 * max(usage.total for usage in bars.values()) / GIB:
                continue
            axes.barh(names, sizes, 0.7, left, label=part.replace("_", " "), color=COLOURS[part])
            left = [start + size for start, size in zip(left, sizes, strict=True)]
        for row, usage in enumerate(bars.values()):
            total = usage.total / GIB
            axes.text(total, row, f" {total:.1f}", va="center", weight="bold")
        axes.invert_yaxis()
        widest = max(usage.total for usage in bars.values()) / GIB
        axes.set_xlim(0, widest * 1.12)
        if gpu in GPUS and GPUS[gpu].gib < widest * 1.12:
            axes.axvline(GPUS[gpu].gib, color=ink(), linestyle="--", linewidth=1.2)
            axes.annotate(
                f"{gpu}: {GPUS[gpu].gib:.0f} GiB",
                (GPUS[gpu].gib, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
            )
        axes.set(xlabel="GiB at the peak, traced")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=3, handlelength=1, columnspacing=1.2)
