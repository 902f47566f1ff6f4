"""From a model of three groups of layers and one of four to one of any depth.

A group is the least run of layers after which all begins again: one layer where all are equal, as
many as from one full attention to the next where most have a sliding window or no RoPE. Equal
groups allocate equally. So in group i of L, what is held grows by one group's weights, states and
gradients with L, and by what one group saves (or has already turned into gradients) with i: it is
affine in both. The first and the last group may differ from the others, and are affine in L alone,
as is everything between layers, and a last group that is not whole. Two traces fix all of these
lines.

Where several layers share a checkpoint, of each such run of layers the fullest instant counts.
"""

from collections.abc import Callable, Iterator

from lrk.plan.ledger import Usage
from lrk.plan.step import Trace

FEW, MORE = 3, 4


def extrapolate(few: Trace, more: Trace, layers: int, group: int, checkpoint: int = 1) -> Trace:
    """The trace of a model, from those of `FEW` and `MORE` groups and what is left over.

    Args:
        layers: of the model.
        group: layers of one; the traced models have `layers % group` layers more than whole ones.
        checkpoint: layers that share one, a divisor of `group` and of `layers`. Layers of the
            usages count these.
    """
    extra, size = layers // group - FEW, group // checkpoint
    usages: list[Usage] = []
    for short, long in zip(_passages(few.usages), _passages(more.usages), strict=True):
        if len(short) == 1:
            usages.append(_line(short[0], long[0], extra))
            continue
        # In the order of the layers, whichever way the pass goes.
        backward = short[0].moment.layer != 0
        short, long = (_fullest(run, checkpoint) for run in (short, long))
        through = [_line(*pair, extra) for pair in zip(short[:size], long[:size], strict=True)]
        for number in range(extra + 1):
            for at in range(size, 2 * size):
                held = _combine(
                    lambda now, first, second: now + (second - first) * number,  # noqa: B023
                    _line(short[at], long[at], extra),
                    long[at],
                    long[at + size],
                )
                through.append(Usage(short[at].moment, held))
        ends = zip(short[2 * size :], long[3 * size :], strict=True)
        through += [_line(*pair, extra) for pair in ends]
        through = [
            usage._replace(moment=usage.moment._replace(layer=index))
            for index, usage in enumerate(through)
        ]
        usages += reversed(through) if backward else through
    sent = {each: few.sent[each] + (more.sent[each] - few.sent[each]) * extra for each in few.sent}
    return Trace(usages, few.flops + (more.flops - few.flops) * extra, sent)


def _fullest(run: list[Usage], checkpoint: int) -> list[Usage]:
    """One usage for the layers of each checkpoint, in the order of the layers."""
    ordered = sorted(run, key=lambda usage: usage.moment.layer or 0)
    return [
        max(ordered[first : first + checkpoint], key=lambda usage: usage.total)
        for first in range(0, len(ordered), checkpoint)
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
