"""The plan of a training step, and the longest sample that fits a device."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from lrk.hf.architectures import text_config
from lrk.layer_kinds import layer_kinds, period
from lrk.plan.gpus import EFFICIENCY, LINK_EFFICIENCY, ring_seconds, step_seconds
from lrk.plan.layers import FEW, MORE, extrapolate
from lrk.plan.ledger import DEVICE_PARTS, HOST, Collective, Usage
from lrk.plan.settings import Settings
from lrk.plan.step import Trace, resolved, trace
from lrk.plan.traffic import KEYS, PARAMETERS

GIB = 2**30

# Assumed, not measured: what PyTorch's caching allocator (with expandable segments) reserves beyond
# what is allocated, and what CUDA, its libraries and their workspaces take before the first tensor.
ALLOCATOR_SLACK = 0.05
CONTEXT_GIB = 0.75

# Lengths are found to this many tokens, and tried up to so many times one that is known to fit.
FIT_STEP = 256
GROWTH = 4


@dataclass(frozen=True)
class Plan:
    """What one step of a model allocates.

    Attributes:
        model: its name or path.
        usages: the fullest instant of each moment of the step, in order.
        flops: of the matrix products of one forward and backward pass of `settings.batch` samples,
            or of the share that one of several processes has of them.
        sent: bytes that one of several processes sends to others in such a step.
    """

    model: str
    settings: Settings
    usages: list[Usage]
    flops: int
    sent: Mapping[Collective, int]

    @property
    def peak(self) -> Usage:
        return max(self.usages, key=lambda usage: usage.total)

    @property
    def parts_gib(self) -> dict[str, float]:
        """The peak's parts; of the host, which has a peak of its own, the most in the step."""
        parts = {part: self.peak.parts[part] / GIB for part in DEVICE_PARTS}
        return parts | {HOST: max(usage.parts[HOST] for usage in self.usages) / GIB}

    @property
    def peak_gib(self) -> float:
        """What `torch.cuda.max_memory_allocated` would say."""
        return self.peak.total / GIB

    @property
    def device_gib(self) -> float:
        """What the device must have, with the assumed slack and context."""
        return self.peak_gib * (1 + ALLOCATOR_SLACK) + CONTEXT_GIB

    @property
    def phases(self) -> dict[str, Usage]:
        """The fullest instant of each phase."""
        fullest: dict[str, Usage] = {}
        for usage in self.usages:
            phase = usage.moment.phase
            if phase not in fullest or usage.total > fullest[phase].total:
                fullest[phase] = usage
        return fullest

    def report(
        self, tokens: int | None = None, dollars_per_hour: float | None = None
    ) -> dict[str, Any]:
        """The plan as JSON values, in GiB.

        Args:
            tokens: real tokens of a whole run, to estimate its days.
            dollars_per_hour: price of the GPU, to estimate its cost.
        """
        return {
            "model": self.model,
            "length": self.settings.length,
            "settings": {
                **asdict(self.settings),
                "allocator_slack": ALLOCATOR_SLACK,
                "context_gib": CONTEXT_GIB,
            },
            "peak_gib": self.peak_gib,
            "parts": self.parts_gib,
            "flops": self.flops,
            "sent_gib": {" ".join(each): nbytes / GIB for each, nbytes in self.sent.items()},
            "estimate": self.estimate(tokens, dollars_per_hour),
        }

    def estimate(
        self, tokens: int | None = None, dollars_per_hour: float | None = None
    ) -> dict[str, Any]:
        """Time and cost from published peaks and assumed efficiencies: not measured.

        `seconds` has communication after all products, `seconds_overlapped` beside them, as far as
        it goes: a step is somewhere between. Tokens, days and dollars are those of `seconds`.
        """
        if self.settings.gpu == "cpu":
            return {"device_gib": self.peak_gib}
        products, communication = self.seconds_of_products, self.seconds_of_communication
        seconds = products + communication
        tokens_per_second = self.tokens / seconds
        days = None if tokens is None else tokens / tokens_per_second / 86_400
        cost = None
        if days is not None and dollars_per_hour is not None:
            cost = days * 24 * dollars_per_hour * self.settings.fsdp
        return {
            "device_gib": self.device_gib,
            "efficiency": EFFICIENCY,
            "link_efficiency": LINK_EFFICIENCY,
            "seconds_of_communication": communication,
            "seconds": seconds,
            "seconds_overlapped": max(products, communication),
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_gpu": tokens_per_second / self.settings.fsdp,
            "days": days,
            "dollars": cost,
        }

    @property
    def tokens(self) -> int:
        """Real tokens of a step of all processes."""
        settings = self.settings
        return settings.batch * settings.length * settings.fsdp // settings.sequence_parallel

    @property
    def seconds_of_products(self) -> float:
        return step_seconds(self.settings.gpu, self.flops)

    @property
    def seconds_of_communication(self) -> float:
        """Of all collectives, one after the other."""
        processes = {PARAMETERS: self.settings.fsdp, KEYS: self.settings.sequence_parallel}
        return sum(
            ring_seconds(self.settings.gpu, nbytes, processes[each.group])
            for each, nbytes in self.sent.items()
        )


def plan(model: str, config: PretrainedConfig, settings: Settings) -> Plan:
    """Trace a step of the model on fake tensors.

    A model of equal groups of layers is extrapolated, which is exact, if it is deeper than what is
    traced for it; another is traced in full. Of a model of several modalities it is the text model.

    Args:
        model: its name, for the report.

    Raises:
        ValueError: as `trace`.
    """
    config = text_config(config)
    settings = resolved(config, settings)
    layers, (few, more) = config.num_hidden_layers, _traced_layers(config, settings)
    # Qwen3-MoE has layers without experts in places of their own.
    repeats = not getattr(config, "mlp_only_layers", None) and (
        getattr(config, "decoder_sparse_step", 1) == 1
        and layers % settings.layers_per_checkpoint == 0
    )
    saves = repeats and few + more < layers
    found = extrapolated(config, settings) if saves else trace(config, settings)
    return Plan(model, settings, *found)


def extrapolated(config: PretrainedConfig, settings: Settings) -> Trace:
    """The trace of a model of more than `FEW` groups of layers, from those of `FEW` and `MORE`."""
    few, more = _traced_layers(config, settings)
    return extrapolate(
        trace(config, settings, few),
        trace(config, settings, more),
        config.num_hidden_layers,
        _group(config, settings),
        settings.layers_per_checkpoint,
    )


def _group(config: PretrainedConfig, settings: Settings) -> int:
    """Layers after which kinds and checkpoints begin again."""
    return math.lcm(period(layer_kinds(config)), settings.layers_per_checkpoint)


def _traced_layers(config: PretrainedConfig, settings: Settings) -> tuple[int, int]:
    """Of `FEW` groups and of `MORE`, with what is left over."""
    group = _group(config, settings)
    left_over = config.num_hidden_layers % group
    return FEW * group + left_over, MORE * group + left_over


def longest(model: str, config: PretrainedConfig, settings: Settings, gib: float) -> Plan:
    """The plan with the longest real length, in steps of `FIT_STEP`, whose `device_gib` fits.

    Where processes share a sample, in the least multiple of it that they can share. A sample is at
    least as long as the short context that is cut of it.

    Memory is almost affine in the length, so a line through two lengths finds it in a few plans.

    Raises:
        ValueError: if not even the shortest sample fits.
    """

    def plan_of(length: int) -> Plan:
        return plan(model, config, replace(settings, length=length))

    step = math.lcm(FIT_STEP, 2 * settings.sequence_parallel)
    shortest = math.ceil(max(settings.distill_length, 1) / step) * step
    low = plan_of(shortest)
    if low.device_gib > gib:
        raise ValueError(
            f"{model} with these settings needs {low.device_gib:.1f} GiB at {shortest} tokens, "
            f"more than {gib:g} GiB"
        )
    tried, high = plan_of(shortest + 63 * step), None
    while True:
        if tried.device_gib <= gib:
            low, other = tried, low
        else:
            high = other = tried
        if high is not None and high.settings.length - low.settings.length <= step:
            return low
        tried = plan_of(_guess(low, other, high, gib, step))


def _guess(low: Plan, other: Plan, high: Plan | None, gib: float, step: int) -> int:
    """The next length to try: where the line through two plans reaches `gib`, above `low` and below
    `high`, which are known to fit and not to fit. The line may be flat, because the peak of short
    samples is that of the optimizer: without `high` the length grows fourfold at most."""
    first = low.settings.length
    furthest = GROWTH * first if high is None else high.settings.length - step
    rise, run = other.device_gib - low.device_gib, other.settings.length - first
    steps = int((gib - low.device_gib) * run / rise) // step if rise else furthest
    return min(first + max(steps, 1) * step, furthest)
