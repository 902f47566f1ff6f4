"""All finished cells of a folder as JSON, as a table, and as pictures."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrk.atomic import write_text
from lrk.eval.arguments import EvalArguments
from lrk.eval.cells import LM_EVAL, ResultFolder
from lrk.eval.heatmap import (
    BIN_MIDDLES,
    DEPTH_BINS,
    binned,
    draw_heat_map,
    draw_loss_by_position,
    draw_scores,
)
from lrk.eval.score import EFFECTIVE, effective_length
from lrk.eval.tasks import GRID, TASKS

Cells = Sequence[Mapping[str, Any]]
Table = dict[str, dict[int, float | None]]

RULER = [name for name, task in TASKS.items() if task.is_ruler]


def write(
    folder: ResultFolder, arguments: EvalArguments, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `results.json`, `results.md`, `config.yaml` and the pictures.

    Args:
        arguments: of the last run.
        record: the environment of the last run; each cell has its own.

    Returns:
        What `results.json` holds.
    """
    cells = list(folder.read_all())
    cells.sort(key=lambda cell: (cell["length"] or 0, cell["depth"] or 0.0))
    found = summary(cells)
    results = {
        "arguments": arguments.to_dict(),
        "environment": record,
        **found,
        "cells": [_without_trials(cell) for cell in cells],
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, default=str)
    write_text(folder.path / "results.json", text + "\n")
    model = str(arguments.model)
    # A folder by its name alone; a model of the hub by its owner too.
    title = Path(model).resolve().name if Path(model).is_dir() else model
    if arguments.decoding is not None:
        title += f", {arguments.decoding}"
    write_text(folder.path / "results.md", markdown(title, cells))
    write_text(folder.path / "config.yaml", arguments.to_yaml())
    _draw(folder, title, cells)
    return results


def summary(cells: Cells) -> dict[str, Any]:
    """Scores by task and length, RULER's mean over the tasks that were run, effective length."""
    scores = _scores(cells)
    mean = _ruler_mean(scores)
    return {
        "scores": scores,
        "losses": _losses(cells),
        "ruler": {
            "tasks": [name for name in RULER if name in scores],
            "of": len(RULER),
            "mean": mean,
            "effective_length": effective_length(mean),
        },
    }


def markdown(model: str, cells: Cells) -> str:
    """The table, with what it takes to read it."""
    scores, losses = _scores(cells), _losses(cells)
    blocks = [[f"# {model}"]]
    if scores:
        blocks += [["Score from 0 to 100."], [*_table("task", scores, "{:.1f}")]]
        blocks += [[*_ruler_note(scores)]]
    if losses:
        blocks += [["Losses are in nats a token."], [*_table("", losses, "{:.3f}")]]
    blocks += [_lm_eval(cells), [_provenance(cells[0])]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _scores(cells: Cells) -> Table:
    """Mean score of each task by length; of the grid over its depths."""
    grouped: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        if cell["task"] in TASKS:
            of_task = grouped.setdefault(cell["task"], {})
            of_task.setdefault(cell["length"], []).append(cell["result"]["score"])
    return {
        task: {length: sum(values) / len(values) for length, values in grouped[task].items()}
        for task in TASKS
        if task in grouped
    }


def _losses(cells: Cells) -> Table:
    table: Table = {}
    for cell in cells:
        task, length, result = cell["task"], cell["length"], cell["result"]
        if task == "perplexity":
            table.setdefault("perplexity, sliding window", {})[length] = result["perplexity"]
        elif task == "loss_by_position":
            table.setdefault("loss, whole text", {})[length] = result["loss"]
        elif task == "longppl":
            table.setdefault("LongPPL", {})[length] = result["key"]["perplexity"]
            share = 100 * result["key"]["tokens"] / result["all"]["tokens"]
            table.setdefault("key tokens in per cent", {})[length] = share
    return table


def _ruler_mean(scores: Mapping[str, Mapping[int, float | None]]) -> dict[int, float]:
    """Over the tasks of RULER that were run, at lengths where all of them were."""
    rows = [scores[name] for name in RULER if name in scores]
    lengths = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {
        length: sum(row[length] or 0.0 for row in rows) / len(rows) for length in sorted(lengths)
    }


def _ruler_note(scores: Table) -> Iterator[str]:
    mean = _ruler_mean(scores)
    if not mean:
        return
    count = sum(name in scores for name in RULER)
    listed = ", ".join(f"{value:.1f} at {length:,}" for length, value in mean.items())
    yield f"Mean of {count} of RULER's {len(RULER)} tasks: {listed}."
    effective = effective_length(mean)
    yield (
        f"Effective length by RULER's threshold of {EFFECTIVE}: "
        + ("below the shortest." if effective is None else f"{effective:,}.")
    )
    if count < len(RULER):
        yield "The threshold is meant for all tasks; some are easier than others."


def _table(name: str, rows: Table, form: str) -> Iterator[str]:
    lengths = sorted({length for row in rows.values() for length in row})
    yield f"| {name} | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield "|---" * (len(lengths) + 1) + "|"
    for title, row in rows.items():
        values = [
            "" if length not in row else "none" if value is None else form.format(value)
            for length in lengths
            for value in [row.get(length)]
        ]
        yield f"| {title} | {' | '.join(values)} |"


def _lm_eval(cells: Cells) -> list[str]:
    rows = [
        f"| {task} | {metric} | {value:.4f} |"
        for cell in cells
        if cell["task"] == LM_EVAL
        for task, metrics in cell["result"]["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    ]
    return ["| lm-eval | metric | value |", "|---|---|---|", *rows] if rows else []


def _provenance(cell: Mapping[str, Any]) -> str:
    settings, packages = cell["settings"], cell["environment"]["packages"]
    operations = "lrk" if settings["patched"] else "stock transformers"
    return (
        f"Config {settings['model_config']}, weights {settings['weights']}, dtype "
        f"{settings['dtype']}, {operations}, seed {settings['seed']}; lrk {packages['lrk']}, torch "
        f"{packages['torch']}, transformers {packages['transformers']}. All settings and answers: "
        "`cells/`."
    )


def _without_trials(cell: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in cell["result"].items() if key != "trials"}
    return {key: value for key, value in cell.items() if key != "environment"} | {"result": result}


def _draw(folder: ResultFolder, model: str, cells: Cells) -> None:
    for task in TASKS:
        asked = [cell for cell in cells if cell["task"] == task]
        scores = _by_depth(asked)
        title, picture = f"{task}, {model}", folder.path / f"{task}.png"
        if task == GRID and scores:
            draw_heat_map(scores, sorted({depth for _, depth in scores}), title, picture)
        elif scores and len(scores) == len({cell["length"] for cell in asked}) * DEPTH_BINS:
            draw_heat_map(scores, BIN_MIDDLES, title, picture)
        elif scores:  # Too few trials to say where in a text they fail.
            draw_scores({cell["length"]: _trial_scores(cell) for cell in asked}, title, picture)
    curves = {
        cell["length"]: [
            ((part["start"] + part["stop"]) / 2, part["loss"]) for part in cell["result"]["bins"]
        ]
        for cell in cells
        if cell["task"] == "loss_by_position"
    }
    if curves:
        draw_loss_by_position(curves, model, folder.path / "loss_by_position.png")


def _by_depth(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[int, float], float]:
    """Scores by length and depth in per cent; empty for tasks without a single needle."""
    found = {}
    for cell in cells:
        trials = cell["result"]["trials"]
        if cell["task"] == GRID:
            found[cell["length"], cell["depth"]] = cell["result"]["score"]
        elif trials[0]["depth"] is not None:
            depths = [trial["depth"] for trial in trials]
            for depth, value in binned(depths, _trial_scores(cell)).items():
                found[cell["length"], depth] = value
    return found


def _trial_scores(cell: Mapping[str, Any]) -> list[float]:
    return [100 * trial["score"] for trial in cell["result"]["trials"]]
