"""What the studies say, as rules: each computes a value from the evidence, and names its rows.

A model of 128 tokens was extended eightfold by each method of study `proof`, a model of real text
likewise. So rules read the rows at 8 times the first window, the target of the studies, and at 16
times, beyond it. A method is a sampler of positions and what is added to it, by names such as
`PoSE + reach + temperature`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lrk.rope_scaling import ROPE_SCALINGS
from lrk.train.auto_recipe.evidence import Comparison, Evidence, Row

LIMITS = (
    "The evidence is of tiny models: 0.42M parameters on random tokens, and a few million on "
    "Python's standard library, extended eightfold; on random tokens every sample was spread. "
    "Whether it holds for yours was not measured."
)
NOT_MEASURED = "not measured"

PROOF, REAL_TEXT = "proof", "real text"
WINDOW, TARGET, BEYOND = 1.0, 8.0, 16.0
"""Times the first window."""

SAMPLERS = {
    "PoSE": "pose",
    "LongRecipe": "longrecipe",
    "RandPos": "randpos",
    "CREAM": "cream",
    "E2": "e2",
    "EndPrompt": "endprompt",
}
"""Methods of the studies whose samples are at most 30 % of the target, as `position_method`."""
WITHIN_WINDOW = ("cream", "e2")
"""Those whose samples are as long as the window, as in their papers."""
REACH, TEMPERATURE, VIEWS = " + reach", " + temperature", " + views"
FULL_LENGTH, SHORT_TRAINING = "full length", "short training"
A_THIRD = ", a third of the tokens"
CONTIGUOUS, ALL_SPREAD = ", 30 % contiguous", ", all spread"
"""Of samples in ordinary positions: study `proof` has none unless it says so, real text SHARE."""

SHARE, NO_SHARE = 0.3, 0.0
"""Of samples in ordinary positions: lrk-train's default, as CONTIGUOUS, and none, as ALL_SPREAD."""

SIGNIFICANT = 0.05
"""Of p values, corrected."""
MARGIN_POINTS = 2.0
"""So much worse than full length is as good as it: set before the runs, as are the next two."""
SHORT_LOSS_NATS = 0.02
"""So much a part may raise the loss within the window."""
TEXT_NATS = 0.02
"""By so much full length has to read real text better."""
VIEWS_POINTS = 3.0
"""So much self-distillation must bring on the hardest task."""


@dataclass(frozen=True)
class Finding:
    """What the evidence says to one question.

    Attributes:
        question: in the words of the page.
        evidence: names of rows and comparisons.
    """

    question: str
    value: Any
    reason: str
    evidence: tuple[str, ...]


def sampler(evidence: Evidence) -> Finding:
    """The sampler with the best mean over the tasks at the target, each in its best variant.

    Raises:
        ValueError: if no sampler has a row for each task.
    """
    tasks = evidence.tasks(PROOF)
    best: dict[str, list[Row]] = {}
    for name in SAMPLERS:
        variants = [name + parts for parts in ("", REACH, TEMPERATURE, REACH + TEMPERATURE)]
        found = [[evidence.find(PROOF, task, each, TARGET) for task in tasks] for each in variants]
        whole = [[row for row in each if row] for each in found if each and all(each)]
        if whole:
            best[name] = max(whole, key=_mean)
    if not (tasks and best):
        evidence.row(PROOF, "quotes", "PoSE", TARGET)
        raise ValueError(f"the evidence of study {PROOF!r} compares no sampler on each of {tasks}")
    ranked = sorted(best, key=lambda name: _mean(best[name]), reverse=True)
    first, rows = ranked[0], best[ranked[0]]
    reason = (
        f"{rows[0].method} reads {_mean(rows):.1f} % at {TARGET:g} times the window, the mean of "
        f"{' and '.join(tasks)}: the best of {len(best)} methods that train on at most 30 % of the "
        "target"
    )
    names = [row.name for row in rows]
    if len(ranked) > 1:
        reason += f" ({best[ranked[1]][0].method}: {_mean(best[ranked[1]]):.1f} %)"
        names += [row.name for row in best[ranked[1]]]
    return Finding("Which sampler of positions?", first, reason, tuple(names))


def part(evidence: Evidence, name: str, added: str) -> Finding:
    """Whether reach, or temperature, is added to a sampler: one that has the other, or else alone.

    It is if at the target or beyond a task gains by it, none loses (both by corrected p values),
    and the loss of real text within the window does not rise by it. Reach is asked of a sampler
    with temperature first; temperature of one with reach if that is added, else alone.
    """
    question = "Positions beyond the target?" if added == REACH else "Attention with a temperature?"
    both = REACH + TEMPERATURE
    # Of a sampler that was measured with both parts alone, each does what it does to another.
    others = SAMPLERS if measured(evidence, name + both) != name else ()
    own = [name + both, name + added]
    if added == TEMPERATURE and not part(evidence, name, REACH).value:
        own.reverse()
    for whole in (*own, *(each + both for each in others)):
        found = list(_compared(evidence, whole, whole.replace(added, ""), (TARGET, BEYOND)))
        if found:
            break
    else:
        return Finding(question, False, NOT_MEASURED, ())
    gains = [each for each in found if each.gain > 0 and each.p_corrected < SIGNIFICANT]
    losses = [each for each in found if each.gain < 0 and each.p_corrected < SIGNIFICANT]
    said = f"{whole} minus {whole.replace(added, '')}: "
    names = [each.name for each in found]
    kept = short_loss(evidence, whole, whole.replace(added, ""))
    names += kept.evidence
    if losses:
        worst = max(losses, key=lambda each: -each.gain)
        return Finding(question, False, f"{said}a loss, {_said(worst)}", tuple(names))
    if not gains:
        most = max(found, key=lambda each: each.gain)
        return Finding(question, False, f"{said}no gain, at most {_said(most)}", tuple(names))
    most = max(gains, key=lambda each: each.gain)
    nearer = [each for each in found if each.length < most.length and each.task == most.task]
    reason = said + ", ".join(map(_said, (most, *nearer)))
    if kept.value is False:
        return Finding(question, False, f"{reason}; but {kept.reason}", tuple(names))
    return Finding(question, True, f"{reason}; {kept.reason}", tuple(names))


def short_loss(evidence: Evidence, method: str, without: str) -> Finding:
    """Whether a method reads real text within the window as well as another one; None if one of
    them was not measured. How far both are from the control is said beside it."""
    question = "Is the short loss kept?"
    rows = [
        evidence.find(REAL_TEXT, "text", each, WINDOW) for each in (method, without, SHORT_TRAINING)
    ]
    row, other, control = rows
    if row is None or other is None or control is None:
        reason = f"the loss of real text within the window: {NOT_MEASURED}"
        return Finding(question, None, reason, ())
    rise = row.mean - other.mean
    kept = rise <= SHORT_LOSS_NATS
    reason = (
        f"real text within the window is read at {row.mean:.3f} nats, {rise:+.3f} from {without} "
        f"({row.mean - control.mean:+.3f} from the control, {SHORT_TRAINING})"
    )
    if not kept:
        reason += f", more than {SHORT_LOSS_NATS:g}"
    return Finding(question, kept, reason, (row.name, other.name, control.name))


def method_of(evidence: Evidence, name: str) -> str:
    """A sampler with the parts that its evidence adds, as the studies name it."""
    added = "".join(each for each in (REACH, TEMPERATURE) if part(evidence, name, each).value)
    return name + added


def measured(evidence: Evidence, method: str) -> str:
    """The method if it has a row for each task at the target, else its sampler alone."""
    tasks = evidence.tasks(PROOF)
    if all(evidence.find(PROOF, task, method, TARGET) for task in tasks):
        return method
    return method.partition(" + ")[0]


def full_length(evidence: Evidence, method: str) -> Finding:
    """Whether samples as long as the target are worth it: better by more than the margin.

    The low end of the difference's interval, on the mean of the tasks, has to be above it; and real
    text at the target, where it was measured, has to be read better too.
    """
    question = "Samples as long as the target?"
    method = measured(evidence, method)
    tasks = evidence.tasks(PROOF)
    full = [evidence.row(PROOF, task, FULL_LENGTH, TARGET) for task in tasks]
    short = [evidence.row(PROOF, task, method, TARGET) for task in tasks]
    names = tuple(row.name for row in (*full, *short))
    tokens = full[0].training_tokens / max(short[0].training_tokens, 1)
    flop = full[0].training_flop / max(short[0].training_flop, 1)
    reason = (
        f"full length reads {_mean(full):.1f} % at {TARGET:g} times the window and {method} "
        f"{_mean(short):.1f} %, with {tokens:.1f} times the tokens and {flop:.1f} times the FLOP"
    )
    less = [evidence.find(PROOF, task, method + A_THIRD, TARGET) for task in tasks]
    if rows := [row for row in less if row is not None]:
        reason += f"; {method}{A_THIRD}: {_mean(rows):.1f} %"
        names += tuple(row.name for row in rows)
    compared = [evidence.compared(PROOF, task, FULL_LENGTH, method, TARGET) for task in tasks]
    found = [each for each in compared if each is not None]
    if len(found) < len(tasks):
        return Finding(question, False, f"{reason}; whether by chance: {NOT_MEASURED}", names)
    low = sum(each.low for each in found) / len(found)
    worth = low > MARGIN_POINTS
    reason += (
        f"; the difference is at least {low:.1f} points, "
        f"{'above' if worth else 'not above'} the margin of {MARGIN_POINTS:g}"
    )
    text = [evidence.find(REAL_TEXT, "text", each, TARGET) for each in (FULL_LENGTH, method)]
    if text[0] is not None and text[1] is not None:
        gain = text[1].mean - text[0].mean
        worth = worth and gain > TEXT_NATS
        reason += (
            f"; real text at {TARGET:g} times the window is read at {text[0].mean:.3f} nats by "
            f"full length and at {text[1].mean:.3f} by {method}"
        )
        reason += "" if gain > TEXT_NATS else f", no more than {TEXT_NATS:g} apart"
        names += (text[0].name, text[1].name)
    return Finding(question, worth, reason, (*names, *(each.name for each in found)))


def is_ahead(evidence: Evidence, method: str) -> bool:
    """Whether full length has the better mean at the target, by however little."""
    method, tasks = measured(evidence, method), evidence.tasks(PROOF)
    full = [evidence.row(PROOF, task, FULL_LENGTH, TARGET) for task in tasks]
    return _mean(full) > _mean([evidence.row(PROOF, task, method, TARGET) for task in tasks])


def views(evidence: Evidence, method: str) -> Finding:
    """Whether the model is distilled from its own ordinary positions.

    It is if that brings `VIEWS_POINTS` on the hardest task at the target.
    """
    question = "Self-distillation from ordinary positions (views)?"
    for base in dict.fromkeys((method, method.replace(REACH, ""), method.partition(" + ")[0])):
        rows = [
            row for task in evidence.tasks(PROOF)
            if (row := evidence.find(PROOF, task, base, TARGET)) is not None
        ]  # fmt: skip
        if not rows:
            continue
        hardest = min(rows, key=lambda row: row.mean)
        found = evidence.compared(PROOF, hardest.task, base + VIEWS, base, TARGET)
        if found is not None:
            worth = found.gain >= VIEWS_POINTS and found.p_corrected < SIGNIFICANT
            reason = f"{base}{VIEWS} minus {base} on the hardest task: {_said(found)}"
            reason += "" if worth else f"; it would have to be {VIEWS_POINTS:g} points and more"
            return Finding(question, worth, reason, (found.name, hardest.name))
    return Finding(question, False, f"{NOT_MEASURED} with {method}", ())


def contiguous_share(evidence: Evidence, method: str) -> Finding:
    """Whether some samples keep ordinary positions, as `lrk-train` has it.

    They do unless a task gains without them at the target or beyond, none loses, and real text is
    read as well within the window: what was not measured keeps the default.
    """
    question = "Which share of samples keeps ordinary positions?"
    spread = method + ALL_SPREAD
    found = [
        each
        for first, second in ((method, method + CONTIGUOUS), (spread, method))
        for each in _compared(evidence, first, second, (TARGET, BEYOND))
    ]
    if not found:
        return Finding(question, SHARE, f"{NOT_MEASURED}; lrk-train's default", ())
    significant = [each for each in found if each.p_corrected < SIGNIFICANT]
    gains = [each for each in significant if each.gain > 0]
    losses = [each for each in significant if each.gain < 0]
    kept = short_loss(evidence, spread, method)
    better = bool(gains) and not losses and kept.value is True
    reason = (
        f"{method} without ordinary positions minus with {SHARE:.0%} of them: "
        f"{', '.join(map(_said, found))}; without, {kept.reason}"
    )
    reason += "" if better else "; lrk-train's default stays"
    names = (*(each.name for each in found), *kept.evidence)
    return Finding(question, NO_SHARE if better else SHARE, reason, names)


def rope_plan(evidence: Evidence) -> Finding:
    """How plain RoPE is stretched: of the plans that are level at the target, the best beyond it.

    Level are intervals that reach the mean of the best; where `theta`, the default, is level with
    the best beyond the target too, it is taken. `longrope` is left out: it needs a search first.
    """
    question = "Which plan stretches RoPE?"
    rows = {
        name: row
        for name in ROPE_SCALINGS
        if name != "longrope"
        and (row := evidence.find(PROOF, "quotes", f"PoSE, {name}", TARGET)) is not None
    }
    if not rows:
        evidence.row(PROOF, "quotes", "PoSE, theta", TARGET)
    best = max(rows.values(), key=lambda row: row.mean)
    level = [name for name, row in rows.items() if row.mean + row.half_interval >= best.mean]
    beyond = {
        name: evidence.row(PROOF, "quotes", f"PoSE, {name}", BEYOND) for name in level
    }  # fmt: skip
    top = max(beyond.values(), key=lambda row: row.mean)
    last = [name for name, row in beyond.items() if row.mean + row.half_interval >= top.mean]
    chosen = "theta" if "theta" in last else max(last, key=lambda name: beyond[name].mean)
    reason = (
        f"after PoSE's training {chosen} reads {rows[chosen]} at {TARGET:g} times the window, "
        f"level with the best ({best.mean:.1f}) as are {len(level)} of {len(rows)} plans, and "
        f"{beyond[chosen]} at {BEYOND:g} times (the best of these: {top.mean:.1f})"
    )
    names = (rows[chosen].name, best.name, beyond[chosen].name, top.name)
    return Finding(question, chosen, reason, tuple(dict.fromkeys(names)))


def findings(evidence: Evidence) -> list[Finding]:
    """All of them, in the order of the page.

    Raises:
        ValueError: if the evidence lacks a row that a rule cannot do without.
    """
    found = sampler(evidence)
    method = method_of(evidence, found.value)
    return [
        found,
        part(evidence, found.value, REACH),
        part(evidence, found.value, TEMPERATURE),
        full_length(evidence, method),
        contiguous_share(evidence, method),
        views(evidence, method),
        rope_plan(evidence),
    ]


def _compared(
    evidence: Evidence, first: str, second: str, times: tuple[float, ...]
) -> Iterator[Comparison]:
    """On each task of each study."""
    for study in (PROOF, REAL_TEXT):
        for task in evidence.tasks(study):
            for each in times:
                found = evidence.compared(study, task, first, second, each)
                if found is not None:
                    yield found


def _said(found: Comparison) -> str:
    return f"{found} at {found.length:,} tokens of {found.task}"


def _mean(rows: list[Row]) -> float:
    return sum(row.mean for row in rows) / len(rows)
