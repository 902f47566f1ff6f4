"""A plan as a picture: stacked bars of its parts."""

from collections.abc import Mapping
from pathlib import Path

from lrk.plan.ledger import DEVICE_PARTS, Usage
from lrk.plan.planner import GIB, Plan

COLOURS = {
    "weights": "#4477aa",
    "gradients": "#66ccee",
    "optimizer": "#228833",
    "saved_activations": "#ccbb44",
    "recomputation": "#ee6677",
    "attention_workspace": "#aa3377",
    "loss_workspace": "#bbbbbb",
    "temporary": "#777777",
    "gathered": "#332288",
}


def draw_plan(plan: Plan, file: Path) -> None:
    """One bar for the fullest instant of each phase of a step."""
    _draw(plan.phases, f"{plan.model}, {plan.settings.length:,} tokens, traced", file)


def draw_comparison(plans: Mapping[str, Plan], file: Path) -> None:
    """One bar for the peak of each plan."""
    some = next(iter(plans.values()))
    title = f"{some.model}, {some.settings.length:,} tokens, peak, traced"
    _draw({name: plan.peak for name, plan in plans.items()}, title, file)


def _draw(bars: Mapping[str, Usage], title: str, file: Path) -> None:
    from lrk.picture import new_figure, save_figure

    figure = new_figure(9, 0.9 + 0.45 * len(bars))
    axes = figure.add_subplot()
    names = list(bars)
    left = [0.0] * len(bars)
    for part in DEVICE_PARTS:
        sizes = [usage.parts[part] / GIB for usage in bars.values()]
        axes.barh(names, sizes, left=left, label=part.replace("_", " "), color=COLOURS[part])
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.1)
    axes.set_xlabel("GiB")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, file, dpi=150)
