"""What the step loop of each resident kernel holds, read from machine code: no GPU is needed.

`make cuda-build` prints the table for every kernel and architecture and fails where a loop holds
what it must not (`FORBIDDEN`). After it, `python -m tools.machine_code build/cuda/loops.json --doc
docs/cuda.md` writes some lines of it into the page.

The loop is found by its shape: of the loops that hold a barrier of the block, an innermost one. The
chain is an estimate: the longest path of results that wait for each other, with the latencies of
`LATENCY`, through a step whose branches are all taken and whose inner loops run once. A barrier
waits for all before it. Nothing waits for units that are busy or for other warps, so it is less
than a step takes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESIDENT = "recurrence_kernel"  # the template of the kernels that keep W_hh on chip
BEGIN, END = "<!-- machine code: begin -->", "<!-- machine code: end -->"

# Cycles from issue to use. Sources: arXiv:2402.13499 and arXiv:2501.12084 (H100: shared memory 29,
# L2 262, other SM 180, mma 32), arXiv:2208.11174 (A100: integer and FMA 4, conversions and
# functions 18 and more). Of stores: what passes until a barrier may count them.
LATENCY = {
    "HMMA": 32, "MUFU": 18, "F2I": 14, "I2F": 14, "F2F": 14, "DFMA": 8, "DADD": 8, "DMUL": 8,
    "DSETP": 8, "LDS": 29, "LDSM": 29, "STS": 20, "LDG": 262, "LD": 262, "LDL": 29, "STL": 20,
    "SHFL": 24, "S2R": 20, "S2UR": 20, "LDC": 20, "ULDC": 8, "R2UR": 8, "BAR": 20, "SYNCS": 20,
    "UCGABAR_WAIT": 180, "MEMBAR": 200, "CALL": 40,
}  # fmt: skip
USUAL = 4
# Results that nothing in the loop waits for.
STARTED = ("STG", "LDGSTS", "LDGDEPBAR", "RED", "ST", "STAS", "ATOM")

# What a step must not wait for, by how its operation begins. Integer division shows in the
# conversion that rounds up, of which floating point has no use.
FORBIDDEN = {
    "fence": ("MEMBAR", "ERRBAR", "CGAERRBAR"),
    "L1 invalidation": ("CCTL",),
    "address mapping": ("MAPA",),
    "local memory": ("LDL", "STL"),
    "integer division": ("I2F.RP", "I2F.U32.RP", "I2F.U64.RP"),
}
# Known of the fenced exchange alone (RNNEXT_CUDA_EXCHANGE), and printed with the table.
KNOWN = {
    "ClusterGroup": ("fence", "L1 invalidation"),
    "GridGroup": ("fence", "L1 invalidation"),
}

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(@!?U?P[0-9T]\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
REGISTER = re.compile(r"(?<!\w)(U?R\d+|U?P\d)(?!\w)")


# What ends a block of code. A call may also be the way out of a loop.
JUMPS = ("BRA", "EXIT", "RET", "BRX", "CALL")


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


def group_of(kernel: str) -> str:
    """Who shares the state: the last argument of the template."""
    return kernel.rstrip("> ").rpartition(" ")[2]


@dataclasses.dataclass
class Loop:
    """The step loop of one kernel on one architecture."""

    kernel: str
    arch: str
    instructions: int
    barriers: int
    chain: int
    held: dict[str, int]  # what of FORBIDDEN it holds, with how often

    @property
    def group(self) -> str:
        return group_of(self.kernel)

    @property
    def faults(self) -> list[str]:
        """What it holds and must not."""
        return [what for what in self.held if what not in KNOWN.get(self.group, ())]


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
        for found in re.findall(r"^arch = sm_(\w+)", part, re.MULTILINE):
            arch = found


def step_loop(code: list[Instruction]) -> list[Instruction]:
    """The instructions of the step loop, in the order of their addresses."""
    index = {instruction.at: i for i, instruction in enumerate(code)}
    starts = {0}
    for i, instruction in enumerate(code):
        target = instruction.target()
        if target in index:
            starts.add(index[target])
        if instruction.name in JUMPS and i + 1 < len(code):
            starts.add(i + 1)
    order = sorted(starts)
    block_of = {start: b for b, start in enumerate(order)}
    ends = [*order[1:], len(code)]
    following: list[list[int]] = []
    for end in ends:
        last = code[end - 1]
        to = []
        always = not last.guard and not re.match(r"\s*(U?!?U?P\d|!?P\d)", last.operands)
        target = last.target()
        if target in index:
            to.append(block_of[index[target]])
        if (last.name not in JUMPS or last.name == "CALL" or not always) and end < len(code):
            to.append(block_of[end])
        following.append(to)
    loops = natural_loops(following)
    holds = [
        loop
        for loop in loops
        if any(code[i].name == "BAR" for b in loop for i in range(order[b], ends[b]))
    ]
    innermost = [a for a in holds if not any(b < a for b in holds)]
    if not innermost:
        return []
    largest = max(innermost, key=lambda loop: sum(ends[b] - order[b] for b in loop))
    return [code[i] for b in sorted(largest) for i in range(order[b], ends[b])]


def natural_loops(following: list[list[int]]) -> list[set[int]]:
    """The loops of a flow graph whose entry is 0; those with one header are one."""
    count = len(following)
    before: list[list[int]] = [[] for _ in range(count)]
    for block, to in enumerate(following):
        for other in to:
            before[other].append(block)
    # Dominators, as bits, until nothing changes.
    every = (1 << count) - 1
    dominators = [1] + [every] * (count - 1)
    changed = True
    while changed:
        changed = False
        for block in range(1, count):
            common = every
            for other in before[block]:
                common &= dominators[other]
            common |= 1 << block
            if common != dominators[block]:
                dominators[block], changed = common, True
    loops: dict[int, set[int]] = {}
    for block, to in enumerate(following):
        for header in to:
            if not dominators[block] >> header & 1 or dominators[block] == every:
                continue
            loop, rest = loops.setdefault(header, {header}), [block]
            while rest:
                at = rest.pop()
                if at not in loop:
                    loop.add(at)
                    rest += before[at]
    return list(loops.values())


WIDE = ("DFMA", "DADD", "DMUL")  # of two registers
RESULTS = r"(\s*!?U?P[0-9T]\s*,)*[^,]*"  # predicates first, then the register
STORES = ("ST", "RED", "BAR", "BRA", "LDGSTS")  # whose operands are all read


def registers(instruction: Instruction) -> tuple[list[str], list[str]]:
    """What an instruction reads, and what it writes."""
    text, name = instruction.operands, instruction.name
    named = [(found[1], found.start()) for found in REGISTER.finditer(text)]
    end = -1 if name.startswith(STORES) else len(re.match(RESULTS, text)[0])  # type: ignore[index]
    four = name == "HMMA" or ".128" in instruction.operation
    two = name in WIDE or ".64" in instruction.operation or ".WIDE" in instruction.operation

    def spread(register: str, size: int) -> list[str]:
        kind, number = register.rstrip("0123456789"), int(re.sub(r"\D", "", register))
        return [f"{kind}{number + i}" for i in range(1 if "P" in kind else size)]

    writes, reads = [], REGISTER.findall(instruction.guard)
    for register, at in named:
        if at < end and not ("SETP" in name and "P" not in register):
            writes += spread(register, 4 if four else 2 if two else 1)
        else:
            wide = name in WIDE or text[at:].startswith(f"{register}.64")
            size = 4 if four and name.startswith(("HMMA", "ST")) else 2 if wide else 1
            reads += spread(register, size)
    return reads, writes


def chain(loop: list[Instruction]) -> int:
    """Cycles of the longest path of dependent results through the loop, once."""
    ready: dict[str, int] = {}
    floor = latest = 0
    for instruction in loop:
        reads, writes = registers(instruction)
        start = max([floor, *(ready.get(r, 0) for r in reads)])
        finish = start + LATENCY.get(instruction.name, USUAL)
        if instruction.name in ("BAR", "UCGABAR_WAIT", "SYNCS", "MEMBAR"):
            finish = max(start, latest) + LATENCY[instruction.name]
            floor = finish
        for r in writes:
            ready[r] = max(finish, ready.get(r, 0)) if instruction.guard else finish
        if instruction.name not in STARTED:
            latest = max(latest, finish)
    return latest


def read_loop(kernel: str, arch: str, code: list[Instruction]) -> Loop | None:
    """The step loop of a kernel; None if it has none."""
    loop = step_loop(code)
    if not loop:
        return None
    counts = Counter(
        what
        for instruction in loop
        for what, begins in FORBIDDEN.items()
        if instruction.operation.startswith(begins)
    )
    barriers = sum(i.name in ("BAR", "UCGABAR_WAIT") for i in loop)
    return Loop(kernel, arch, len(loop), barriers, chain(loop), dict(counts))


def readable(names: list[str]) -> list[str]:
    """Names of kernels without argument lists, namespaces and numbers of an enum."""
    header = (ROOT / "csrc" / "recurrence" / "nonlinearity.h").read_text()
    nonlinearities = re.findall(r"X\((\w+)\)", header.partition("RNNEXT_NONLINEARITIES(X)")[2])
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    result = []
    for name in done.stdout.splitlines():
        name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
        name = re.sub(r"rnnext::(cuda::)?", "", name)
        name = re.sub(r"\(Nonlinearity\)(\d+)", lambda found: nonlinearities[int(found[1])], name)
        result.append(re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name))
    return result


def read_object(path: Path, environment: dict[str, str]) -> list[Loop]:
    """The step loops of the resident kernels in an object."""
    done = subprocess.run(
        ["cuobjdump", "-sass", str(path)],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    found = list(functions(done.stdout))
    names = readable([name for name, _, _ in found])
    loops = [
        read_loop(name, arch, code)
        for name, (_, arch, code) in zip(names, found, strict=True)
        if name.startswith(RESIDENT)
    ]
    return [loop for loop in loops if loop]


def read(objects: list[Path], environment: dict[str, str]) -> list[Loop]:
    """The same of several objects."""
    with concurrent.futures.ProcessPoolExecutor() as pool:
        each = pool.map(functools.partial(read_object, environment=environment), objects)
        return [loop for loops in each for loop in loops]


def dumps(loops: list[Loop]) -> str:
    return json.dumps([dataclasses.asdict(loop) for loop in loops])


def runs(kernel: str, arch: str) -> bool:
    """Whether a resident kernel is more than a stub there: clusters exist from sm_90 on."""
    return int(arch.rstrip("af")) >= (90 if "Cluster" in group_of(kernel) else 80)


def faults(loops: list[Loop], kernels: set[tuple[str, str]]) -> list[str]:
    """What is wrong, one line each. `kernels`: name and architecture of all resident ones."""
    wrong = [
        f"{x.kernel} on sm_{x.arch}: {what} in the step loop" for x in loops for what in x.faults
    ]
    missing = {each for each in kernels if runs(*each)} - {(x.kernel, x.arch) for x in loops}
    return wrong + [f"{name} on sm_{arch}: no step loop found" for name, arch in sorted(missing)]


def known(loops: list[Loop]) -> list[str]:
    """What loops hold that they should not, and may: one line a group."""
    lines = []
    for group, each in KNOWN.items():
        counts = [(what, sum(x.group == group and what in x.held for x in loops)) for what in each]
        held = ", ".join(f"{what} in {count} step loops" for what, count in counts if count)
        if held:
            lines.append(f"known, in the fenced exchange alone: {group}: {held}")
    return lines


def table(loops: list[Loop]) -> str:
    """A line a kernel: instructions, barriers and chain of its step on each architecture."""
    archs = sorted({x.arch for x in loops}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    rows: dict[str, dict[str, Loop]] = {}
    for x in loops:
        rows.setdefault(x.kernel, {})[x.arch] = x
    width = max(map(len, rows), default=0)
    lines = [f"{'a step: instructions, barriers, chain in cycles (an estimate)':{width}}"]
    lines[0] += "".join(f"  {'sm_' + arch:>13}" for arch in archs)
    for kernel, by_arch in sorted(rows.items()):
        line = f"{kernel:{width}}"
        for arch in archs:
            cell = "-"
            if arch in by_arch:
                x = by_arch[arch]
                cell = f"{x.instructions} {x.barriers} {x.chain}"
            line += f"  {cell:>13}"
        held = sorted({what for x in by_arch.values() for what in x.held})
        lines.append(line + (f"  {', '.join(held)}" if held else ""))
    return "\n".join(lines)


def markdown(loops: list[Loop]) -> str:
    """The lines of docs/cuda.md: bfloat16, tanh."""
    archs = sorted({x.arch for x in loops}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    rows: dict[tuple[str, str], dict[str, Loop]] = {}
    for x in loops:
        found = re.search(r"(\w+)<__nv_bfloat16, Fixed<tanh> >", x.kernel)
        if found:
            rows.setdefault((x.group.removesuffix("Group"), found[1].lower()), {})[x.arch] = x
    lines = [f"| group | pass | {' | '.join('sm_' + arch for arch in archs)} | holds |"]
    lines.append("|---" * (len(archs) + 3) + "|")
    for (group, direction), by_arch in sorted(rows.items()):
        cells = ["-"] * len(archs)
        for arch, x in by_arch.items():
            cells[archs.index(arch)] = f"{x.instructions}, {x.barriers}, {x.chain}"
        most = Counter[str]()
        for x in by_arch.values():
            most |= Counter(x.held)
        holds = ", ".join(f"{what} {count}" for what, count in sorted(most.items()))
        lines.append(f"| {group} | {direction} | {' | '.join(cells)} | {holds or 'nothing'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.machine_code")
    parser.add_argument("objects", type=Path, help="a folder of objects, or loops.json")
    parser.add_argument("--doc", type=Path, help="the page whose table is written anew")
    options = parser.parse_args()
    if options.objects.suffix == ".json":
        loops = [Loop(**each) for each in json.loads(options.objects.read_text())]
    else:
        loops = read(sorted(options.objects.rglob("kernel_*.o")), dict(os.environ))
    if options.doc is None:
        print("\n".join([table(loops), *known(loops)]))
        return
    before, _, rest = options.doc.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{options.doc} has no lines {BEGIN} and {END}")
    options.doc.write_text(f"{before}{BEGIN}\n\n{markdown(loops)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
