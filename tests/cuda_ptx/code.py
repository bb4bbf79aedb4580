"""Basic blocks of PTX as Python functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from cuda_ptx.arithmetic import NAMESPACE
from cuda_ptx.parse import STORES, Block, Instruction, Kernel
from cuda_ptx.writer import SPECIAL, WHOLE, Writer

# What lanes do each for itself, beside loads.
EACH = (*STORES, "shfl", "vote", "atom", "mma", "mapa")


def same_for_all(kernel: Kernel) -> tuple[set[str], list[Instruction]]:
    """Registers that hold one number for all lanes, and the instructions that make them."""
    everything = [i for block in kernel.blocks for i in block.instructions]
    written = Counter(name for i in everything for name, writes in i.names if writes)
    known: set[str] = set()
    makers = []
    for i in everything:
        if i.guard or i.parts[0] in EACH or (i.parts[0] == "ld" and i.parts[1] != "param"):
            continue
        results = [n for n, writes in i.names if writes and kernel.type_of(n)]
        steady = all(
            n in known or n in WHOLE or (kernel.type_of(n) is None and n not in SPECIAL)
            for n, writes in i.names
            if not writes
        )
        wide = any(kernel.type_of(n) == "b16" for n in results)
        if results and steady and not wide and all(written[r] == 1 for r in results):
            known |= set(results)
            makers.append(i)
    return known, makers


def reads(block: Block) -> set[str]:
    """What a block reads before it writes it."""
    found: set[str] = set()
    written: set[str] = set()
    for i in block.instructions:
        found |= {n for n, writes in i.names if not writes and n not in written}
        written |= {n for n, writes in i.names if writes}
    return found


class Program:
    """The functions of a kernel: `start` makes what all lanes share, block(n) is made when it is
    needed."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.uniform, makers = same_for_all(kernel)
        # Registers that blocks hand on to others, with their types.
        handed = set().union(*map(reads, kernel.blocks)) - self.uniform
        self.kept = {n: kind for n in handed if (kind := kernel.type_of(n))}
        self.made = {id(i) for i in makers}
        self.namespace: dict[str, Any] = dict(NAMESPACE)
        writer = Writer(kernel, self.namespace)
        for i in makers:
            writer.write(i)
        names = ", ".join(f"{n!r}: {writer.name(n)}" for n in sorted(self.uniform))
        lines = ["L = slice(None)", *writer.lines, f"return {{{names}}}"]
        self.start = self._define("start", "m", lines)
        self.blocks: list[Callable[..., Any] | None] = [None] * len(kernel.blocks)

    def _define(self, name: str, arguments: str, lines: list[str]) -> Callable[..., Any]:
        source = f"def {name}({arguments}):\n" + "\n".join(f"    {line}" for line in lines)
        exec(compile(source, f"<{self.kernel.name}>", "exec"), self.namespace)
        return self.namespace[name]

    def block(self, number: int) -> Callable[..., Any]:
        """Takes machine, registers, what is shared, and lanes; returns who takes the branch."""
        if (function := self.blocks[number]) is None:
            lines = self._lines(self.kernel.blocks[number])
            function = self.blocks[number] = self._define(f"b{number}", "m, R, U, L", lines)
        return function

    def _lines(self, block: Block) -> list[str]:
        writer = Writer(self.kernel, self.namespace)
        for i in block.instructions:
            if id(i) not in self.made and i.parts[0] not in ("bra", "trap"):
                writer.write(i)
        names = [each for i in block.instructions for each in i.names]
        writes = {n for n, written in names if written} & self.kept.keys()
        body = []
        for n in sorted(reads(block) & self.kept.keys()):
            copy = ".copy()" if n in writes else ""  # lest what is made of it change with it
            body.append(f'{writer.name(n)} = R["{n}"][L]{copy}')
        uniform = {n for n, _ in names} & self.uniform
        body += [f'{writer.name(n)} = U["{n}"]' for n in sorted(uniform)]
        body += writer.lines
        body += [f'R["{n}"][L] = {writer.name(n)}' for n in sorted(writes)]
        if guard := block.last.guard:
            text = writer.name(guard.lstrip("!"))
            body.append(f"return np.logical_not({text})" if guard[0] == "!" else f"return {text}")
        return body or ["pass"]
