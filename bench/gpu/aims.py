"""What we aim at on an H100, and how far a run is from it."""

from typing import NamedTuple

from bench.case import MODELS
from bench.gpu.kernels import COPY, LRK, THREE_PRODUCTS
from bench.gpu.results import Results
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Row
from bench.gpu.sizes import REAL


class Found(NamedTuple):
    """An aim, what a run says to it, and whether that is enough; None if the run says nothing."""

    aim: str
    value: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        return f"aim: {self.aim}: {self.value or '-'}, {verdict}"


def aims(results: Results) -> list[Found]:
    """In the order in which a reader asks. The published times are FlashAttention-3's on an H100,
    4.8 and 15.3 ms."""
    measured = {} if results.rehearsed else results.rows
    kernels, steps = (measured.get(part, []) for part in ("kernels", "step"))
    b, h, hk, d, s = REAL.published
    attention = {"B": b, "S": s, "H": h, "Hk": hk, "D": d, "documents": 1}
    llama = MODELS["llama-3-8b"]
    loss = {"N": REAL.loss_tokens[0], "W": llama.hidden, "V": llama.vocab}
    middle = REAL.lengths[1]
    heads = {"H": llama.num_heads, "Hk": llama.num_kv_heads, "D": llama.head_dim}
    rope = {"B": 1, "S": middle, **heads}

    def time(op: str, shape: dict[str, int], direction: str, provider: str = LRK) -> float | None:
        return _milliseconds(kernels, op, shape, direction, provider)

    def loss_time(provider: str) -> float | None:
        return time("linear_cross_entropy", loss, BOTH, provider)

    return [
        _at_most("attention B4 H48 D128 S8192 forward", time("attention", attention, FORWARD), 6.0),
        _at_most("the same backward", time("attention", attention, BACKWARD), 20.0),
        _ratio("loss of 16,384 tokens beside Liger", loss_time(LRK), loss_time("Liger"), 0.5),
        _ratio("the same beside its products", loss_time(LRK), loss_time(THREE_PRODUCTS), 1.25),
        _ratio(
            "RoPE beside a copy", time("rope", rope, FORWARD), time("rope", rope, FORWARD, COPY),
            1 / 0.9,
        ),
        _reading(kernels, {"B": 1, "S": 1, "Sk": REAL.lengths[-1], **heads}),
        _mfu(steps, middle),
        _plan(steps),
    ]  # fmt: skip


def _milliseconds(
    rows: list[Row], op: str, shape: dict[str, int], direction: str, provider: str
) -> float | None:
    wanted = op, shape, direction, provider
    found = (
        row.milliseconds
        for row in rows
        if (row.op, row.shape, row.direction, row.provider) == wanted
    )
    return next(found, None)


def _at_most(aim: str, milliseconds: float | None, limit: float) -> Found:
    aim = f"{aim} at most {limit:g} ms"
    if milliseconds is None:
        return Found(aim, "", None)
    return Found(aim, f"{milliseconds:.2f} ms", milliseconds <= limit)


def _ratio(aim: str, ours: float | None, other: float | None, limit: float) -> Found:
    aim = f"{aim} at most {limit:.3g} of its time"
    if ours is None or other is None:
        return Found(aim, "", None)
    return Found(aim, f"{ours / other:.2f}", ours / other <= limit)


def _reading(rows: list[Row], shape: dict[str, int]) -> Found:
    """K and V come once from memory, at the bandwidth that the card reached for a copy."""
    aim = f"decoding at {shape['Sk']:,} keys at most 1.5 of the time of reading them"
    ours = [row for row in rows if (row.op, row.shape, row.provider) == ("decoding", shape, LRK)]
    if any(row.ok is False for row in ours):
        return Found(aim, "wrong", False)
    share = next((row.share for row in ours if row.share is not None), None)
    if share is None:
        return Found(aim, "", None)
    return Found(aim, f"{1 / share:.2f}", share >= 1 / 1.5)


def _mfu(steps: list[Row], length: int) -> Found:
    aim = f"a step of {length:,} tokens at 39 % MFU"
    plain = (row.mfu for row in steps if row.shape.get("S") == length and not row.variant)
    mfu = next((each for each in plain if each is not None), None)
    return Found(aim, "" if mfu is None else f"{mfu:.1%}", None if mfu is None else mfu >= 0.39)


def _plan(steps: list[Row]) -> Found:
    aim = "the plan within 3 % of what is allocated"
    off = [
        abs(row.planned_mib / row.peak_mib - 1) for row in steps if row.planned_mib and row.peak_mib
    ]
    return Found(aim, f"{max(off):.1%}" if off else "", max(off) <= 0.03 if off else None)
