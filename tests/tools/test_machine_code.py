"""The gates of the CUDA half's build find the step loop, and refuse what it must not hold."""

import pytest

from tools import cuda_build, machine_code

# A tile loop around a step loop, which holds a spin loop; and a way out by a call.
CODE = """\
S2R R0, SR_TID.X
LDC R1, c[0x0][0x28]
BAR.SYNC.DEFER_BLOCKING 0x0
LDS.128 R4, [R2]
HMMA.16816.F32.BF16 R8, R4, R12, R8
{extra}
STS [R3], R8
BAR.SYNC.DEFER_BLOCKING 0x0
LDS R16, [R3]
FADD R16, R16, R17
MUFU.TANH R16, R16
LDG.E.STRONG.GPU R20, [R18.64]
ISETP.NE.AND P0, PT, R20, R21, PT
@P0 BRA 0xb0
STG.E [R18.64], R16
@P1 CALL.REL.NOINC 0x110
BRA 0x30
@P2 BRA 0x20
EXIT
"""


def sass(extra="FADD R22, R22, R23", arch="90", name="kernel"):
    lines = CODE.format(extra=extra).splitlines()
    code = "".join(
        f"        /*{16 * i:04x}*/                   {line} ;   /* 0x0 */\n"
        for i, line in enumerate(lines)
    )
    return f"\tcode for sm_{arch}\n\t\tFunction : {name}\n{code}"


def loop_of(extra="FADD R22, R22, R23"):
    ((_, _, code),) = machine_code.functions(sass(extra))
    return machine_code.step_loop(code)


def faults(group, *extra):
    """Of the loop with more operations at its end, what the group requires among them."""
    more = [*extra, *machine_code.REQUIRED.get(group, ())]
    loop = [*loop_of(), *(machine_code.Instruction(0, "", operation, "") for operation in more)]
    return machine_code.loop_faults(f"recurrence_kernel<E, P, {group}>", loop)


def test_the_step_loop_is_the_inner_one_with_a_barrier():
    assert len(loop_of()) == 14
    assert machine_code.step_loop(loop_of()[:3]) == []


FORBIDDEN = {
    "MEMBAR.ALL.GPU": "fence",
    "CCTL.IVALL": "L1 invalidation",
    "MAPA R30, R31": "address mapping",
    "LDL R30, [R1]": "local memory",
    "STL [R1], R30": "local memory",
    "I2F.U32.RP R30, R31": "integer division",
}


@pytest.mark.parametrize("extra", FORBIDDEN)
def test_what_a_loop_must_not_hold_is_a_fault(extra):
    what = FORBIDDEN[extra]
    for group in ("BlockGroup", "AsyncClusterGroup", "TaggedGridGroup"):
        assert faults(group, extra) == [what]
        assert faults(group, "I2F R30, R31") == []
    for group in ("ClusterGroup", "GridGroup"):  # they fence
        known = what in ("fence", "L1 invalidation")
        assert faults(group, extra) == ([] if known else [what])


@pytest.mark.parametrize("group", machine_code.REQUIRED)
def test_what_an_exchange_needs_must_be_there(group):
    loop = loop_of()
    found = machine_code.loop_faults(f"recurrence_kernel<E, P, {group}>", loop)
    lacks = [f"no {begins}" for begins in machine_code.REQUIRED[group]]
    assert found == [what for what in lacks if what != "no LDG.E.STRONG.GPU"]  # the loop has it


def test_a_cluster_meets_where_its_warps_are_whole():
    assert faults("ClusterGroup", "BSSY", "BSYNC") == []
    arrival, wait = faults("ClusterGroup", "BSSY")
    assert arrival == "UCGABAR_ARV where the warp may have parted"
    assert wait.startswith("UCGABAR_WAIT")


REPORT = """\
ptxas info    : Compiling entry function '_ZN6rnnext4cuda17recurrence_kernelIfEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN6rnnext4cuda17recurrence_kernelIfEEvi
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem, 424 bytes cmem[0]
ptxas info    : Function properties for _ZN6rnnext4cuda4stepEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.mark.parametrize("what", ["", "stack", "stores", "loads"])
def test_the_gate_refuses_kernels_that_keep_something_in_memory(what):
    found = cuda_build.faults(REPORT.format(**{"stack": 0, "stores": 0, "loads": 0} | {what: 8}))
    wrong = ["recurrence_kernel<float> on sm_80: registers spilled"]
    assert found == (wrong if what else [])
