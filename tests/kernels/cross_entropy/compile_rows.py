"""Compile the pass over rows for GPUs that need not be there; prints JSON for test_compile.py.

In a process of its own, since Triton either interprets or compiles.
"""

import itertools
import json
from collections.abc import Iterator

import torch

from bench.machine_code import read
from bench.offline import TARGETS, compiled_launches
from lrk.kernels.cross_entropy import kernel
from lrk.kernels.cross_entropy.chunks import ROW_ALIGNMENT, Pull, Statistics

TOKENS = 2
VOCABULARIES = [32_000, 49_152, 128_256, 152_064]
OPTIONS = ["bias", "softcap", "label_smoothing"]
BESIDE = "gradient elsewhere"


def configurations() -> Iterator[tuple[str, int, torch.dtype, list[str], bool]]:
    """(architecture, vocabulary, dtype, options, with gradient)"""
    for arch, vocab in itertools.product(TARGETS, VOCABULARIES):
        yield arch, vocab, torch.bfloat16, [], True
    for arch in TARGETS:
        yield arch, 32_000, torch.float32, [], True
        yield arch, 32_000, torch.bfloat16, ["label_smoothing"], True
        for vocab in (16_000, 128_256):
            yield arch, vocab, torch.bfloat16, OPTIONS, True
            yield arch, vocab, torch.bfloat16, ["entropy"], True
        yield arch, 128_256, torch.bfloat16, [BESIDE], True
        yield arch, 128_256, torch.bfloat16, [*OPTIONS, "entropy", BESIDE], True
    yield "sm_90", 32_000, torch.bfloat16, [], False
    yield "sm_90", 128_256, torch.float32, ["bias"], True
    yield "sm_90", 128_256, torch.float16, ["softcap"], False
    yield "sm_90", 128_256, torch.bfloat16, ["entropy"], False
    yield "sm_90", 50_257, torch.bfloat16, [], True  # GPT-2's, odd


def figures(arch: str, vocab: int, dtype: torch.dtype, options: list[str], pulled: bool) -> dict:
    smoothing, entropy = ("label_smoothing" in options), ("entropy" in options)
    row = -(-vocab // ROW_ALIGNMENT) * ROW_ALIGNMENT

    def per_token() -> torch.Tensor:
        return torch.empty(TOKENS)

    def launch() -> None:
        logits = torch.empty(TOKENS, row)
        gradient = (
            torch.empty(TOKENS, row, dtype=dtype) if BESIDE in options else logits.view(dtype)
        )
        kernel.row_pass(
            logits[:, :vocab],
            torch.empty(TOKENS, dtype=torch.int64),
            torch.empty(vocab, dtype=dtype) if "bias" in options else None,
            30.0 if "softcap" in options else None,
            Statistics(
                per_token(),
                per_token(),
                torch.empty(TOKENS if smoothing else 0),
                torch.empty(TOKENS if entropy else 0),
            ),
            Pull(
                per_token(),
                per_token(),
                per_token() if smoothing else None,
                per_token() if entropy else None,
            )
            if pulled
            else None,
            gradient[:, :vocab],
        )

    (compiled,) = compiled_launches(launch, arch)
    code = read(compiled.compiled, arch)
    widths = [width for op in code.instructions if (width := code.access_bits(op))]
    return {
        "case": f"{arch} {vocab} {dtype} {'+'.join(options)} gradient={pulled}",
        "stack_bytes": code.stack_bytes,
        "spill_bytes": code.spill_bytes,
        "narrow_accesses": sum(width < 128 for width in widths),
        "narrow_accesses_in_loops": sum(
            (code.access_bits(op) or 128) < 128
            for loop in code.loops
            for op in code.instructions[loop.start : loop.end + 1]
        ),
    }


if __name__ == "__main__":
    print(json.dumps([figures(*configuration) for configuration in configurations()]))
