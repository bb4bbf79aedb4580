"""A gate on machine code: what the step loop of a resident kernel must not hold, and what it must.

The loop is found by its shape: of the loops that hold a barrier of the block, an innermost one.
`make cuda-build` fails where a loop holds what it must not wait for, or lacks what makes its
exchange right.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

RESIDENT = "recurrence_kernel"  # the template of the kernels that keep W_hh on chip

# Operations that a step must not wait for, by how they begin. Integer division shows in the
# conversion that rounds up, of which floating point has no use.
FORBIDDEN = {
    "fence": ("MEMBAR", "ERRBAR", "CGAERRBAR"),
    "L1 invalidation": ("CCTL",),
    "address mapping": ("MAPA",),
    "local memory": ("LDL", "STL"),
    "integer division": ("I2F.RP", "I2F.U32.RP", "I2F.U64.RP"),
}
# Operations that only these groups may have, and those that each must have: a barrier of the
# cluster, or a flag with its fence.
ALLOWED = {"ClusterGroup": ("fence", "L1 invalidation"), "GridGroup": ("fence", "L1 invalidation")}
REQUIRED = {
    "ClusterGroup": ("UCGABAR_ARV", "UCGABAR_WAIT", "MEMBAR"),
    "GridGroup": ("LDG.E.STRONG.GPU", "STG.E.STRONG.GPU", "MEMBAR"),
}

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(@!?U?P[0-9T]\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


@dataclasses.dataclass
class Instruction:
    at: int
    guard: str
    operation: str
    operands: str

    @property
    def name(self) -> str:
        return self.operation.split(".")[0]

    def target(self) -> int | None:
        """Where a branch or call goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands.strip())
        return int(found[1], 16) if found and self.name in ("BRA", "CALL") else None

    def goes_on(self) -> bool:
        """Whether the next instruction may follow. (A call may be the way out of a loop.)"""
        sometimes = self.guard or re.match(r"\s*(U?!?U?P\d|!?P\d)", self.operands)
        return bool(sometimes) or self.name not in ("BRA", "EXIT", "RET", "BRX")


def functions(sass: str) -> Iterator[tuple[str, str, list[Instruction]]]:
    """Name, architecture and code of each function in what `cuobjdump -sass` prints."""
    arch = ""
    for part in re.split(r"\n\s*Function : ", sass):
        name, _, text = part.partition("\n")
        code = [
            Instruction(int(at, 16), guard.strip(), operation, operands)
            for at, guard, operation, operands in INSTRUCTION.findall(text)
        ]
        if code:
            yield name.strip(), arch, code
        for found in re.findall(r"^\s*code for sm_(\w+)", part, re.MULTILINE):
            arch = found


def step_loop(code: list[Instruction]) -> list[Instruction]:
    """The instructions of the step loop, in the order of their addresses."""
    index = {instruction.at: i for i, instruction in enumerate(code)}
    before: list[list[int]] = [[] for _ in code]  # from where each is reached
    for i, instruction in enumerate(code):
        target = instruction.target()
        if target in index:
            before[index[target]].append(i)
        if instruction.goes_on() and i + 1 < len(code):
            before[i + 1].append(i)
    holds = [loop for loop in loops(before) if any(code[i].name == "BAR" for i in loop)]
    innermost = [a for a in holds if not any(b < a for b in holds)]
    largest: set[int] = max(innermost, key=len, default=set())
    return [code[i] for i in sorted(largest)]


def loops(before: list[list[int]]) -> list[set[int]]:
    """The natural loops of code that is entered at 0; those with one header are one.

    A jump back makes a loop with its target if every way from the entry to the jump passes the
    target: then a walk back from the jump that stops there never meets the entry.
    """
    found: dict[int, set[int]] = {}
    for header, sources in enumerate(before):
        for jump in (source for source in sources if source >= header):
            loop, rest = {header}, [jump]
            while rest and 0 not in loop:
                at = rest.pop()
                if at not in loop:
                    loop.add(at)
                    rest += before[at]
            if 0 not in loop:
                found.setdefault(header, set()).update(loop)
    return list(found.values())


def group_of(kernel: str) -> str:
    """The group that shares the state: the last argument of the template."""
    return kernel.rstrip("> ").rpartition(" ")[2]


def parted(loop: list[Instruction]) -> Iterator[str]:
    """Cluster barriers where the warp, which must be whole, may have parted."""
    state = ""
    for instruction in loop:
        if instruction.name in ("BSSY", "BSYNC", "WARPSYNC", "BAR"):
            state = instruction.name
        if instruction.name.startswith("UCGABAR") and state == "BSSY":
            yield f"{instruction.name} where the warp may have parted"


def loop_faults(kernel: str, loop: list[Instruction]) -> list[str]:
    """The operations that a step loop must not have, and has, or lacks."""

    def holds(begins: str | tuple[str, ...]) -> bool:
        return any(instruction.operation.startswith(begins) for instruction in loop)

    group = group_of(kernel)
    refused = FORBIDDEN.keys() - ALLOWED.get(group, ())
    held = [what for what, begins in FORBIDDEN.items() if what in refused and holds(begins)]
    lacks = [f"no {begins}" for begins in REQUIRED.get(group, ()) if not holds(begins)]
    return [*held, *lacks, *parted(loop)]


def readable(names: list[str]) -> list[str]:
    """Names of kernels with the arguments of their templates, without namespaces."""
    shown = subprocess.check_output(["c++filt", "--no-params"], input="\n".join(names), text=True)
    return re.sub(r"rnnext::(cuda::)?|\(anonymous namespace\)::", "", shown).splitlines()


def runs(kernel: str, arch: str) -> bool:
    """Whether a resident kernel is more than a trap there: clusters exist from sm_90 on."""
    return int(arch.rstrip("af")) >= (90 if "Cluster" in group_of(kernel) else 80)


def faults(cubin: Path) -> tuple[int, list[str]]:
    """How many step loops an object has, and what is wrong with them, one line each."""
    sass = subprocess.check_output(["cuobjdump", "-sass", str(cubin)], text=True)
    found = [f for f in functions(sass) if RESIDENT in f[0]]
    names = readable([name for name, _, _ in found])
    count, wrong = 0, []
    for name, (_, arch, code) in zip(names, found, strict=True):
        kernel, loop = f"{name} on sm_{arch}", step_loop(code)
        count += bool(loop)
        if loop:
            wrong += [f"{kernel}: {what} in the step loop" for what in loop_faults(name, loop)]
        elif runs(name, arch):
            wrong.append(f"{kernel}: no step loop found")
    return count, wrong
