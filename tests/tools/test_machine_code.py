"""The gates of the CUDA half's build find the step loop, and refuse what it must not hold."""

from tools import cuda_build, machine_code

# A tile loop around a step loop, which holds a spin loop; and a way out by a call.
CODE = """\
S2R R0, SR_TID.X
LDC R1, c[0x0][0x28]
BAR.SYNC.DEFER_BLOCKING 0x0
LDS.128 R4, [R2]
HMMA.16816.F32.BF16 R8, R4, R12, R8
FADD R22, R22, R23
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
SASS = "\tcode for sm_90\n\t\tFunction : kernel\n" + "".join(
    f"        /*{16 * i:04x}*/                   {line} ;   /* 0x0 */\n"
    for i, line in enumerate(CODE.splitlines())
)
((_, _, INSTRUCTIONS),) = machine_code.functions(SASS)
LOOP, FENCING = machine_code.step_loop(INSTRUCTIONS), ("ClusterGroup", "GridGroup")


def faults(group, *more):
    """Of the loop with more operations at its end."""
    added = [machine_code.Instruction(0, "", operation, "") for operation in more]
    return machine_code.loop_faults(f"recurrence_kernel<E, P, {group}>", [*LOOP, *added])


def test_the_step_loop_is_the_inner_one_with_a_barrier():
    assert INSTRUCTIONS[3:17] == LOOP
    assert machine_code.step_loop(INSTRUCTIONS[:3]) == []


def test_what_an_exchange_needs_must_be_there():
    for group, begins in machine_code.REQUIRED.items():
        lacks = [f"no {operation}" for operation in begins]
        assert faults(group) == [what for what in lacks if what != "no LDG.E.STRONG.GPU"]


def test_forbidden_operations_in_a_loop_are_faults():
    for operation, what in (
        ("MEMBAR.ALL.GPU", "fence"),
        ("CCTL.IVALL", "L1 invalidation"),
        ("MAPA R30, R31", "address mapping"),
        ("LDL R30, [R1]", "local memory"),
        ("STL [R1], R30", "local memory"),
        ("I2F.U32.RP R30, R31", "integer division"),
        ("I2F R30, R31", None),
    ):
        for group in ("BlockGroup", *FENCING):
            allowed = None, *(("fence", "L1 invalidation") if group in FENCING else ())
            found = faults(group, operation, *machine_code.REQUIRED.get(group, ()))
            assert found == ([] if what in allowed else [what])


def test_a_cluster_barrier_needs_whole_warps():
    needed = machine_code.REQUIRED["ClusterGroup"]
    assert faults("ClusterGroup", "BSSY", "BSYNC", *needed) == []
    arrival, wait = faults("ClusterGroup", "BSSY", *needed)
    assert arrival == "UCGABAR_ARV where the warp may have parted"
    assert wait.startswith("UCGABAR_WAIT")


REPORT = """\
ptxas info    : Compiling entry function '_ZN6rnnext4cuda17recurrence_kernelIfEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN6rnnext4cuda17recurrence_kernelIfEEvi
    {} bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem, 424 bytes cmem[0]
ptxas info    : Function properties for _ZN6rnnext4cuda4stepEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_the_gate_refuses_kernels_that_keep_something_in_memory():
    assert cuda_build.faults(REPORT.format(0, 0, 0)) == []
    for sizes in ((8, 0, 0), (0, 8, 0), (0, 0, 8)):
        found = cuda_build.faults(REPORT.format(*sizes))
        assert found == ["recurrence_kernel<float> on sm_80: registers spilled"]
