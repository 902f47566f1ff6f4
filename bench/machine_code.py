"""What a compiled kernel holds: registers, stack, spills, and its instructions with their loops."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import triton

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_NVIDIA_TENSOR_CORE = re.compile(r"(H|I|Q|D|B)G?MMA|UT\w*MMA")
_NVIDIA_GLOBAL = re.compile(r"(LDG|STG|LDGSTS)\.")
_NVIDIA_TMA = re.compile(r"UTMA(LDG|STG)")
_NVIDIA_WIDTHS = {".256": 256, ".128": 128, ".64": 64, ".U16": 16, ".S16": 16, ".U8": 8, ".S8": 8}
_AMD_GLOBAL = re.compile(r"(global|buffer)_(load|store)_")
_AMD_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "byte": 8}


class Loop(NamedTuple):
    """Instructions start to end, the backward branch included."""

    start: int
    end: int

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.start <= index <= self.end


@dataclass(frozen=True)
class MachineCode:
    """One kernel for one architecture. Bytes of stack, local memory and spills are per thread."""

    arch: str
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    local_bytes: int
    spill_bytes: int
    shared_bytes: int
    instructions: list[str]
    """Opcodes with modifiers, in order of address; padding left out."""
    loops: list[Loop]
    access_bits: Callable[[str], int | None]
    """Width of an instruction's access to global memory per thread; None for any other."""
    tensor_core: Callable[[str], bool]
    exp2: Callable[[str], bool]

    @property
    def threads(self) -> int:
        return self.num_warps * (64 if self.arch.startswith("gfx") else 32)

    @cached_property
    def main_loop(self) -> Loop | None:
        """The loop where the time goes.

        Of the innermost loops with the most tensor-core instructions the shortest: the interior of
        attention, without a mask. (A loop may hold a spin on a barrier, which is not what counts as
        inner.) Without tensor-core instructions, the longest innermost loop.
        """
        busy = [loop for loop in self.loops if self.count(self.tensor_core, loop)]
        if busy:
            return max(
                _innermost(busy),
                key=lambda loop: (self.count(self.tensor_core, loop), loop.start - loop.end),
            )
        return max(_innermost(self.loops), key=lambda loop: loop.end - loop.start, default=None)

    def count(self, of: Callable[[str], bool], loop: Loop | None = None) -> int:
        """Instructions of a kind, in the whole kernel or in a loop."""
        start, end = loop or (0, len(self.instructions))
        return sum(map(of, self.instructions[start : end + 1]))

    def min_access_bits(self) -> int | None:
        """Narrowest global access inside loops; of the whole kernel if it has none there."""
        widths = list(map(self.access_bits, self.instructions))
        inside = [
            width
            for index, width in enumerate(widths)
            if width and any(index in loop for loop in self.loops)
        ]
        return min(inside or [width for width in widths if width], default=None)

    def executed(self, trips: tuple[int, ...]) -> int:
        """Instructions that a thread issues when its loops, in order, make so many trips."""
        self._check_loops(trips)
        once = len(self.instructions) - sum(loop.end - loop.start + 1 for loop in self.loops)
        return once + sum(
            n * (loop.end - loop.start + 1) for n, loop in zip(trips, self.loops, strict=True)
        )

    def loop_access_bytes(self, trips: tuple[int, ...]) -> int:
        """Global bytes that a thread loads and stores inside its loops."""
        self._check_loops(trips)
        bits = 0
        for n, loop in zip(trips, self.loops, strict=True):
            body = self.instructions[loop.start : loop.end + 1]
            bits += n * sum(self.access_bits(opcode) or 0 for opcode in body)
        return bits // 8

    def _check_loops(self, trips: tuple[int, ...]) -> None:
        if len(trips) != len(self.loops):
            raise ValueError(f"expected {len(trips)} loops in the kernel, found {len(self.loops)}")


def _innermost(loops: list[Loop]) -> list[Loop]:
    return [
        loop
        for loop in loops
        if not any(other != loop and other.start in loop and other.end in loop for other in loops)
    ]


def read(compiled: Any, arch: str) -> MachineCode:
    """Machine code of a kernel that Triton compiled for `arch`."""
    common = {
        "arch": arch,
        "num_warps": compiled.metadata.num_warps,
        "num_stages": compiled.metadata.num_stages,
        "shared_bytes": compiled.metadata.shared,
    }
    if arch.startswith("gfx"):
        return _read_amd(compiled.asm["amdgcn"], common)
    return _read_nvidia(compiled.asm["cubin"], common)


def _read_nvidia(cubin: bytes, common: dict[str, Any]) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = _run("nvdisasm", "-c", file.name)
        usage = dict(re.findall(r"(\w+):(\d+)", _run("cuobjdump", "-res-usage", file.name)))
    instructions, loops = _parse(
        sass,
        label=r"\s*(\.L_x_\d+):",
        instruction=r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*)",
        branch=r"\bBRA\b.*?(\.L_x_\d+)",
    )
    spilled = sum(_nvidia_bits(op) // 8 for op in instructions if op.startswith("STL"))
    return MachineCode(
        **common,
        registers=int(usage["REG"]),
        stack_bytes=int(usage["STACK"]),
        local_bytes=int(usage["LOCAL"]),
        spill_bytes=spilled,
        instructions=instructions,
        loops=loops,
        access_bits=_nvidia_access_bits,
        tensor_core=lambda op: bool(_NVIDIA_TENSOR_CORE.match(op)),
        exp2=lambda op: op.startswith("MUFU.EX2"),
    )


def _run(tool: str, *arguments: str) -> str:
    command = [str(_NVIDIA_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _nvidia_bits(opcode: str) -> int:
    return next((bits for part, bits in _NVIDIA_WIDTHS.items() if part in opcode + "."), 32)


def _nvidia_access_bits(opcode: str) -> int | None:
    if _NVIDIA_TMA.match(opcode):
        return 128
    return _nvidia_bits(opcode) if _NVIDIA_GLOBAL.match(opcode) else None


def _read_amd(assembly: str, common: dict[str, Any]) -> MachineCode:
    def resource(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    code = assembly[: assembly.index(".section\t.rodata")]
    instructions, loops = _parse(
        code,
        label=r"(\.LBB\d+_\d+):",
        instruction=r"\t([a-z]\w*)(.*)",
        branch=r"s_c?branch\w*\s+(\.LBB\d+_\d+)",
    )
    scratch = resource("private_segment_fixed_size")
    return MachineCode(
        **common,
        registers=resource("vgpr_count"),
        stack_bytes=scratch,
        local_bytes=scratch,
        # Scalar registers spill to lanes of vector registers, which are counted, not to memory.
        spill_bytes=4 * resource("vgpr_spill_count"),
        instructions=instructions,
        loops=loops,
        access_bits=_amd_access_bits,
        tensor_core=lambda op: op.startswith("v_mfma"),
        exp2=lambda op: op.startswith("v_exp_f32"),
    )


def _amd_access_bits(opcode: str) -> int | None:
    if not _AMD_GLOBAL.match(opcode):
        return None
    return next(bits for part, bits in _AMD_WIDTHS.items() if part in opcode)


def _parse(code: str, label: str, instruction: str, branch: str) -> tuple[list[str], list[Loop]]:
    """Opcodes, and the loops: an instruction that branches to an earlier label closes one."""
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    loops: list[Loop] = []
    for line in code.splitlines():
        if found := re.match(label, line):
            labels[found[1]] = len(opcodes)
        elif found := re.match(instruction, line):
            target = re.search(branch, found[1] + found[2])
            start = labels.get(target[1]) if target else None
            if found[1] == "NOP" or start == len(opcodes):
                continue  # padding behind the end: no operation, or a branch to itself
            opcodes.append(found[1])
            if start is not None:
                loops.append(Loop(start, len(opcodes) - 1))
    return opcodes, loops
