"""Tables and picture of the results."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lrk.picture import GREY, ink, label_lines, new_picture
from studies.proof.report import holm, interval
from studies.real_text.differences import (
    Difference,
    Runs,
    Statistic,
    by_seed,
    difference,
    loss_at,
    runs_by_method,
    share_right,
    short_loss,
)
from studies.real_text.methods import BEST

CONTROL = "short training"
FULL_LENGTH = "full length"
DRAWN = {
    BEST: "skipped",
    FULL_LENGTH: "full length",
    "theta only": "untrained",
    "nothing, its window alone": "window alone",
}
"""Methods that the picture has beside short training, and how it names them."""


def report(content: dict) -> str:
    """Markdown: loss by position, names by distance, and differences from two of the methods."""
    runs = runs_by_method(content)
    count = len(content["edges"]) - 1
    names = _buckets(content["edges"])
    losses: list[tuple[str, Statistic]] = [("short", short_loss)]
    losses += [(names[n], loss_at(n, n)) for n in range(count)]
    shares = [(names[n], share_right(n, n)) for n in range(count)]
    asked = sum(map(sum, content["asked"]))
    first = next(iter(runs.values()))
    guessed = first.first_right[0].sum(0) / first.asked.sum(0).clip(min=1)
    parts = [
        f"Version {content['version']}, Python {content['python']}, {len(content['documents'])} "
        f"documents, {asked:,} tokens of names.",
        _table("loss in nats", runs, losses, 1, 3, _training(content)),
        _table("names, per cent right", runs, shares, 100, 1, {}),
        f"| {next(iter(runs))}, where they stood first | "
        + " | ".join(f"{100 * share:.1f}" for share in guessed)
        + " |",
    ]
    parts[-2:] = ["\n".join(parts[-2:])]
    beyond = 1, count - 2
    compared: list[tuple[str, Statistic, float, int]] = [
        ("short loss", short_loss, 1, 3),
        (f"loss, {names[count - 2]}", loss_at(count - 2, count - 2), 1, 3),
        (f"loss, {names[count - 1]}", loss_at(count - 1, count - 1), 1, 3),
        (f"names, {_span(content, *beyond)}", share_right(*beyond), 100, 1),
        (f"names, {names[count - 1]}", share_right(count - 1, count - 1), 100, 1),
    ]
    parts += [_differences(of, runs, compared) for of in (CONTROL, FULL_LENGTH) if of in runs]
    return "\n\n".join(parts)


def _training(content: dict) -> dict[str, tuple[str, str]]:
    """Tokens and FLOP, by method."""
    return {
        row["method"]: (f"{row['training_tokens']:,}", f"{row['training_flop']:.2g}")
        for row in content["rows"]
    }


def _table(
    what: str,
    runs: dict[str, Runs],
    columns: Sequence[tuple[str, Statistic]],
    unit: float,
    digits: int,
    ends: dict[str, tuple[str, str]],
) -> str:
    """Mean over seeds, with a 95 % interval over them where there are several."""
    heads = [what, *(name for name, _ in columns), *(("tokens", "FLOP") if ends else ())]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method, each in runs.items():
        cells = []
        for _, statistic in columns:
            values = by_seed(statistic, each)
            mean, half = interval(values) if len(values) > 1 else (values[0], None)
            cells.append(f"{unit * mean:.{digits}f}")
            cells[-1] += "" if half is None else f" ± {unit * half:.{digits}f}"
        lines.append("| " + " | ".join([method, *cells, *ends.get(method, ())]) + " |")
    return "\n".join(lines)


def _differences(
    of: str, runs: dict[str, Runs], columns: Sequence[tuple[str, Statistic, float, int]]
) -> str:
    """Each method minus one of them; intervals over documents and seeds."""
    heads = [f"minus {of}", *(name for name, *_ in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method, each in runs.items():
        if method != of:
            cells = [
                _written(difference(statistic, each, runs[of]), unit, digits)
                for _, statistic, unit, digits in columns
            ]
            lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def _written(found: Difference, unit: float, digits: int) -> str:
    mean, low, high = (f"{unit * value:+.{digits}f}" for value in found[:3])
    return f"{mean} ({low} to {high})"


def _buckets(edges: Sequence[int]) -> list[str]:
    return [f"{first:,} to {last:,}" for first, last in pairwise(edges)]


def _span(content: dict, first: int, last: int) -> str:
    return f"{content['edges'][first]:,} to {content['edges'][last + 1]:,}"


def evidence(content: dict) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows and comparisons as `studies.evidence` gathers them.

    Losses are of task "text", where the length of the window stands for the short loss and others
    for the bucket that ends there; names are of task "retrieval", by the end of their bucket.
    """
    runs = runs_by_method(content)
    window, *ends = content["edges"][1:]
    losses = {window: short_loss} | {end: loss_at(n, n) for n, end in enumerate(ends, start=1)}
    shares = {end: share_right(n, n) for n, end in enumerate((window, *ends))}
    tasks = {"text": (losses, 1, 4), "retrieval": (shares, 100, 2)}
    training = {row["method"]: row for row in content["rows"]}
    rows: dict[str, dict[str, Any]] = {}
    for task, (columns, unit, digits) in tasks.items():
        for method, each in runs.items():
            for length, statistic in columns.items():
                values = by_seed(statistic, each)
                mean, half = interval(values) if len(values) > 1 else (values[0], 0.0)
                rows[f"real text/{task}/{method}/{length}"] = {
                    "study": "real text",
                    "task": task,
                    "method": method,
                    "length": length,
                    "times_window": length / window,
                    "mean": round(unit * mean, digits),
                    "half_interval": round(unit * half, digits),
                    "runs": len(values),
                    "training_tokens": training[method]["training_tokens"],
                    "training_flop": training[method]["training_flop"],
                }
    compared = [(task, BEST, length) for task in tasks for length in ends[-2:]]
    compared.append(("text", CONTROL, window))
    found = {
        (task, method, of, length): difference(tasks[task][0][length], each, runs[of])
        for task, of, length in compared
        for method, each in runs.items()
        if method != of
    }
    corrected = holm([one.p for one in found.values()])
    comparisons: dict[str, dict[str, Any]] = {}
    for ((task, method, of, length), one), p in zip(found.items(), corrected, strict=True):
        _, unit, digits = tasks[task]
        mean, low, high = (round(unit * value, digits) for value in one[:3])
        comparisons[f"real text/{task}/{method} minus {of}/{length}"] = {
            "better": method,
            "worse": of,
            "task": task,
            "length": length,
            "difference": mean,
            "low": low,
            "high": high,
            "p": round(one.p, 5),
            "p_corrected": round(p, 5),
        }
    return rows, comparisons


def draw(content: dict, picture: Path) -> None:
    """By position and by distance: what each method changes beside short training.

    Intervals are those of the tables of differences. "skipped" is the method of `BEST`; what is
    grey trains nothing.
    """
    runs = runs_by_method(content)
    count = len(content["edges"]) - 1
    title = (
        "On real text skipped positions keep up with full length, where short samples fall behind"
    )
    with new_picture(picture, 6, 7.2, title) as figure:
        panels = figure.subplots(2, 1)
        for axes, kind, unit, what in zip(
            panels,
            (loss_at, share_right),
            (1, 100),
            (
                "loss by position: nats a token, minus short training",
                "names by distance: points right, minus short training",
            ),
            strict=True,
        ):
            axes.plot((-0.1, count - 0.8), (0, 0), color=ink(), linewidth=1, label=CONTROL)
            for number, (name, label) in enumerate(DRAWN.items()):
                if name in runs:
                    found = [
                        difference(kind(n, n), runs[name], runs[CONTROL]) for n in range(count)
                    ]
                    colour = GREY if number > 1 else f"C{number}"
                    _draw_differences(axes, found, unit, label, colour, 0.08 * (number - 1))
            axes.set_title(what)
            axes.set_xticks(range(count), [f"to {end:,}" for end in content["edges"][1:]])
            label_lines(axes)


def _draw_differences(
    axes: Axes, found: Sequence[Difference], unit: float, label: str, colour: str, shift: float
) -> None:
    places = [place + shift for place in range(len(found))]
    axes.plot(places, [unit * one.mean for one in found], "o-", color=colour, label=label)
    lows, highs = ([unit * getattr(one, end) for one in found] for end in ("low", "high"))
    axes.vlines(places, lows, highs, color=colour, linewidth=1.2)
