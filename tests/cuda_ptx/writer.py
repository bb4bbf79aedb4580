"""Basic blocks of PTX as functions of Python: a register is a numpy array with an element for each
lane, or one number where all lanes have the same."""

import re
import struct
from collections.abc import Callable
from typing import Any

from cuda_ptx import arithmetic
from cuda_ptx.arithmetic import KINDS, SIZE
from cuda_ptx.memory import Fault
from cuda_ptx.parse import TYPES, Block, Instruction, Kernel, split
from cuda_ptx.warp import FORMATS

# An operation in Python; the kinds of its operands, the last of which repeats; and the kind of its
# result, unless it is that of the first operand; "": it has no result. k: the
# instruction's type; u: the same without a sign; w: twice as wide; 4: u32; p: a predicate;
# A: an address and an offset; =: as it stands.
FORMS = {
    "abs": ("np.abs({})", "k"),
    "add": ("{} + {}", "u"),
    "add.rz": ("toward_zero({}, {})", "k"),
    "and": ("{} & {}", "k"),
    "atom.global.cas": ("m.compare_and_swap(L, {}, {}, {})", "Ak", "k"),
    "bfi": ("inserted({}, {}, {}, {})", "kk4"),
    "copysign": ("np.copysign({1}, {0})", "k"),
    "cp.async.ca.shared.global": ("m.copy(L, {}, {}, {})", "AA=", ""),
    "cp.async.cg.shared.global": ("m.copy(L, {}, {}, {})", "AA=", ""),
    "cp.async.commit_group": ("m.commit(L)", "=", ""),
    "cp.async.wait_group": ("m.wait_copies(L, {})", "=", ""),
    "cvta.global": ("{}", "k"),
    "cvta.shared": ("m.generic({})", "k"),
    "cvta.to.global": ("{}", "k"),
    "div": ("quotient({}, {})", "k"),
    "ex2": ("np.exp2({})", "k"),
    "fma": ("fma_{kind}({}, {}, {})", "k"),
    "fma.rm": ("fma_down_{kind}({}, {}, {})", "k"),
    "mad": ("{} * {} + {}", "u"),
    "mapa": ("m.mapa({}, {})", "k4"),
    "max": ("np.fmax({}, {})", "k"),
    "membar.sys": ("m.release(L)", "=", ""),
    "min": ("np.fmin({}, {})", "k"),
    "mul": ("{} * {}", "u"),
    "mul.hi": ("high({}, {})", "k"),
    "mul.wide": ("wide({}, {})", "k", "w"),
    "neg": ("-{}", "k"),
    "not": ("~({})", "k"),
    "or": ("{} | {}", "k"),
    "rcp": ("np.reciprocal({})", "k"),
    "rem": ("{0} - quotient({0}, {1}) * {1}", "k"),
    "selp": ("np.where({2}, {0}, {1})", "kkp"),
    "shfl.sync.bfly": ('m.shuffle(L, {}, {}, {}, {})', "k4"),
    "shl": ("shifted({}, {}, True)", "u4"),
    "shr": ("shifted({}, {}, False)", "k4"),
    "sub": ("{} - {}", "u"),
    "xor": ("{} ^ {}", "k"),
}  # fmt: skip
# Comparisons; those with u also hold where a number is NaN, as their opposites do not.
LESS_OR_GREATER = "({0} < {1}) | ({0} > {1})"
for _name, _form, _opposite in (
    ("eq", "{} == {}", LESS_OR_GREATER),
    ("ne", LESS_OR_GREATER, "{} == {}"),
    ("lt", "{} < {}", "{} >= {}"),
    ("le", "{} <= {}", "{} > {}"),
    ("gt", "{} > {}", "{} <= {}"),
    ("ge", "{} >= {}", "{} < {}"),
):
    FORMS[f"setp.{_name}"] = (_form, "k", "p")
    FORMS[f"setp.{_name}u"] = (f"~({_opposite})", "k", "p")
# Conversions that numpy's astype() does not do, with the kinds of what they take and give.
CONVERSIONS = {
    "cvt.rn.bf16.f32": ("to_bf16", "f4", "u2"),
    "cvt.f32.bf16": ("of_bf16", "u2", "f4"),
    "cvt.rna.tf32.f32": ("to_tf32", "f4", "u4"),
    "cvt.sat.f32.f32": ("saturated", "f4", "f4"),
    "cvt.rni.f32.f32": ("np.rint", "f4", "f4"),
}
# The machine does these, or waits for them, before or behind a block.
OF_THE_MACHINE = {
    "bar.arrive", "bar.wait", "bar.warp.sync", "nanosleep.u32", "ret", "exit",
    "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned",
    "barrier.cluster.wait.acquire.aligned",
}  # fmt: skip


class Unknown(Exception):
    """An instruction that nobody has implemented."""


def vector(i: Instruction) -> int:
    return 4 if "v4" in i.parts else 2 if "v2" in i.parts else 1


def space(i: Instruction) -> str:
    return next((s for s in ("global", "shared") if s in i.op), "generic")


def order(i: Instruction) -> str:
    words = ("acquire", "release", "relaxed", "volatile")
    found = next((word for word in words if word in i.parts), "plain")
    if found in ("acquire", "release", "relaxed"):  # blocks of the grid meet by these alone
        if not {"gpu", "sys"} & set(i.parts):
            raise Fault(f"{i.op}: other blocks are outside its scope")
        if vector(i) > 1:
            raise Fault(f"{i.op}: a vector is several accesses, in no order")
    return found


class Writer:
    """The source of one block."""

    def __init__(self, kernel: Kernel, constants: dict[str, Any]) -> None:
        self.kernel, self.constants = kernel, constants
        self.lines: list[str] = []
        # Of parameters, and in shared memory.
        self.offsets = {name: at for name, at, _ in kernel.params} | dict.fromkeys(kernel.shared, 0)

    # ---- operands

    def constant(self, value, kind: str) -> str:
        if kind[0] in "ui":
            value &= (1 << 8 * SIZE[kind]) - 1
            made = KINDS["u" + kind[1]].type(value).view(KINDS[kind])
        else:
            made = KINDS[kind].type(value)
        name = f"K_{kind}_{bytes(made.tobytes()).hex()}"
        self.constants[name] = made
        return name

    def name(self, register: str) -> str:
        return "r_" + re.sub(r"\W", "_", register)

    def value(self, arg: str, kind: str) -> str:
        """An operand as elements of a kind."""
        own = self.kernel.type_of(arg)
        if own == kind:
            return self.name(arg)
        if own and SIZE[own] == SIZE[kind]:
            return f"{self.name(arg)}.view({kind})"
        if own and kind[0] != "f" and own[0] != "f":  # the low part
            return f"{self.name(arg)}.astype(u{kind[1]}).view({kind})"
        if own:
            raise Unknown(f"{arg} of {own} as {kind}")
        if found := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", arg):
            return self.constant(struct.unpack(">f", bytes.fromhex(found[1]))[0], kind)
        if found := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", arg):
            return self.constant(struct.unpack(">d", bytes.fromhex(found[1]))[0], kind)
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", arg):
            return self.constant(int(arg.rstrip("U"), 0), kind)
        if arg in self.offsets:
            return self.constant(self.offsets[arg], kind)
        if arg.startswith("%"):
            return f'm.special["{arg}"][L]'
        if arg.startswith(("$str", "__unnamed")):  # what an assertion says
            return self.constant(0, kind)
        raise Unknown(f"operand {arg}")

    def put(self, arg: str, expression: str, kind: str) -> None:
        """Writes an expression of a kind to a register."""
        if arg == "_":
            return
        own = self.kernel.type_of(arg)
        assert own, arg
        if own == kind:
            pass
        elif SIZE[own] == SIZE[kind]:
            expression = f"({expression}).view({own})"
        elif kind[0] in "ui" and own[0] == "u":
            # A narrow load or conversion fills the register, with its sign.
            expression = f"({expression}).astype({kind[0]}{SIZE[own]}).view({own})"
        else:
            raise Unknown(f"{kind} to {arg} of {own}")
        self.lines.append(f"{self.name(arg)} = {expression}")

    def address(self, arg: str) -> tuple[str, int]:
        found = re.fullmatch(r"\[([\w%$.]+)(?:\+(-?\d+))?\]", arg)
        if not found:
            raise Unknown(f"address {arg}")
        return self.value(found[1], self.kernel.type_of(found[1]) or "u8"), int(found[2] or 0)

    # ---- instructions

    def write(self, i: Instruction) -> None:
        if i.guard:
            raise Unknown(f"a guard before {i.op}")
        rounding = ("rn", "approx", "ftz", "lo")
        method: Callable[[Instruction], None] | None = getattr(self, "op_" + i.parts[0], None)
        if form := FORMS.get(".".join(p for p in i.parts if p not in (*TYPES, *rounding))):
            self.form(i, *form)
        elif method is not None:
            method(i)
        elif i.op not in OF_THE_MACHINE:
            raise Unknown(i.op)
        elif i.parts[0] == "bar" and i.args not in (["0"], ["-1"]):
            raise Unknown(f"{i.op} {i.args}")

    def form(self, i: Instruction, form: str, operands: str, result: str | None = None) -> None:
        k = TYPES.get(i.parts[-1], "")
        kinds = {"k": k, "u": k.replace("i", "u"), "4": "u4", "p": "p"}
        kinds["w"] = f"{k[:1]}{2 * SIZE.get(k, 0)}"
        given = i.args if result == "" else i.args[1:]
        letters = operands + operands[-1] * len(given)
        values = [self.operand(a, kinds, letter) for a, letter in zip(given, letters, strict=False)]
        text = form.format(*values, kind=k)
        if result == "":
            self.lines.append(text)
        else:
            self.put(i.args[0].partition("|")[0], text, kinds[result or operands[0]])

    def operand(self, arg: str, kinds: dict[str, str], letter: str) -> str:
        if letter == "=":
            return arg
        if letter == "A":
            base, at = self.address(arg)
            return f"{base}, {at}"
        return self.value(arg, kinds[letter])

    def op_cvt(self, i: Instruction) -> None:
        to, of = i.parts[-2:]
        if i.op in CONVERSIONS:
            function, of, to = CONVERSIONS[i.op]
            form = f"{function}({{}})"
        elif set(i.parts[1:-2]) - {"rn"}:
            raise Unknown(i.op)
        else:
            of, to = TYPES[of], TYPES[to]
            form = f"{{}}.astype({to})"
        self.put(i.args[0], form.format(self.value(i.args[1], of)), to)

    def op_mov(self, i: Instruction) -> None:
        to, of = i.args
        kind = TYPES[i.parts[-1]]
        if to.startswith("{"):
            parts = split(to[1:-1])
            size = SIZE[kind] // len(parts)
            for number, part in enumerate(parts):
                place = self.constant(8 * size * number, kind)
                self.put(part, f"({self.value(of, kind)} >> {place}).astype(u{size})", f"u{size}")
        elif of.startswith("{"):
            parts = split(of[1:-1])
            size = SIZE[kind] // len(parts)
            each = [
                f"({self.value(p, f'u{size}')}.astype({kind}) << "
                f"{self.constant(8 * size * n, kind)})"
                for n, p in enumerate(parts)
            ]
            self.put(to, " | ".join(each), kind)
        else:
            self.put(to, self.value(of, kind), kind)

    # ---- memory

    def op_ld(self, i: Instruction) -> None:
        kind, count = TYPES[i.parts[-1]], vector(i)
        base, at = self.address(i.args[1])
        to = split(i.args[0][1:-1]) if count > 1 else [i.args[0]]
        if i.parts[1] == "param":
            for number, register in enumerate(to):
                self.put(register, f"m.param({base}, {at + number * SIZE[kind]}, {kind})", kind)
            return
        if order(i) != "plain" and space(i) != "global":
            raise Unknown(i.op)
        loaded = [f"t{number}" for number in range(count)]
        call = f'm.load_{space(i)}(L, {base}, {at}, "{kind}", {count}, "{order(i)}")'
        self.lines.append(f"{', '.join(loaded)}, = {call}")
        for register, text in zip(to, loaded, strict=True):
            self.put(register, text, kind)

    def op_st(self, i: Instruction) -> None:
        kind = TYPES[i.parts[-1]]
        base, at = self.address(i.args[0])
        values = split(i.args[1][1:-1]) if vector(i) > 1 else [i.args[1]]
        given = f'({", ".join([self.value(v, kind) for v in values])},), "{kind}", "{order(i)}"'
        self.lines.append(f"m.store_{space(i)}(L, {base}, {at}, {given})")

    def op_mma(self, i: Instruction) -> None:
        d, a, b, c = (split(arg[1:-1]) for arg in i.args)
        form = i.op.removeprefix("mma.sync.aligned.")
        if form not in FORMATS:
            raise Unknown(i.op)
        texts = [self.value(x, "u4") for x in a + b] + [self.value(x, "f4") for x in c]
        self.lines.append(f't0, t1, t2, t3 = m.mma(L, "{form}", {", ".join(texts)})')
        for number, register in enumerate(d):
            self.put(register, f"t{number}", "f4")


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
        self.namespace: dict[str, Any] = vars(arithmetic) | KINDS
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
