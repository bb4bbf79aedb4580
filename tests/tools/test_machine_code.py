"""The reader of machine code finds the step loop, counts what it holds, refuses what it must."""

import sys

import pytest

from tools import machine_code
from tools.machine_code import BEGIN, END, Loop

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
    return f"arch = sm_{arch}\nhost = linux\n\t\tFunction : {name}\n{code}"


def loop_of(extra="FADD R22, R22, R23", kernel="kernel"):
    ((_, arch, code),) = machine_code.functions(sass(extra))
    return machine_code.read_loop(kernel, arch, code)


def test_the_step_loop_is_the_inner_one_with_a_barrier():
    loop = loop_of()
    assert (loop.arch, loop.instructions, loop.barriers, loop.held) == ("90", 14, 1, {})


def test_the_chain_follows_results_and_barriers():
    # LDS 29, HMMA 32, STS 20, BAR 20, LDS 29, FADD 4, MUFU 18
    assert loop_of().chain == max(29 + 32 + 20 + 20 + 29 + 4 + 18, 101 + 262 + 4 + 4)
    # A load that the product waits for comes before; one that nothing waits for does not.
    assert loop_of("SHFL.IDX PT, R8, R8, RZ, 0x1f").chain == loop_of().chain + 24
    assert loop_of("LDGSTS.E [R40], [R18.64]").chain == loop_of().chain


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
    assert loop_of("I2F R30, R31").faults == []
    loop = loop_of(extra, "recurrence_kernel<E, P, BlockGroup>")
    assert loop.faults == [what]
    assert machine_code.faults([loop], set()) == [
        f"{loop.kernel} on sm_90: {what} in the step loop"
    ]


@pytest.mark.parametrize("group", ["ClusterGroup", "GridGroup"])
@pytest.mark.parametrize("extra", FORBIDDEN)
def test_fences_are_known_in_groups_that_fence_and_said(extra, group):
    what = FORBIDDEN[extra]
    loop = loop_of(extra, f"recurrence_kernel<E, P, {group}>")
    if what in ("fence", "L1 invalidation"):
        assert loop.faults == []
        assert machine_code.known([loop, loop_of()]) == [
            f"known, in the fenced exchange alone: {group}: {what} in 1 step loops"
        ]
    else:
        assert loop.faults == [what]
        assert machine_code.known([loop]) == []
    # The tagged exchange may hold none of it.
    tagged = {"ClusterGroup": "AsyncClusterGroup", "GridGroup": "TaggedGridGroup"}[group]
    assert loop_of(extra, f"recurrence_kernel<E, P, {tagged}>").faults == [what]


def test_a_kernel_without_a_loop_is_a_fault():
    assert machine_code.faults([loop_of()], {("kernel", "90")}) == []
    (fault,) = machine_code.faults([loop_of()], {("kernel", "90"), ("kernel", "80")})
    assert fault == "kernel on sm_80: no step loop found"
    # Where no card can run it, there is none.
    stubs = {
        ("k<BlockGroup>", "75"),
        ("k<E, AsyncClusterGroup>", "80"),
        ("k<E, ClusterGroup>", "89"),
    }
    assert machine_code.faults([], stubs) == []
    (fault,) = machine_code.faults([], {("k<E, AsyncClusterGroup>", "100a")})
    assert fault == "k<E, AsyncClusterGroup> on sm_100a: no step loop found"


def test_architectures_follow_their_headers():
    text = sass(arch="80", name="a") + sass(arch="120a", name="b")
    assert [(name, arch) for name, arch, _ in machine_code.functions(text)] == [
        ("a", "80"), ("b", "120a"),
    ]  # fmt: skip


def test_the_page_gets_the_lines_of_one_type(tmp_path, monkeypatch):
    page, loops = tmp_path / "page.md", tmp_path / "loops.json"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    kernel = "recurrence_kernel<MatrixEngine<__nv_bfloat16, __nv_bfloat16>, "
    kernel += "Forward<__nv_bfloat16, Fixed<tanh> >, {}Group>"
    found = [
        Loop(kernel.format("Grid"), "90", 700, 4, 1200, {"fence": 3}),
        Loop(kernel.format("Grid"), "80", 600, 4, 1100, {"fence": 2}),
        Loop(kernel.format("Block").replace("tanh", "relu"), "90", 500, 2, 700, {}),
    ]
    loops.write_text(machine_code.dumps(found))
    monkeypatch.setattr(sys, "argv", ["machine_code", str(loops), "--doc", str(page)])
    machine_code.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\n\nafter\n")
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| group | pass | sm_80 | sm_90 | holds |",
        "|---|---|---|---|---|",
        "| Grid | forward | 600, 4, 1100 | 700, 4, 1200 | fence 3 |",
    ]
    assert "recurrence_kernel<MatrixEngine" in machine_code.table(found)
