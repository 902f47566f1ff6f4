"""Reading of machine code, on listings small enough to check by eye."""

import dataclasses

import pytest

from bench.machine_code import Loop, MachineCode, _amd_access_bits, _nvidia_access_bits, _parse

SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/              @!P0 LDG.E.128 R8, desc[UR4][R4.64] ;
.L_x_0:
        /*0030*/                   HMMA.16816.F32.BF16 R8, R8, R4, R8 ;
        /*0040*/                   MUFU.EX2 R9, R9 ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   STG.E.128 desc[UR4][R4.64], R8 ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/              @!P3 BRA `(.L_x_2) ;
        /*0090*/                   STL.64 [R1], R8 ;
.L_x_2:
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
        /*00c0*/                   NOP;
"""


def sass() -> MachineCode:
    instructions, loops = _parse(
        SASS,
        label=r"\s*(\.L_x_\d+):",
        instruction=r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*)",
        branch=r"\bBRA\b.*?(\.L_x_\d+)",
    )
    return MachineCode(
        arch="sm_90", num_warps=4, num_stages=1, registers=32, stack_bytes=0, local_bytes=0,
        spill_bytes=0, shared_bytes=0, instructions=instructions, loops=loops,
        access_bits=_nvidia_access_bits,
        tensor_core=lambda op: op.startswith("HMMA"), exp2=lambda op: op == "MUFU.EX2",
    )  # fmt: skip


def test_loops_and_instructions():
    code = sass()
    assert len(code.instructions) == 11  # without the padding behind EXIT
    assert code.loops == [Loop(3, 5), Loop(2, 7)]
    assert code.main_loop == Loop(3, 5)
    assert code.count(code.tensor_core, code.main_loop) == 1
    assert code.count(code.exp2) == 1
    assert code.min_access_bits() == 128  # the 64-bit load stands outside the loops


def test_trips_must_match_the_loops():
    with pytest.raises(ValueError, match="expected 1 loops in the kernel, found 2"):
        sass().executed((3,))


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [("LDG.E.128", 128), ("STG.E.64", 64), ("LDG.E", 32), ("LDG.E.U16", 16), ("LDS.128", None),
     ("LDGSTS.E.BYPASS.128", 128), ("UTMALDG.2D", 128), ("LDG.E.U16.CONSTANT", 16)],
)  # fmt: skip
def test_widths_on_nvidia(opcode, bits):
    assert _nvidia_access_bits(opcode) == bits


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [("global_load_dwordx4", 128), ("global_store_dword", 32), ("buffer_load_ushort", 16),
     ("global_store_short_d16_hi", 16), ("ds_read_b128", None)],
)  # fmt: skip
def test_widths_on_amd(opcode, bits):
    assert _amd_access_bits(opcode) == bits


def test_a_branch_back_from_a_slow_path_is_no_inner_loop():
    """Kernels wait for memory in blocks behind their end, which branch back into the loop."""
    code = sass()
    waiting = dataclasses.replace(code, loops=[Loop(2, 7), Loop(3, 9)])
    assert waiting.main_loop == Loop(2, 7)
