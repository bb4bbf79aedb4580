"""PTX as text into kernels: instructions in basic blocks, with what is live between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TYPES = {
    "pred": "p", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2",
    "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8",
    "f64": "f8", "b128": "b16", "f16": "f2",
}  # fmt: skip
# What a warp does together: a basic block begins where these do.
TOGETHER = ("shfl", "mma", "bar.warp", "vote", "barrier.cluster")
ENDS = ("bra", "ret", "exit", "trap", "bar.sync", "barrier.cluster", "nanosleep")
# What writes no register, whatever its first argument is.
STORES = ("st", "cp", "mbarrier", "bar", "barrier", "nanosleep", "bra")
BRACE = re.compile(r"[{}]")
# Loads that others' stores show up in: a loop around one waits.
STRONG = ("ld.acquire", "ld.relaxed", "ld.volatile", "mbarrier.try_wait")


@dataclass
class Instruction:
    op: str
    args: list[str]
    guard: str = ""  # "p" or "!p"
    line: int = 0

    @property
    def parts(self) -> list[str]:
        return self.op.split(".")

    def names(self) -> Iterator[tuple[str, bool]]:
        """Registers and symbols, and whether each is written."""
        stores = self.parts[0] in STORES and "try_wait" not in self.op
        for number, arg in enumerate(self.args):
            for name in re.findall(r"(?<!\w)[%$A-Za-z_][\w%$.@]*", arg):
                yield name, number == 0 and not stores and not arg.startswith("[")
        if self.guard:
            yield self.guard.lstrip("!"), False


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)
    following: list[int] = field(default_factory=list)

    last: Instruction = field(default_factory=lambda: Instruction("ret", []))
    together: Instruction | None = None  # the first one, where a warp executes it together
    strong: bool = False  # whether it looks for what others store


@dataclass(eq=False)
class Kernel:
    name: str
    params: list[tuple[str, int, int]] = field(default_factory=list)  # name, offset, size
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    shared: dict[str, int] = field(default_factory=dict)  # symbol: offset
    static_shared: int = 0
    threads: int = 1024  # at most
    blocks: list[Block] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def type_of(self, name: str) -> str | None:
        if name in self.registers:
            return self.registers[name]
        if found := re.fullmatch(r"(%[a-z]+)\d+", name):
            return self.registers.get(found[1])
        return None


def split(text: str) -> list[str]:
    """Arguments, by the commas outside of braces and brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def statements(text: str) -> Iterator[tuple[int, str]]:
    """What ends in a semicolon, a colon or a brace, with its line."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("//")[0].strip()
        while line:
            if line[0] in "{}" and not re.match(r"\{[^;]*\}\s*,", line):
                yield number, line[0]
                line = line[1:].strip()
            elif found := re.match(r"([$\w]+):", line):
                yield number, found[0]
                line = line[found.end() :].strip()
            else:
                body, _, line = line.partition(";")
                yield number, body.strip()
                line = line.strip()


def entries(ptx: str) -> dict[str, str]:
    """The text of each kernel of a file, by name."""
    outer = "".join(re.findall(r"^\.extern \.shared .*\n", ptx, re.MULTILINE))
    found = {}
    for match in re.finditer(r"^(?:\.visible |\.weak )?\.entry (\w+)\(", ptx, re.MULTILINE):
        at = depth = 0
        for brace in BRACE.finditer(ptx, match.end()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                at = brace.end()
                break
        found[match[1]] = outer + ptx[match.start() : at]
    return found


def kernel_of(text: str) -> Kernel:
    """One of entries()."""
    match = re.search(r"^\.?(?:visible |weak )?\.entry (\w+)\(", text, re.MULTILINE)
    assert match
    begin = text.index("\n{", match.end())
    kernel, at = Kernel(match[1]), 0
    for one in re.finditer(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\]", text):
        kernel.shared[one[1]] = 0
    for one in re.finditer(
        r"\.param (?:\.align (\d+) )?\.(\w+) (\w+)(?:\[(\d+)\])?", text[match.end() : begin]
    ):
        size = int(one[4]) if one[4] else int(TYPES[one[2]][1:])
        align = int(one[1]) if one[1] else size
        at = -(-at // align) * align
        kernel.params.append((one[3], at, size))
        at += size
    if found := re.search(r"\.maxntid (\d+)", text[match.end() : begin]):
        kernel.threads = int(found[1])
    _body(kernel, text[begin + 2 : text.rindex("\n}")], text[: begin + 2].count("\n"))
    _flow(kernel)
    return kernel


def _body(kernel: Kernel, text: str, first_line: int) -> None:
    """Fills blocks, labels and registers."""
    scopes: list[dict[str, str]] = [{}]
    number, block = 0, Block()
    kernel.blocks.append(block)

    def fresh() -> Block:
        if kernel.blocks[-1].instructions:
            kernel.blocks.append(Block())
        return kernel.blocks[-1]

    def renamed(word: str) -> str:
        def one(found: re.Match[str]) -> str:
            for scope in reversed(scopes[1:]):
                if found[0] in scope:
                    return scope[found[0]]
            return found[0]

        return re.sub(r"(?<!\w)[%$A-Za-z_][\w$]*", one, word) if len(scopes) > 1 else word

    lines = list(statements(text))
    for position, (line, statement) in enumerate(lines):
        if statement == "{":
            number += 1
            scope: dict[str, str] = {}
            depth = 0
            for _, other in lines[position:]:  # labels may be used before they are there
                depth += (other == "{") - (other == "}")
                if depth == 0:
                    break
                if depth == 1 and other.endswith(":"):
                    scope[other[:-1]] = f"{other[:-1]}@{number}"
            scopes.append(scope)
        elif statement == "}":
            scopes.pop()
        elif statement.endswith(":"):
            block = fresh()
            kernel.labels[renamed(statement[:-1])] = len(kernel.blocks) - 1
        elif found := re.match(r"\.reg \.(\w+)\s+(.*)", statement):
            for name in split(found[2]):
                family = re.fullmatch(r"(%\w+)<\d+>", name)
                plain = family[1] if family else name
                if len(scopes) > 1:
                    scopes[-1][plain] = f"{plain}@{number}"
                    plain = f"{plain}@{number}"
                kernel.registers[plain] = TYPES[found[1]]
        elif found := re.match(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", statement):
            at = -(-kernel.static_shared // int(found[1])) * int(found[1])
            kernel.shared[found[2]] = at
            kernel.static_shared = at + int(found[3])
        elif statement and not statement.startswith("."):
            found = re.match(r"(?:@(!?)([\w%$]+)\s+)?([a-z]\S*)\s*(.*)", statement)
            assert found, statement
            guard = (found[1] or "") + renamed(found[2]) if found[2] else ""
            args = [renamed(arg) for arg in split(found[4])]
            op = found[3]
            instruction = Instruction(op, args, guard, first_line + line)
            if instruction.op.startswith(TOGETHER):
                last = block.instructions[-1] if block.instructions else None
                shuffles = last and last.op.startswith("shfl") and last.args[-1] == args[-1]
                multiplies = last and last.op.startswith("mma") and op.startswith("mma")
                if last and not shuffles and not multiplies:
                    block = fresh()
            block = kernel.blocks[-1]
            block.instructions.append(instruction)
            if instruction.op.startswith(ENDS) and not instruction.op.startswith("bar.warp"):
                block = fresh()
    if not kernel.blocks[-1].instructions:
        kernel.blocks[-1].instructions.append(Instruction("ret", []))


def _flow(kernel: Kernel) -> None:
    """Successors, and liveness by iteration."""
    used: list[set[str]] = []
    defined: list[set[str]] = []
    for number, block in enumerate(kernel.blocks):
        last, first = block.instructions[-1], block.instructions[0]
        block.last, block.together = last, first if first.op.startswith(TOGETHER) else None
        block.strong = any(i.op.startswith(STRONG) for i in block.instructions)
        next_one = [number + 1] if number + 1 < len(kernel.blocks) else []
        if last.op.startswith("bra"):
            target = kernel.labels[last.args[0]]
            block.following = [target, *next_one] if last.guard else [target]
        elif last.op in ("ret", "exit", "trap"):
            block.following = next_one if last.guard else []
        else:
            block.following = next_one
        uses: set[str] = set()
        defs: set[str] = set()
        for instruction in block.instructions:
            names = [(n, w) for n, w in instruction.names() if kernel.type_of(n)]
            uses |= {n for n, w in names if not w and n not in defs}
            if instruction.guard and not instruction.op.startswith("bra"):
                uses |= {n for n, w in names if w and n not in defs}
            defs |= {n for n, w in names if w}
        used.append(uses)
        defined.append(defs)
    changed = True
    while changed:
        changed = False
        for number in range(len(kernel.blocks) - 1, -1, -1):
            block = kernel.blocks[number]
            out = set().union(*(kernel.blocks[f].live_in for f in block.following))
            live = used[number] | (out - defined[number])
            if live != block.live_in or out != block.live_out:
                block.live_in, block.live_out, changed = live, out, True
