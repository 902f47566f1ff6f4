"""Make docs/gpu_results.md and its pictures from the results: `python -m bench.gpu.docs`.

Every folder of bench/results is a card. Nothing on the page is typed by hand; where there are no
results it says so.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.aims import aims
from bench.gpu.results import Results, results_in
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Row
from bench.gpu.summary import Directions, by_shape, correctness
from bench.gpu.tiles import Timed, best
from lrk.atomic import write_text
from lrk.picture import faint, light_and_dark, new_picture
from studies.real_model.figures import draw as draw_study
from studies.real_model.report import markdown as markdown_of_study
from studies.real_model.results import read as read_study

RESULTS = Path("bench/results")
DOCS = Path("docs")
PAGE, PICTURES = "gpu_results.md", "gpu_results"
NOTHING = (
    "**No GPU has run this yet.** Whatever is said of speed on a GPU elsewhere in this project\n"
    "was published by others, counted, or read from compiled code."
)
_MET = {True: "yes", False: "no", None: ""}
PREAMBLE = """\
# Measured on GPUs

Made by `python -m bench.gpu.docs` from the files in `bench/results`, which `python -m bench.gpu`
wrote. [docs/gpu.md](gpu.md) says what is measured and how, and how to run it on your own card.
"""


class Card(NamedTuple):
    """What one card said: of the operations, and of the study of a real model if it ran there."""

    name: str
    results: Results
    study: dict[str, Any] | None = None


Pictures = Mapping[str, Sequence[Path]]
"""Those of each card, under docs."""


def page(cards: Sequence[Card], pictures: Pictures) -> str:
    """Markdown, a section a card."""
    if not cards:
        return f"{PREAMBLE}\n{NOTHING}\n"
    sections = ("\n".join(_card(card, pictures.get(card.name, ()))) for card in cards)
    return PREAMBLE + "".join(f"\n{section}\n" for section in sections)


def _card(card: Card, pictures: Sequence[Path]) -> Iterator[str]:
    yield f"## {card.name}"
    yield ""
    if card.results.rows:
        yield from _operations(card.results)
    if card.study is not None:
        yield "### A real model"
        yield ""
        yield markdown_of_study(card.study)
    yield from (f"![{path.stem}]({path.as_posix()})" for path in pictures)


def _operations(results: Results) -> Iterator[str]:
    yield f"{results.heading}."
    yield ""
    yield from _table(
        ("aim", "found", "met"),
        [(each.aim, each.value, _MET[each.met]) for each in aims(results)],
    )
    for part, section in _SECTIONS.items():
        if part in results.rows:
            yield from section(results.rows[part])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    if lines:
        yield f"| {' | '.join(head)} |"
        yield "|---" * len(head) + "|"
        yield from (f"| {' | '.join(line)} |" for line in lines)
        yield ""


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"


def _ceilings(rows: Sequence[Row]) -> Iterator[str]:
    lines = [
        (f"{row.op} {row.variant}".strip(), row.dtype, _number(row.gb_per_s, ",.0f"),
         _number(row.tflop_per_s, ",.0f"))
        for row in rows
    ]  # fmt: skip
    yield from _table(("ceiling", "dtype", "GB/s", "TFLOP/s"), lines)


def _correct(rows: Sequence[Row]) -> Iterator[str]:
    lines = [
        (each.op, str(each.checks), str(each.right), _number(each.over_plain))
        for each in correctness(rows)
    ]
    head = ("operation", "checks", "right", "largest error over plain PyTorch's, in 16 bits")
    yield from _table(head, lines)


def _kernels(rows: Sequence[Row]) -> Iterator[str]:
    head = ("", "forward, ms", "backward, ms", "both, ms", "TFLOP/s", "GB/s", "of the ceiling",
            "MiB", "host, us", "error", "plain PyTorch's")  # fmt: skip
    for op, sizes, dtype, providers in by_shape(rows):
        shape = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        yield f"**{op}**, {shape}, {dtype}:"
        yield ""
        measured = {name: each for name, each in providers.items() if _is_timed(each)}
        yield from _table(head, [_provider(*each) for each in measured.items()])
        notes = [f"{name}: {_note(each)}" for name, each in providers.items() if _note(each)]
        if notes:
            yield f"Not timed: {'; '.join(notes)}."
            yield ""


def _is_timed(rows: Directions) -> bool:
    return any(row.milliseconds is not None for row in rows.values())


def _note(rows: Directions) -> str:
    """Why a provider has no times."""
    notes = [row.note.removeprefix("left out: ") for row in rows.values() if row.note]
    return notes[0][:80] if notes and not _is_timed(rows) else ""


def _provider(name: str, rows: Directions) -> Sequence[str]:
    forward, backward = (
        _number(rows[each].milliseconds) if each in rows else "" for each in (FORWARD, BACKWARD)
    )
    row = rows.get(BOTH) or next(iter(rows.values()))
    return (
        name, forward, backward, _number(row.milliseconds), _number(row.tflop_per_s),
        _number(row.gb_per_s, ",.0f"), _number(row.share, ".0%"),
        _number(row.peak_mib, ",.0f"), _number(row.host_microseconds, ",.0f"),
        _number(row.error, ".1e"), _number(row.plain_error, ".1e"),
    )  # fmt: skip


def _tiles(rows: Sequence[Row]) -> Iterator[str]:
    lines = [
        (kernel, layout, ", ".join(map(_tile, found)))
        for (kernel, layout), found in best(rows).items()
    ]
    yield from _table(
        (
            "kernel",
            "layout",
            "tiles and milliseconds, the fastest first; in bold what the table has",
        ),
        lines,
    )
    chunks = [row for row in rows if row.op == "linear_cross_entropy"]
    lines = [
        (row.variant, _number(row.milliseconds), _number(row.peak_mib, ",.0f")) for row in chunks
    ]
    yield from _table(("loss", "ms", "MiB"), lines)


def _tile(timed: Timed) -> str:
    name = f"**{timed.tiles}**" if timed.is_in_the_table else timed.tiles
    return f"{name}: {timed.milliseconds:.3g}"


def _step(rows: Sequence[Row]) -> Iterator[str]:
    steps = [row for row in rows if row.op == "step"]
    lines = [
        (
            row.provider, f"{row.shape['S']:,}", row.variant,
            row.note or _number((row.milliseconds or 0) / 1000), _number(row.mfu, ".1%"),
            _number(row.peak_mib and row.peak_mib / 1024, ".2f"),
            _number(row.planned_mib and row.planned_mib / 1024, ".2f"),
        )
        for row in steps
    ]  # fmt: skip
    head = ("step of", "tokens", "with", "s", "MFU", "GiB", "planned GiB")
    yield from _table(head, lines)
    lines = [
        (row.variant, _number(row.milliseconds, ",.0f"), _number(row.share, ".1%"))
        for row in rows
        if row.op == "kernel"
    ]
    yield from _table(("kernels of a step", "ms", "share"), lines)


_SECTIONS = {
    "card": _ceilings,
    "correct": _correct,
    "kernels": _kernels,
    "tiles": _tiles,
    "step": _step,
}


def draw(results: Results, picture: Path) -> None:
    """TFLOP/s of attention, forward and backward, a bar a provider."""
    rows = [row for row in results.rows["kernels"] if row.op == "attention" and row.tflop_per_s]
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    providers = list(dict.fromkeys(row.provider for row in rows))
    height = 0.8 / len(providers)
    with new_picture(picture, 6, 2.0 + 1.1 * len(shapes), "Attention, TFLOP/s") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for direction, axes in zip((FORWARD, BACKWARD), panels, strict=True):
            for index, provider in enumerate(providers):
                found = {
                    _shape(row): row.tflop_per_s
                    for row in rows
                    if (row.provider, row.direction) == (provider, direction)
                }
                places = [place + height * (index - 0.5) for place in range(len(shapes))]
                reached = [found.get(shape) or 0.0 for shape in shapes]
                axes.barh(places, reached, height, align="edge", label=provider)
            axes.set_title(direction)
            axes.grid(axis="x", color=faint())
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(shapes)), shapes)
        panels[0].invert_yaxis()
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, handlelength=1)


def _shape(row: Row) -> str:
    sizes = row.shape
    documents = f"\n{sizes['documents']} documents" if sizes["documents"] > 1 else ""
    return f"B{sizes['B']} S{sizes['S']:,}\nH{sizes['H']}/{sizes['Hk']} D{sizes['D']}{documents}"


def _draw_card(card: Card, docs: Path) -> list[Path]:
    """Draw what there is of a card; returns the pictures, under `docs`."""
    folder = docs / PICTURES / card.name
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "kernels" in card.results.rows:
        drawn.append(folder / "attention.png")
        for picture in light_and_dark(drawn[-1]):
            draw(card.results, picture)
    if card.study is not None:
        drawn += draw_study(card.study, folder)
    return [path.relative_to(docs) for path in drawn]


def cards_in(folder: Path) -> list[Card]:
    """The cards that have results in a folder.

    Raises:
        ValueError: for results of a rehearsal.
    """
    cards = []
    for each in sorted(path for path in folder.glob("*") if path.is_dir()):
        study = each / "real_model.json"
        card = Card(each.name, results_in(each), read_study(study) if study.exists() else None)
        if card.results.rehearsed or (card.study is not None and card.study["rehearsal"]):
            raise ValueError(f"{each} holds a rehearsal: must be results of a GPU")
        if card.results.rows or card.study is not None:
            cards.append(card)
    return cards


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 2 after a sentence on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.docs", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder of cards' folders")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes")
    arguments = parser.parse_args(argv)
    try:
        cards = cards_in(arguments.results)
        pictures = {card.name: _draw_card(card, arguments.docs) for card in cards}
        write_text(arguments.docs / PAGE, page(cards, pictures))
    except (ValueError, OSError) as error:
        print(f"bench.gpu.docs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
