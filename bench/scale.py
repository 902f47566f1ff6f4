"""The table of docs/scale.md: steps of an 8B and a 70B model on 1 to 512 H100, planned.

    python -m bench.scale

Every figure is a prediction: memory from a trace without GPUs, seconds from published peaks times
assumed efficiencies (`lrk/plan/gpus.py`). Of the numbers of GPUs those are shown that fit, the
fewest of them, 8, 64 and 512; see `sharing` for how many share a sample.
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from dataclasses import replace

from lrk.plan import Plan, Settings, load_config, plan
from lrk.plan.gpus import GPUS
from lrk.plan.ledger import HOST

GPU = "h100"
# Llama-3.1-70B has the shape of Llama-3.3-70B and of Llama-3-70B.
MODELS = ("llama-3-8b", "llama-3.1-70b")
TARGETS = (131_072, 262_144, 524_288, 1_048_576)
SHARES = (0.3, 1.0)
COUNTS = (1, 2, 4, 8, 16, 64, 512)
ALWAYS = (8, 64, 512)
# Most tokens of a step: more GPUs than that takes share samples.
STEP_TOKENS = 2**23
# A rank's norms and MLPs run in so many tiles.
TILES, LEAST_TILE = 16, 2048

HEADER = (
    "| target | trained | GPUs | share a sample | GiB a GPU | host | s a step | tokens/s a GPU |\n"
    "|---|---|---|---|---|---|---|---|"
)


def trained_length(target: int, share: float) -> int:
    """Real tokens of a sample, a multiple of 128, so that up to 64 processes can share them."""
    return -int(-share * target // 128) * 128


def settings_for(length: int, gpus: int, shared: int) -> Settings:
    """Full parameters, activations on the host; one GPU has its optimizer there as well."""
    own = length // shared
    usual = Settings(
        length=length,
        gpu=GPU,
        bf16=True,
        accumulates=False,
        optim="adamw_torch_fused",
        offload_activations=True,
        tile_tokens=max(LEAST_TILE, own // TILES),
        fsdp=gpus,
        sequence_parallel=shared,
    )
    if gpus > 1:
        return usual
    return replace(usual, offload_optimizer=True, optimizer_in_backward=True, clips=False)


def sharing(model: str, length: int, gpus: int) -> Plan | None:
    """The plan in which as few GPUs share a sample as fit and as `STEP_TOKENS` allows."""
    shared = 1 if states_fit(model, gpus) else gpus + 1
    while shared <= min(gpus, 64):
        if gpus // shared * length <= STEP_TOKENS or gpus == shared:
            found = plan(model, load_config(model), settings_for(length, gpus, shared))
            if found.device_gib <= GPUS[GPU].gib:
                return found
        shared *= 2
    return None


@functools.cache
def states_fit(model: str, gpus: int) -> bool:
    """Whether weights and all that belongs to them fit, whatever the sample."""
    found = plan(model, load_config(model), settings_for(LEAST_TILE, gpus, 1))
    return found.device_gib <= GPUS[GPU].gib


def row(target: int, found: Plan) -> str:
    """A line of the table."""
    settings, estimate = found.settings, found.estimate()
    host = max(usage.parts[HOST] for usage in found.usages) / 2**30
    seconds = f"{estimate['seconds_overlapped']:,.1f}"
    if settings.fsdp > 1:
        seconds += f" to {estimate['seconds']:,.1f}"
    cells = (
        f"{target:,}",
        f"{settings.length:,}",
        str(settings.fsdp),
        str(settings.sequence_parallel),
        f"{found.peak_gib:.1f}",
        f"{host:.0f}",
        seconds,
        f"{estimate['tokens_per_second_per_gpu']:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def rows(model: str, target: int, share: float) -> Iterator[str]:
    """The lines of one length."""
    fits = False
    for gpus in COUNTS:
        if fits and gpus not in ALWAYS:
            continue
        found = sharing(model, trained_length(target, share), gpus)
        if found is not None:
            fits = True
            yield row(target, found)


def main() -> int:
    """Print the tables."""
    for model in MODELS:
        print(f"**{model}**\n\n{HEADER}", flush=True)
        for target in TARGETS:
            for share in SHARES:
                for line in rows(model, target, share):
                    print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    sys.exit(main())
