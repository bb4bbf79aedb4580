"""PTX as text into kernels: instructions in basic blocks."""

import functools
import itertools
import re
from dataclasses import dataclass, field

TYPES = {
    "pred": "p", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2",
    "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8",
    "f64": "f8", "f16": "f2",
}  # fmt: skip
# A whole warp executes these together: they begin a basic block.
TOGETHER = ("shfl", "mma", "bar.warp", "barrier.cluster")
ENDS = ("bra", "ret", "exit", "trap", "bar.arrive", "barrier.cluster", "nanosleep")
# Instructions that write no register, whatever their first argument is.
STORES = ("st", "cp", "bar", "barrier", "nanosleep", "bra")
# Loads that others' stores show up in: a loop around one waits.
STRONG = ("ld.acquire", "ld.relaxed", "ld.volatile")
# A scope of names: braces around statements, which a vector's braces do not hold.
SCOPE = re.compile(r"\{((?:[^{}]|\{[^{};]*\})*;\s*)\}")
# The call of a failed assertion, which prints and ends the kernel.
ASSERTION = re.compile(r"\{ // callseq (\d+)[^}]*__assertfail[^}]*\} // callseq \1\b")
WORD = re.compile(r"(?<![\w$%])[%$A-Za-z_][\w$%.]*")


@dataclass
class Instruction:
    op: str
    args: list[str]
    guard: str = ""  # "p" or "!p"
    line: int = 0

    @functools.cached_property
    def parts(self) -> list[str]:
        return self.op.split(".")

    @functools.cached_property
    def names(self) -> list[tuple[str, bool]]:
        """Registers and symbols, and whether each is written."""
        found = [(self.guard.lstrip("!"), False)] if self.guard else []
        for number, arg in enumerate(self.args):
            written = number == 0 and self.parts[0] not in STORES and not arg.startswith("[")
            found += [(name, written) for name in WORD.findall(arg)]
        return found


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)

    @functools.cached_property
    def together(self) -> bool:
        return self.instructions[0].op.startswith(TOGETHER)

    @functools.cached_property
    def strong(self) -> bool:
        """Whether it looks for what others store."""
        return any(i.op.startswith(STRONG) for i in self.instructions)


@dataclass(eq=False)
class Kernel:
    name: str
    params: list[tuple[str, int, int]] = field(default_factory=list)  # name, offset, size
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    shared: list[str] = field(default_factory=list)  # symbols of the memory that a launch gives
    threads: int = 1024  # at most
    timed: bool = False  # it looks at the clock: its waits end by themselves
    blocks: list[Block] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def type_of(self, name: str) -> str | None:
        if name in self.registers:
            return self.registers[name]
        if found := re.fullmatch(r"(%[a-z]+)\d+", name):
            return self.registers.get(found[1])
        return None

    def open_block(self) -> None:
        """Begin a block of its own."""
        if not self.blocks or self.blocks[-1].instructions:
            self.blocks.append(Block())

    def add(self, instruction: Instruction) -> None:
        """An instruction at the end of the last block, or of a new one."""
        op, before = instruction.op, self.blocks[-1].instructions
        if op.startswith(TOGETHER) and before:
            last = before[-1]
            shuffles = last.parts[0] == "shfl" and last.args[-1] == instruction.args[-1]
            if not shuffles and not last.parts[0] == instruction.parts[0] == "mma":
                self.open_block()
        self.blocks[-1].instructions.append(instruction)
        if op.startswith(ENDS):
            self.open_block()


def split(text: str) -> list[str]:
    """Arguments, by the commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:[^,{}\[\]]|\{[^{}]*\}|\[[^\[\]]*\])+", text)]


def entries(ptx: str) -> dict[str, str]:
    """The text of each kernel of a file, by name."""
    outer = "".join(re.findall(r"^\.extern \.shared .*\n", ptx, re.MULTILINE))
    kernel = r"^(?:\.visible |\.weak )?\.entry (\w+)\([\s\S]*?\n\n}$"
    return {match[1]: outer + match[0] for match in re.finditer(kernel, ptx, re.MULTILINE)}


@functools.cache
def kernel_of(text: str) -> Kernel:
    """One of entries()."""
    match = re.search(r"^\.?(?:visible |weak )?\.entry (\w+)\(", text, re.MULTILINE)
    assert match
    begin = text.index("\n{", match.end())
    kernel, at = Kernel(match[1]), 0
    kernel.shared = re.findall(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\]", text)
    head = text[match.end() : begin]
    for one in re.finditer(r"\.param (?:\.align (\d+) )?\.(\w+) (\w+)(?:\[(\d+)\])?", head):
        size = int(one[4]) if one[4] else int(TYPES[one[2]][1:])
        align = int(one[1]) if one[1] else size
        at = -(-at // align) * align
        kernel.params.append((one[3], at, size))
        at += size
    if found := re.search(r"\.maxntid (\d+)", text[match.end() : begin]):
        kernel.threads = int(found[1])
    kernel.timed = "%clock64" in text
    body = text[begin + 2 : text.rindex("\n}")]
    body = ASSERTION.sub(lambda call: "trap;" + "\n" * call[0].count("\n"), body)
    body, numbers = re.sub("//.*", "", body), itertools.count()
    body = SCOPE.sub(lambda scope: _renamed(scope[1], next(numbers)), body)
    kernel.open_block()
    for number, line in enumerate(body.splitlines(), text[: begin + 2].count("\n") + 1):
        for statement in re.findall(r"[$\w]+:(?!:)|[^\s;][^;]*;", line):
            _add(kernel, statement.rstrip(";"), number)
    if not kernel.blocks[-1].instructions:
        kernel.add(Instruction("ret", []))
    return kernel


def _renamed(scope: str, number: int) -> str:
    """The statements of a scope, with names that are nobody else's."""
    for name in re.findall(r"\.reg \.\w+\s+([\w%]+);|^\s*(\w+):", scope, re.MULTILINE):
        word = "".join(name)
        scope = re.sub(rf"(?<![\w%$.]){word}\b", f"{word}_in_{number}", scope)
    return scope


def _add(kernel: Kernel, statement: str, line: int) -> None:
    if statement.endswith(":"):
        kernel.open_block()
        kernel.labels[statement[:-1]] = len(kernel.blocks) - 1
    elif found := re.match(r"\.reg \.(\w+)\s+(.*)", statement):
        for name in split(found[2]):
            kernel.registers[name.partition("<")[0]] = TYPES[found[1]]
    elif not statement.startswith("."):
        found = re.match(r"(?:@(!?[\w%$]+)\s+)?([a-z]\S*)\s*(.*)", statement)
        assert found, statement
        guard, op, args = found[1] or "", found[2], split(found[3])
        # bar.sync is an arrival, and a wait, with which a basic block begins.
        for one in ["bar.arrive", "bar.wait"] if op == "bar.sync" else [op]:
            kernel.add(Instruction(one, args, guard, line))
