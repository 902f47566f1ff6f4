"""Registers, spills and instructions of every kernel, for GPUs that need not be there.

    python -m bench.compile_report [--json FILE | --hashes] [--op rope ...] [--arch sm_90 ...]
        [--model llama-3-8b ...]

Each kernel is compiled as its launcher would launch it on the architecture, and its machine code is
read: figures of the compiler, not measurements of speed. A peer's kernels stand beside ours where
its package is installed. Rows are those of `row`; a key without a meaning for a kernel is null.

With --hashes, a hash of each kernel of ours instead: a refactoring leaves them as they are. They
are those of one Triton; `tests/bench/hashes/` keeps some, which a change that means to change
kernels renews (CONTRIBUTING.md).
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.case import MODELS, Case
from bench.cases import attention, cross_entropy, rope
from bench.machine_code import MachineCode, read
from bench.offline import TARGETS, Launch, compiled_launches
from bench.ptx import code_hash

CASES: dict[str, Callable[[], Iterable[Case]]] = {
    "rope": rope.cases,
    "attention": attention.cases,
    "cross_entropy": cross_entropy.cases,
}

SHOWN = (
    *("op", "provider", "model", "arch", "tile", "num_warps", "registers", "stack_bytes"),
    *("spill_bytes", "shared_bytes", "blocks_per_sm", "instructions", "instructions_per_element"),
    *("min_access_bits", "bytes_over_minimum", "loop_instructions"),
    *("loop_tensor_core_instructions",),
)


class Processor(NamedTuple):
    """What the programs on one multiprocessor (AMD: compute unit) share."""

    registers: int  # of 32 bits
    shared_bytes: int
    warps: int
    blocks: int
    register_unit: int  # registers of a thread are allotted in multiples of it


PROCESSORS = {
    "sm_80": Processor(65_536, 164 * 1024, 64, 32, 8),
    "sm_86": Processor(65_536, 100 * 1024, 48, 16, 8),
    "sm_89": Processor(65_536, 100 * 1024, 48, 24, 8),
    "sm_90": Processor(65_536, 228 * 1024, 64, 32, 8),
    "sm_100": Processor(65_536, 228 * 1024, 64, 32, 8),
    "sm_120": Processor(65_536, 100 * 1024, 48, 24, 8),
    "gfx942": Processor(131_072, 64 * 1024, 32, 32, 8),
}
_RESERVED_SHARED = 1024  # per block, by CUDA


def blocks_per_sm(code: MachineCode) -> int:
    """How many programs fit on a multiprocessor at once, by registers, shared memory and warps."""
    processor = PROCESSORS[code.arch]
    registers = -(-max(1, code.registers) // processor.register_unit) * processor.register_unit
    reserved = 0 if code.arch.startswith("gfx") else _RESERVED_SHARED
    shared = code.shared_bytes + reserved
    return min(
        processor.registers // (registers * code.threads),
        processor.shared_bytes // shared if shared else processor.blocks,
        processor.warps // code.num_warps,
        processor.blocks,
    )


def row(case: Case, launch: Launch, code: MachineCode) -> dict[str, Any]:
    """One line of the report."""
    loop = code.main_loop
    per_element = over_minimum = None
    if case.trips and case.elements:
        executed = code.executed(case.trips(launch)) * code.threads * launch.programs
        per_element = round(executed / case.elements, 3)
    if case.traffic and case.minimum_bytes:
        over_minimum = round(case.traffic(launch, code) / case.minimum_bytes, 4)
    return {
        "op": case.op,
        "kernel": launch.kernel,
        "provider": case.provider,
        "model": case.model,
        "arch": code.arch,
        "dtype": str(case.dtype).removeprefix("torch."),
        "head_dim": case.head_dim,
        "tile": case.tile(launch),
        "num_warps": code.num_warps,
        "num_stages": code.num_stages,
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "local_bytes": code.local_bytes,
        "spill_bytes": code.spill_bytes,
        "shared_bytes": code.shared_bytes,
        "blocks_per_sm": blocks_per_sm(code),
        "instructions": len(code.instructions),
        "instructions_per_element": per_element,
        "min_access_bits": code.min_access_bits(),
        "tensor_core_instructions": code.count(code.tensor_core),
        "loop_instructions": loop and loop.end - loop.start + 1,
        "loop_tensor_core_instructions": loop and code.count(code.tensor_core, loop),
        "loop_exp2": loop and code.count(code.exp2, loop),
        "bytes_over_minimum": over_minimum,
    }


def rows(ops: list[str], archs: list[str], models: list[str]) -> Iterator[dict[str, Any]]:
    """The report's rows, compiled one by one."""
    for op in ops:
        for case in CASES[op]():
            if case.model not in models:
                continue
            for arch in archs:
                for launch in compiled_launches(case.launch, arch):
                    yield row(case, launch, read(launch.compiled, arch))


def hashes(ops: list[str], archs: list[str], models: list[str]) -> Iterator[str]:
    """A line for each kernel of ours on NVIDIA's architectures: what and where it is, its hash."""
    for op in ops:
        for case in CASES[op]():
            if case.model not in models or not case.provider.startswith("lrk"):
                continue
            for arch in archs:
                for launch in compiled_launches(case.launch, arch):
                    if "ptx" in launch.compiled.asm:
                        what = (case.provider, case.model, arch, launch.kernel, case.tile(launch))
                        yield "\t".join((*what, code_hash(launch.compiled.asm["ptx"])))


def markdown(table: list[dict[str, Any]]) -> str:
    """The most telling columns, one line a kernel."""
    lines = [SHOWN, ["---"] * len(SHOWN)]
    lines += [["" if line[key] is None else str(line[key]) for key in SHOWN] for line in table]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", type=Path, help="file for all the columns of the report")
    output.add_argument("--hashes", action="store_true", help="a hash of each kernel instead")
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    which = arguments.op, arguments.arch, arguments.model
    if arguments.hashes:
        for line in hashes(*which):
            print(line, flush=True)
        return
    table = list(rows(*which))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    print(markdown(table))


if __name__ == "__main__":
    main()
