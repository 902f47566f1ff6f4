"""From a model of three layers and one of four to one of any depth.

Equal layers allocate equally. So in layer i of L, what is held grows by one layer's weights, states
and gradients with L, and by what one layer saves (or has already turned into gradients) with i: it
is affine in both. The first and the last layer may differ from the others, and are affine in L
alone, as is everything between layers. Two traces fix all of these lines.

Where several layers share a checkpoint, all this is true of such groups; within a group the fullest
instant counts.
"""

from collections.abc import Callable, Iterator

from lrk.plan.ledger import Usage
from lrk.plan.step import Trace

FEW, MORE = 3, 4


def extrapolate(few: Trace, more: Trace, groups: int) -> Trace:
    """The trace of a model of equal groups of layers, from those of `FEW` and `MORE` groups.

    Layers of the usages count groups.
    """
    extra = groups - FEW
    usages: list[Usage] = []
    for short, long in zip(_passages(few.usages), _passages(more.usages), strict=True):
        if len(short) == 1:
            usages.append(_line(short[0], long[0], extra))
            continue
        # In the order of the layers, whichever way the pass goes.
        backward = short[0].moment.layer != 0
        short, long = (
            _fullest_of_groups(run, count) for run, count in ((short, FEW), (long, MORE))
        )
        through = [_line(short[0], long[0], extra)]
        interior = _line(short[1], long[1], extra)
        for index in range(1, groups - 1):
            held = _combine(
                lambda at, first, second: at + (second - first) * (index - 1),  # noqa: B023
                interior,
                long[1],
                long[2],
            )
            through.append(Usage(interior.moment._replace(layer=index), held))
        last = _line(short[-1], long[-1], extra)
        through.append(last._replace(moment=last.moment._replace(layer=groups - 1)))
        usages += reversed(through) if backward else through
    return Trace(usages, few.flops + (more.flops - few.flops) * extra)


def _fullest_of_groups(run: list[Usage], groups: int) -> list[Usage]:
    """One usage a group, in the order of the layers."""
    size = len(run) // groups
    ordered = sorted(run, key=lambda usage: usage.moment.layer or 0)
    fullest = (
        max(ordered[size * group :][:size], key=lambda usage: usage.total)
        for group in range(groups)
    )
    return [
        usage._replace(moment=usage.moment._replace(layer=group))
        for group, usage in enumerate(fullest)
    ]


def _passages(usages: list[Usage]) -> Iterator[list[Usage]]:
    """Runs of consecutive moments inside layers, and each moment between layers by itself."""
    run: list[Usage] = []
    for usage in usages:
        if usage.moment.layer is not None:
            run.append(usage)
            continue
        if run:
            yield run
            run = []
        yield [usage]
    if run:
        yield run


def _line(first: Usage, second: Usage, extra: int) -> Usage:
    held = _combine(lambda a, b: a + (b - a) * extra, first, second)
    return Usage(first.moment, held)


def _combine(function: Callable[..., int], *usages: Usage) -> dict[str, int]:
    return {part: function(*(usage.parts[part] for usage in usages)) for part in usages[0].parts}
