"""Basic blocks of PTX as Python functions."""

from collections.abc import Callable
from typing import Any

from cuda_ptx import arithmetic
from cuda_ptx.parse import Block, Kernel
from cuda_ptx.writer import Writer


def reads(block: Block) -> set[str]:
    """The registers that a block reads before it writes them."""
    found: set[str] = set()
    written: set[str] = set()
    for i in block.instructions:
        found |= {n for n, writes in i.names if not writes and n not in written}
        written |= {n for n, writes in i.names if writes}
    return found


class Program:
    """The functions of a kernel's blocks, each made when it is needed."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # Registers that blocks hand on to others, with their types.
        handed = set().union(*map(reads, kernel.blocks))
        self.kept = {n: kind for n in handed if (kind := kernel.type_of(n))}
        self.namespace: dict[str, Any] = vars(arithmetic) | arithmetic.KINDS
        self.blocks: dict[int, Callable[..., Any]] = {}

    def block(self, number: int) -> Callable[..., Any]:
        """Takes machine, registers and lanes; returns who takes the branch."""
        if number not in self.blocks:
            lines = self._lines(self.kernel.blocks[number])
            source = "def run(m, R, L):\n" + "\n".join(f"    {line}" for line in lines)
            exec(compile(source, f"<{self.kernel.name}>", "exec"), self.namespace)
            self.blocks[number] = self.namespace["run"]
        return self.blocks[number]

    def _lines(self, block: Block) -> list[str]:
        writer = Writer(self.kernel, self.namespace)
        for i in block.instructions:
            if i.parts[0] not in ("bra", "trap"):
                writer.write(i)
        writes = {n for i in block.instructions for n, written in i.names if written}
        body = []
        for n in sorted(reads(block) & self.kept.keys()):
            copy = ".copy()" if n in writes else ""  # lest what is made of it change with it
            body.append(f'{writer.name(n)} = R["{n}"][L]{copy}')
        body += writer.lines
        body += [f'R["{n}"][L] = {writer.name(n)}' for n in sorted(writes & self.kept.keys())]
        if guard := block.instructions[-1].guard:
            text = writer.name(guard.lstrip("!"))
            body.append(f"return np.logical_not({text})" if guard[0] == "!" else f"return {text}")
        return body or ["pass"]
