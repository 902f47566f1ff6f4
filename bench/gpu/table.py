"""A run in at most a hundred lines: what is wrong first, then each part in a few lines."""

from collections.abc import Iterator, Mapping, Sequence

from bench.gpu.aims import aims
from bench.gpu.kernels import COPY, LRK, THREE_PRODUCTS
from bench.gpu.results import Results
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Row, written
from bench.gpu.summary import by_shape, correctness
from bench.gpu.tiles import best

MAX_LINES = 100
_MAX_WRONG = 20
_BOUNDS = (COPY, THREE_PRODUCTS)  # what is no peer, and nobody can be faster than


def table(results: Results) -> str:
    """Of a run, or of what there is of one."""
    lines = [results.heading, *_wrong(results.rows), *map(str, aims(results))]
    for part, rows in results.rows.items():
        lines += _OF_PART[part](rows)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"... {len(lines) - MAX_LINES + 1} lines more"]
    return "\n".join(lines)


def _wrong(results: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    wrong = [(part, row) for part, rows in results.items() for row in rows if row.ok is False]
    yield f"{len(wrong)} wrong"
    for part, row in wrong[:_MAX_WRONG]:
        yield f"  {part}: {row.what}: {row.note}"[:200]
    left = [row for rows in results.values() for row in rows if row.note and row.ok is None]
    if left:
        yield f"{len(left)} left out; their notes are in the files"


def _compile(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.milliseconds is not None:
            sizes = ", ".join(f"{count} {name}" for name, count in row.shape.items())
            yield f"compiled: {sizes}, {row.milliseconds / 1000:.0f} s"


def _card(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        rates = [f"{row.gb_per_s:,.0f} GB/s"] if row.gb_per_s else []
        rates += [f"{row.tflop_per_s:,.1f} TFLOP/s"] if row.tflop_per_s else []
        yield f"ceiling: {row.op} {row.variant} {row.dtype} {' '.join(rates)} {row.note}".rstrip()


def _correct(rows: Sequence[Row]) -> Iterator[str]:
    for each in correctness(rows):
        worst = ""
        if each.over_plain is not None:
            worst = f", at worst {each.over_plain:.2f} of plain PyTorch's error in 16 bits"
        yield f"correct: {each.op} {each.right} of {each.checks} right{worst}"


def _kernels(rows: Sequence[Row]) -> Iterator[str]:
    """A line a shape: ours in milliseconds, the fastest of the others, and what bounds all."""
    for op, sizes, _, providers in by_shape(row for row in rows if row.milliseconds is not None):
        ours = providers.get(LRK, {})
        cells = [_milliseconds(ours, each) for each in (FORWARD, BACKWARD, BOTH)]
        others = {name: each for name, each in providers.items() if not name.startswith(LRK)}
        bounds = {name: others.pop(name) for name in _BOUNDS if name in others}
        beside = _fastest(ours, others) + _fastest(ours, bounds)
        yield f"{op} {written(sizes)}: lrk {' / '.join(cells)} ms{_rate(ours)}{beside}"


def _milliseconds(rows: Mapping[str, Row], direction: str) -> str:
    row = rows.get(direction)
    return "-" if row is None or row.milliseconds is None else f"{row.milliseconds:.3g}"


def _whole(rows: Mapping[str, Row]) -> str:
    """The direction that counts: decoding has no other than forward."""
    return BOTH if BOTH in rows or FORWARD not in rows else FORWARD


def _rate(rows: Mapping[str, Row]) -> str:
    row = rows.get(_whole(rows))
    if row is None:
        return ""
    rate = f", {row.tflop_per_s:.3g} TFLOP/s" if row.tflop_per_s else ""
    rate = f", {row.gb_per_s:.4g} GB/s" if row.gb_per_s else rate
    share = f" ({row.share:.0%} of the ceiling)" if row.share else ""
    return rate + share


def _fastest(ours: Mapping[str, Row], others: Mapping[str, Mapping[str, Row]]) -> str:
    whole = _whole(ours)
    times = {name: rows[whole].milliseconds for name, rows in others.items() if whole in rows}
    known = {name: time for name, time in times.items() if time is not None}
    if not known:
        return ""
    name = min(known, key=lambda each: known[each])
    mine = ours[whole].milliseconds if whole in ours else None
    ratio = f", lrk {mine / known[name]:.2f} of that" if mine else ""
    return f"; {name} {known[name]:.3g} ms{ratio}"


def _tiles(rows: Sequence[Row]) -> Iterator[str]:
    """The table as it should be."""
    for (kernel, layout), found in best(rows).items():
        order = ", ".join(
            f"{each.tiles}{' (now)' if each.is_in_the_table else ''} {each.milliseconds:.3g} ms"
            for each in found[:5]
        )
        yield f"tiles: {kernel}, {layout}, fastest first: {order}"
    for row in rows:
        if row.op == "linear_cross_entropy" and row.milliseconds is not None:
            yield f"loss: {row.variant} {row.milliseconds:.3g} ms, {row.peak_mib:,.0f} MiB"


def _step(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.milliseconds is None:
            continue
        if row.op == "kernel":
            yield f"kernels of a step: {row.variant} {row.milliseconds:.4g} ms {_percent(row)}"
            continue
        mfu = f", MFU {row.mfu:.1%}" if row.mfu else ""
        memory = ""
        if row.peak_mib and row.planned_mib:
            peak, planned = row.peak_mib / 1024, row.planned_mib / 1024
            memory = f", {peak:.2f} GiB, planned {planned:.2f} ({planned / peak - 1:+.1%})"
        name = f"{row.provider} S{row.shape['S']} {row.variant}".rstrip()
        yield f"step: {name}: {row.milliseconds / 1000:.3g} s{mfu}{memory}"


def _percent(row: Row) -> str:
    return "" if row.share is None else f"{row.share:.0%}"


_OF_PART = {
    "compile": _compile,
    "card": _card,
    "correct": _correct,
    "kernels": _kernels,
    "tiles": _tiles,
    "step": _step,
}
