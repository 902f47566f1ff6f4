"""What each method of training a window costs, side by side: `lrk-plan --compare_methods`.

Positions cost nothing, so a method costs what the real tokens of its samples do: as many as the
target has (full length), a share of them, or as many as the model's own window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from lrk.hf.architectures import text_config
from lrk.hf.distillation import VIEWS
from lrk.plan.gpus import EFFICIENCY, GPUS
from lrk.plan.ledger import HOST
from lrk.plan.planner import ALLOCATOR_SLACK, CONTEXT_GIB, Plan, plan
from lrk.plan.settings import LRK, Settings

CONTIGUOUS = "contiguous"

# Samplers of `lrk.positions`. A share of the target is LongRecipe's, whose authors trained PoSE and
# random positions with as many tokens (2409.00509, 4.1); that EndPrompt has them too is ours.
# CREAM (2406.07138) and E2-LLM (2401.06951) train at the window that the model has.
OF_SHARE = ("longrecipe", "longrecipe_released", "pose", "randpos", "endprompt")
OF_WINDOW = ("cream", "e2")

TRAIN_SHARE = 0.3


@dataclass(frozen=True)
class Budget:
    """A whole run, in samples or in real tokens, and what an hour of a GPU costs."""

    samples: int | None = None
    tokens: int | None = None
    dollars_per_hour: float | None = None

    def samples_of(self, length: int) -> float | None:
        """Samples of `length` real tokens that it is enough for; None where there is none."""
        return self.samples if self.tokens is None else self.tokens / length


@dataclass(frozen=True)
class MethodCost:
    """Methods whose samples are equally long, and what a step on such samples costs.

    Attributes:
        methods: values of `position_method`.
        stands_for: the window that a sample shows distances of, in tokens.
        note: what it is, where the method does not say so.
        plan: of a step.
    """

    methods: tuple[str, ...]
    stands_for: int
    note: str
    plan: Plan

    @property
    def length(self) -> int:
        """Real tokens of a sample."""
        return self.plan.settings.length

    @property
    def flops(self) -> float:
        """Of the matrix products of one sample, in all processes that share it."""
        return self.plan.flops * self.plan.settings.fsdp / self._samples

    @property
    def seconds(self) -> float | None:
        """An estimated step's time over its samples; None on a CPU."""
        seconds = self.plan.estimate().get("seconds")
        return None if seconds is None else seconds / self._samples

    @property
    def host_gib(self) -> float:
        return self.plan.parts_gib[HOST]

    @property
    def fits(self) -> bool | None:
        """Whether the GPU has the memory, with the assumed slack; None on a CPU."""
        gpu = self.plan.settings.gpu
        return None if gpu == "cpu" else self.plan.device_gib <= GPUS[gpu].gib

    @property
    def _samples(self) -> int:
        """Of a step of all processes."""
        return self.plan.tokens // self.length

    def days(self, budget: Budget) -> float | None:
        """Estimated, of a whole run."""
        samples, seconds = budget.samples_of(self.length), self.seconds
        return None if samples is None or seconds is None else samples * seconds / 86_400

    def dollars(self, budget: Budget) -> float | None:
        """Estimated, of a whole run on all its GPUs."""
        days, price = self.days(budget), budget.dollars_per_hour
        gpus = self.plan.settings.fsdp
        return None if days is None or price is None else days * 24 * price * gpus

    def report(self, full: "MethodCost", budget: Budget) -> dict[str, Any]:
        """As JSON values.

        Args:
            full: full length, which costs are relative to.
        """
        return {
            "methods": list(self.methods),
            "note": self.note,
            "train_length": self.length,
            "stands_for": self.stands_for,
            "flops_of_a_sample": self.flops,
            "seconds_of_a_sample": self.seconds,
            "peak_gib": self.plan.peak_gib,
            "device_gib": self.plan.device_gib,
            "host_gib": self.host_gib,
            "fits": self.fits,
            "cost_of_a_sample": self.flops / full.flops,
            "cost_of_a_token": self.flops / self.length / (full.flops / full.length),
            "days": self.days(budget),
            "dollars": self.dollars(budget),
            "plan": self.plan.report(),
        }


def compare_methods(
    model: str,
    config: PretrainedConfig,
    settings: Settings,
    target_length: int,
    train_share: float = TRAIN_SHARE,
) -> list[MethodCost]:
    """What samples of every method cost, full length first. The last row, the control, trains at
    the model's window and extends nothing.

    Where processes share a sample, lengths are rounded up to what they can share.

    Args:
        model: its name, for the report.
        settings: of every step, but for its length.
        target_length: window to reach, in tokens, above the model's.
        train_share: real tokens of a sample of `OF_SHARE`, as a share of the target.

    Raises:
        ValueError: for an argument out of range, and as `plan`.
    """
    if settings.implementation != LRK:
        raise ValueError(
            f"implementation is {settings.implementation!r}; methods are compared with {LRK!r}, "
            "whose attention reads positions that skip"
        )
    if settings.distill != "none":
        raise ValueError(
            f"distill is {settings.distill!r}; methods are compared without a teacher, but for a "
            f"row of {VIEWS!r}: leave it out"
        )
    if not 0 < train_share < 1:
        raise ValueError(f"train_share is {train_share:g}; it must be between 0 and 1")
    window = text_config(config).max_position_embeddings
    if target_length <= window:
        raise ValueError(
            f"target_length is {target_length}; it must be above the window of {window} tokens "
            f"that {model} has already"
        )
    shared = 2 * settings.sequence_parallel if settings.sequence_parallel > 1 else 1
    if target_length % shared:
        raise ValueError(
            f"target_length is {target_length}; with sequence_parallel "
            f"{settings.sequence_parallel} it must be a multiple of {shared}"
        )

    def planned(length: int, distill: str = "none") -> Plan:
        length = -(-length // shared) * shared
        return plan(model, config, replace(settings, length=length, distill=distill))

    full, short = planned(target_length), planned(window)
    some = round(train_share * target_length)
    return [
        MethodCost((CONTIGUOUS,), target_length, "full length", full),
        MethodCost(OF_SHARE, target_length, "", planned(some)),
        MethodCost(OF_SHARE[:1], target_length, f"with distill {VIEWS}", planned(some, VIEWS)),
        MethodCost(OF_WINDOW, target_length, "", short),
        MethodCost((CONTIGUOUS,), short.settings.length, "short, the control", short),
    ]


def methods_table(costs: Sequence[MethodCost], budget: Budget) -> str:
    """The rows as text for a terminal, and how to read them."""
    full = costs[0]
    settings = full.plan.settings
    prices = f"{'days':>9}" if full.days(budget) is not None else ""
    prices += f"{'dollars':>11}" if full.dollars(budget) is not None else ""
    lines = [
        f"{full.plan.model}, from {costs[-1].stands_for:,} to {full.stands_for:,} tokens, "
        f"{settings.implementation}, {settings.dtype}, {settings.optim}, traced without a GPU",
        "",
        f"{'tokens of a sample':>20}{'a sample':>22}{'GiB on':>20}{'cost, full = 1':>18}",
        f"{'real':>9}{'stand for':>11}{'TFLOP':>12}{'seconds':>10}{'device':>11}{'host':>9}"
        f"{'a sample':>10}{'a token':>8}{prices}  position_method",
    ]
    lines += [_row(cost, full, budget) for cost in costs]
    return "\n".join([*lines, "", *_reading(costs)])


def _row(cost: MethodCost, full: MethodCost, budget: Budget) -> str:
    seconds, days, dollars = cost.seconds, cost.days(budget), cost.dollars(budget)
    relative = cost.flops / full.flops
    note = f" ({cost.note})" if cost.note else ""
    if cost.fits is False:
        note += f": does not fit, needs {cost.plan.device_gib:.1f} GiB"
    return (
        f"{cost.length:9,}{cost.stands_for:11,}{cost.flops / 1e12:12,.1f}"
        + (f"{'':>10}" if seconds is None else f"{seconds:10,.1f}")
        + f"{cost.plan.peak_gib:11.2f}{cost.host_gib:9.2f}"
        + f"{relative:10.3f}{relative * full.length / cost.length:8.3f}"
        + ("" if days is None else f"{days:9.2f}")
        + ("" if dollars is None else f"{dollars:11,.0f}")
        + f"  {', '.join(cost.methods)}{note}"
    )


def _reading(costs: Sequence[MethodCost]) -> Iterator[str]:
    full, share = costs[0], costs[1]
    settings = full.plan.settings
    a_token = full.flops / full.length / (share.flops / share.length)
    yield (
        f"A run of equal samples costs {full.flops / share.flops:.1f} times as much at full length "
        f"as at {share.length:,} tokens; one of equal real\ntokens {a_token:.1f} times, for "
        f"{share.length / full.length:.2f} of the samples. Where positions stand costs nothing."
    )
    if settings.gpu == "cpu":
        return
    gpus = f"one {settings.gpu}" if settings.fsdp == 1 else f"{settings.fsdp} {settings.gpu}"
    after = "" if settings.fsdp == 1 else ", communication after all products"
    yield (
        f"Estimates for {gpus} at {EFFICIENCY:.0%} of the published peak{after}, not measured.\n"
        f"What fits leaves {ALLOCATOR_SLACK:.0%} for the allocator and {CONTEXT_GIB} GiB for "
        "context, assumed, not measured."
    )
