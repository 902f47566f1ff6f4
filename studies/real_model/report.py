"""Tables and pictures of a study, made of its results alone.

    python -m studies.real_model.report FILE [FILE ...] [--docs FOLDER]

Several files, such as a seed each, are read as one. With --docs the table goes into a file of the
folder, `real_model.md`, and the pictures beside it.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lrk.atomic import write_text
from lrk.eval.tasks import GRID
from studies.real_model.figures import draw
from studies.real_model.intervals import Ratio, Trial, ratio_of_scores, wilson
from studies.real_model.measurement import LOSSES, PASSKEY, RETRIEVAL
from studies.real_model.models import FULL, MODELS, Model
from studies.real_model.results import Record, cells, merged, of, steady_seconds

AIM = 0.95
"""Of full length's score, for a third of its time."""
SHORT = [model for model in MODELS if model.sample == "short"]
TITLES = {PASSKEY: "Passkeys found", GRID: "Needles found, all depths together"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write them; 2 after a sentence on bad input."""
    parser = argparse.ArgumentParser(description="Tables and pictures of studies.real_model.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="results")
    parser.add_argument("--docs", type=Path, help="folder for the table and the pictures")
    arguments = parser.parse_args(argv)
    try:
        results = merged(arguments.files)
    except ValueError as error:
        print(f"real_model.report: {error}", file=sys.stderr)
        return 2
    text = markdown(results)
    print(text)
    if arguments.docs is not None:
        arguments.docs.mkdir(parents=True, exist_ok=True)
        write_text(arguments.docs / "real_model.md", text)
        for picture in draw(results, arguments.docs):
            print(picture)
    return 0


def markdown(results: Record) -> str:
    """All tables, and the sentence on the aim."""
    parts = [_head(results), _taken(results)]
    parts += [_scores(results, task) for task in RETRIEVAL]
    parts += [_losses(results), iter([verdict(results)])]
    texts = ["\n".join(part) for part in parts]
    return "\n\n".join(text for text in texts if text) + "\n"


def names(results: Record) -> list[str]:
    """Of the models that were measured, in the order of the study; decoding methods last."""
    measured = [record["model"] for record in results["measurements"]]
    order = [model.name for model in MODELS]
    return list(dict.fromkeys([*(name for name in order if name in measured), *measured]))


def retrieval(results: Record, name: str) -> dict[Trial, float]:
    """The score of every prompt that a model was asked."""
    return {
        (cell["task"], cell["length"], cell["depth"] or 0, cell["seed"], trial["trial"]): score
        for cell in cells(results, name)
        if cell["task"] in RETRIEVAL
        for trial in cell["trials"]
        for score in [trial["score"]]
    }


def verdict(results: Record) -> str:
    """Whether a short method is within 5 % of full length for a third of its time, and how the best
    with all of the time compares. Judged beyond the window: within it all models read."""
    a_third = _best(results, [model for model in SHORT if model.share < 1])
    equal = _best(results, [model for model in SHORT if model.share == 1])
    said = "The aim is a short method within 5 % of full length's score for a third of its time. "
    if a_third is None:
        return said + "It cannot be judged yet: full length or the short method has no results."
    said += _compared(*a_third)
    _, ratio = a_third
    if ratio.ratio is None or ratio.low is None or ratio.high is None:
        return said + " The aim cannot be judged."
    said += f" The aim is {'met' if ratio.ratio >= AIM else 'not met'}"
    certain = ratio.low >= AIM or ratio.high < AIM
    said += "." if certain else ", but the interval holds 95 %: more trials could turn it."
    if equal is None:
        return said
    return f"{said} With the same time, the best by these very prompts: {_compared(*equal)}"


def _best(results: Record, models: Sequence[Model]) -> tuple[str, Ratio] | None:
    """The one with the highest score on the prompts that it shares with full length."""
    window = results["settings"]["window"]

    def beyond(model: Model) -> dict[Trial, float]:
        scores = retrieval(results, model.name)
        return {trial: score for trial, score in scores.items() if trial[1] > window}

    full = beyond(FULL)
    found = {
        model.name: ratio_of_scores(of_model, full)
        for model in models
        if full and (of_model := beyond(model))
    }
    if not found:
        return None
    best = max(found, key=lambda name: found[name].score)
    return best, found[best]


def _compared(name: str, ratio: Ratio) -> str:
    said = (
        f"{name}: {100 * ratio.score:.1f} of 100, and full length {100 * ratio.other:.1f} (mean "
        f"over passkeys and needles from {ratio.shortest:,} to {ratio.longest:,} tokens, "
        f"{ratio.prompts} prompts each)"
    )
    if ratio.ratio is None or ratio.low is None or ratio.high is None:
        return f"{said}; full length found nothing, so there is no ratio."
    return (
        f"{said}, {100 * ratio.ratio:.0f} %, 95 % interval {100 * ratio.low:.0f} to "
        f"{100 * ratio.high:.0f} (paired bootstrap over prompts)."
    )


def _head(results: Record) -> Iterator[str]:
    settings = results["settings"]
    if results["rehearsal"]:
        yield "**A rehearsal at a tiny size: these figures say nothing about any method.**"
        yield ""
    machines = []
    for environment in results["environments"]:
        device = environment["gpus"] if settings["device"] != "cpu" else [environment["processor"]]
        packages, commit = environment["packages"], environment["commit"]
        machines.append(
            f"{', '.join(map(str, device))}, torch {packages['torch']}, transformers "
            f"{packages['transformers']}, commit {commit[:8] if commit else 'unknown'}"
        )
    seeds = sorted({record["seed"] for record in results["measurements"]})
    yield (
        f"SmolLM2-135M, {settings['window']:,} to {settings['target']:,} tokens, read in ordinary "
        f"positions; {settings['seconds']:g} s of training for each model, seeds "
        f"{', '.join(map(str, seeds))}. Measured on: {'; '.join(dict.fromkeys(machines))}."
    )


def _taken(results: Record) -> Iterator[str]:
    """What training really took."""
    if not results["trainings"]:
        return
    yield (
        "Training, by its own telemetry; mean of the seeds [lowest–highest]. Seconds are of the "
        "steps, of which the first, that also compiles, counts as the median of the others:"
    )
    yield ""
    yield "| model | tokens a sample | steps | seconds | million tokens | peak GiB | last loss |"
    yield "|---" * 7 + "|"
    for name in names(results):
        runs = list(of(results["trainings"], name))
        if not runs:
            continue
        seconds = [_seconds(run["step_seconds"]) for run in runs]
        again = " (trained again after its machine was lost)" if _again(runs) else ""
        columns = [
            f"{runs[0]['sample_tokens']:,}",
            _range([run["steps"] for run in runs], "{:,.0f}"),
            _range(seconds, "{:.1f}"),
            f"{statistics.fmean(run['tokens'] for run in runs) / 1e6:.3g}",
            f"{max(run['peak_memory_gib'] for run in runs):.1f}",
            f"{statistics.fmean(run['step_losses'][-1] for run in runs):.3f}",
        ]
        yield f"| {name}{again} | {' | '.join(columns)} |"


def _seconds(steps: Sequence[float]) -> float:
    return steady_seconds(steps) + sum(steps[1:])


def _again(runs: Sequence[Record]) -> bool:
    return any(run["times"] > 1 for run in runs)


def _scores(results: Record, task: str) -> Iterator[str]:
    lengths = _lengths(results)
    yield f"{TITLES[task]}, in per cent [95 % interval of Wilson over the trials of all seeds]:"
    yield ""
    yield f"| model | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield "|---" * (len(lengths) + 1) + "|"
    for name in names(results):
        columns = []
        for length in lengths:
            found = [
                trial["score"]
                for cell in cells(results, name)
                if cell["task"] == task and cell["length"] == length
                for trial in cell["trials"]
            ]
            columns.append(_share(found) if found else "")
        if any(columns):
            yield f"| {name} | {' | '.join(columns)} |"


def _share(scores: Sequence[float]) -> str:
    low, high = wilson(sum(scores), len(scores))
    share = 100 * statistics.fmean(scores)
    return f"{share:.0f} [{100 * low:.0f}–{100 * high:.0f}] of {len(scores)}"


def _losses(results: Record) -> Iterator[str]:
    settings, lengths = results["settings"], _lengths(results)
    yield (
        f"Held-out loss in nats a token over the first tokens of a text (texts: "
        f"{settings['documents']}, each of them all held-out files joined in another order); mean "
        f"of the seeds [lowest–highest]. At {settings['window']:,} it is the short loss:"
    )
    yield ""
    beyond = f"positions {settings['window']:,} to {settings['target']:,}"
    yield f"| model | {' | '.join(f'{length:,}' for length in lengths)} | {beyond} |"
    yield "|---" * (len(lengths) + 2) + "|"
    for name in names(results):
        found = [cell for cell in cells(results, name) if cell["task"] == LOSSES]
        columns = [
            _range([cell["loss"] for cell in found if cell["length"] == length], "{:.3f}")
            for length in lengths
        ]
        whole = [cell for cell in found if cell["length"] == settings["target"]]
        columns.append(_range([_beyond(cell, settings["window"]) for cell in whole], "{:.3f}"))
        if any(columns):
            yield f"| {name} | {' | '.join(columns)} |"


def _beyond(cell: Record, window: int) -> float:
    """Mean loss of the intervals of positions that begin beyond the window."""
    return statistics.fmean(part["loss"] for part in cell["bins"] if part["start"] >= window)


def _range(values: Sequence[float], form: str) -> str:
    """The mean; with the lowest and highest where they differ as they are written."""
    if not values:
        return ""
    mean, low, high = (form.format(f(values)) for f in (statistics.fmean, min, max))
    return mean if low == high else f"{mean} [{low}–{high}]"


def _lengths(results: Record) -> list[int]:
    return sorted(
        {cell["length"] for record in results["measurements"] for cell in record["cells"]}
    )


if __name__ == "__main__":
    sys.exit(main())
