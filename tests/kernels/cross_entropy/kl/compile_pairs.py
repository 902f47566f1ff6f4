"""Compile the pass over pairs for GPUs that need not be there; prints JSON for test_compile.py.

In a process of its own, since Triton either interprets or compiles.
"""

import json
from collections.abc import Iterator

import torch

from bench.machine_code import read
from bench.offline import TARGETS, compiled_launches
from lrk.kernels.cross_entropy.chunks import ROW_ALIGNMENT
from lrk.kernels.cross_entropy.kl import kernel
from lrk.kernels.cross_entropy.kl.divergence import Head

TOKENS = 2
BESIDE = "gradient elsewhere"


def configurations() -> Iterator[tuple[str, int, torch.dtype, list[str], bool]]:
    """(architecture, vocabulary, dtype, options, with gradient)"""
    for arch in TARGETS:
        yield arch, 128_256, torch.bfloat16, [], True
    for arch in ("sm_90", "sm_100"):
        yield arch, 128_256, torch.bfloat16, [BESIDE], True
    for arch in TARGETS:
        yield arch, 128_256, torch.bfloat16, ["bias", "softcap"], True
        yield arch, 32_000, torch.float32, ["bias", "softcap", BESIDE], True
    yield "sm_90", 128_256, torch.bfloat16, [], False
    yield "sm_90", 50_257, torch.bfloat16, [], True  # GPT-2's, odd


def figures(arch: str, vocab: int, dtype: torch.dtype, options: list[str], pulled: bool) -> dict:
    row = -(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT
    nothing = torch.empty(0)
    head = Head(
        nothing,
        nothing,
        torch.empty(vocab, dtype=dtype) if "bias" in options else None,
        30.0 if "softcap" in options else None,
    )

    def launch() -> None:
        logits = torch.empty(TOKENS, row)
        gradient = (
            torch.empty(TOKENS, row, dtype=dtype) if BESIDE in options else logits.view(dtype)
        )
        kernel.pair_pass(
            logits[:, :vocab],
            torch.empty(TOKENS, row)[:, :vocab],
            head,
            head,
            2.0,
            torch.empty(TOKENS),
            torch.empty(TOKENS) if pulled else None,
            gradient[:, :vocab],
        )

    (compiled,) = compiled_launches(launch, arch)
    code = read(compiled.compiled, arch)
    return {
        "case": f"{arch} {vocab} {dtype} {'+'.join(options)} gradient={pulled}",
        "stack_bytes": code.stack_bytes,
        "spill_bytes": code.spill_bytes,
        "registers": code.registers,
        "narrow_accesses_in_loops": sum(
            (code.access_bits(op) or 128) < 128
            for loop in code.loops
            for op in code.instructions[loop.start : loop.end + 1]
        ),
    }


if __name__ == "__main__":
    print(json.dumps([figures(*configuration) for configuration in configurations()]))
