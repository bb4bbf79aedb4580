"""Arithmetic of PTX as lines of Python: a register is a numpy array with an element for each lane,
or one number where all lanes have the same."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from cuda_ptx.arithmetic import KINDS, SIZE
from cuda_ptx.parse import TYPES, Instruction, Kernel, split

COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<",
           "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
FORMS = {
    "abs": "np.abs({})", "and": "{} & {}", "brev": "reversed_bits({})",
    "clz": "leading_zeros({}, 32)", "copysign": "np.copysign({1}, {0})", "ex2": "np.exp2({})",
    "max": "np.fmax({}, {})", "min": "np.fmin({}, {})", "neg": "-{}", "or": "{} | {}",
    "rem": "{0} - quotient({0}, {1}) * {1}", "xor": "{} ^ {}",
}  # fmt: skip
SPECIAL = {"%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%laneid",
           "%cluster_ctarank"}  # fmt: skip
WHOLE = {"%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",
         "%cluster_nctarank"}  # fmt: skip


class Unknown(Exception):
    """An instruction that nobody has implemented."""


class Arithmetic:
    """The source of one block."""

    def __init__(self, kernel: Kernel, constants: dict[str, Any]) -> None:
        self.kernel, self.constants = kernel, constants
        self.lines: list[str] = []
        self.offsets = {name: at for name, at, _ in kernel.params}

    def constant(self, value: Any, kind: str) -> str:
        if kind == "p":
            return str(bool(value))
        if kind[0] != "f":
            bits = 8 * SIZE[kind]
            value &= (1 << bits) - 1
            made = KINDS["u" + kind[1]](value).view(KINDS[kind])
        else:
            made = KINDS[kind](value)
        name = f"K_{kind}_{bytes(made.tobytes()).hex()}"
        self.constants[name] = made
        return name

    def name(self, register: str) -> str:
        return "r_" + re.sub(r"\W", "_", register)

    def value(self, arg: str, kind: str) -> str:
        """An operand as elements of a kind."""
        negated = ""
        if arg.startswith("!"):
            arg, negated = arg[1:], "~"
        own = self.kernel.type_of(arg)
        if own == "b16":
            return self.name(arg)
        if own:
            text = self.name(arg)
            if own == kind:
                return negated + text
            if SIZE[own] == SIZE[kind]:
                return f"{text}.view({kind})"
            if kind[0] != "f" and own[0] != "f":  # the low part
                return f"{text}.astype(u{kind[1]}).view({kind})"
            raise Unknown(f"{arg} of {own} as {kind}")
        if found := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", arg):
            return self.constant(struct.unpack(">f", bytes.fromhex(found[1]))[0], kind)
        if found := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", arg):
            return self.constant(struct.unpack(">d", bytes.fromhex(found[1]))[0], kind)
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", arg):
            return self.constant(int(arg.rstrip("U"), 0), kind)
        if arg in self.offsets:
            return self.constant(self.offsets[arg], kind)
        if arg in self.kernel.shared:
            return self.constant(self.kernel.shared[arg], kind)
        if arg.startswith("%"):
            return f'm.special["{arg}"][L]' if arg in SPECIAL else self._whole(arg)
        raise Unknown(f"operand {arg}")

    def _whole(self, arg: str) -> str:
        if arg not in WHOLE:
            raise Unknown(f"operand {arg}")
        return f'm.whole["{arg}"]'

    def put(self, arg: str, expression: str, kind: str) -> None:
        """Writes an expression of a kind to a register."""
        if arg == "_":
            return
        own = self.kernel.type_of(arg)
        assert own, arg
        if own == kind or own == "b16":
            pass
        elif SIZE[own] == SIZE[kind]:
            expression = f"({expression}).view({own})"
        elif kind[0] in "ui" and own[0] == "u" and SIZE[own] > SIZE[kind]:
            # A narrow load or conversion fills the register.
            wide = f"i{SIZE[own]}" if kind[0] == "i" else own
            expression = f"({expression}).astype({wide}).view({own})"
        elif kind[0] in "ui" and own[0] == "u":
            expression = f"({expression}).astype({own})"
        else:
            raise Unknown(f"{kind} to {arg} of {own}")
        self.lines.append(f"{self.name(arg)} = {expression}")

    def address(self, arg: str) -> tuple[str, int]:
        found = re.fullmatch(r"\[([\w%$.@]+)(?:\+(-?\d+))?\]", arg)
        if not found:
            raise Unknown(f"address {arg}")
        own = self.kernel.type_of(found[1])
        return self.value(found[1], own or "u8"), int(found[2] or 0)

    def write(self, i: Instruction) -> None:
        if i.guard:
            raise Unknown(f"a guard before {i.op}")
        method: Callable[[Instruction], None] | None = getattr(self, "op_" + i.parts[0], None)
        if method is not None:
            method(i)
        elif form := FORMS.get(i.parts[0]):
            self.form(i, form)
        else:
            raise Unknown(i.op)

    # ---- arithmetic

    def kind(self, i: Instruction, at: int = -1) -> str:
        return TYPES[i.parts[at]]

    def form(self, i: Instruction, form: str, of: str | None = None, to: str | None = None) -> None:
        """Writes a form over operands of one kind."""
        of = of or self.kind(i)
        values = [self.value(arg, of) for arg in i.args[1:]]
        self.put(i.args[0], form.format(*values, kind=of), to or of)

    def op_add(self, i: Instruction) -> None:
        form = "toward_zero({}, {})" if "rz" in i.parts else "{} + {}"
        self.form(i, form, self.kind(i).replace("i", "u"))

    def op_sub(self, i: Instruction) -> None:
        self.form(i, "{} - {}", self.kind(i).replace("i", "u"))

    def op_mul(self, i: Instruction) -> None:
        kind = self.kind(i)
        wide = f"{kind[0]}{2 * SIZE[kind]}"
        product = f"{{}}.astype({wide}) * {{}}.astype({wide})"
        if "wide" in i.parts:
            self.form(i, product, kind, wide)
        elif "hi" in i.parts and SIZE[kind] == 4:
            self.form(i, f"(({product}) >> {self.constant(32, wide)}).astype({kind})")
        elif "hi" in i.parts:
            raise Unknown(i.op)
        else:
            self.form(i, "{} * {}", kind.replace("i", "u"))

    def op_mad(self, i: Instruction) -> None:
        kind = self.kind(i)
        if "wide" in i.parts:
            wide = f"{kind[0]}{2 * SIZE[kind]}"
            a, b = (self.value(arg, kind) for arg in i.args[1:3])
            c = self.value(i.args[3], wide)
            self.put(i.args[0], f"{a}.astype({wide}) * {b}.astype({wide}) + {c}", wide)
        elif "lo" in i.parts:
            self.form(i, "{} * {} + {}", kind.replace("i", "u"))
        else:
            raise Unknown(i.op)

    def op_fma(self, i: Instruction) -> None:
        if not {"rm", "rn"} & set(i.parts):
            raise Unknown(i.op)
        self.form(i, f"fma{'_down' if 'rm' in i.parts else ''}_{{kind}}({{}}, {{}}, {{}})")

    def op_div(self, i: Instruction) -> None:
        self.form(i, "{} / {}" if self.kind(i)[0] == "f" else "quotient({}, {})")

    def op_not(self, i: Instruction) -> None:
        self.form(i, "~({})" if self.kind(i) != "p" else "np.logical_not({})")

    def op_rcp(self, i: Instruction) -> None:
        self.form(i, f"{self.constant(1, self.kind(i))} / {{}}")

    def op_bfind(self, i: Instruction) -> None:
        if i.op != "bfind.shiftamt.u32":
            raise Unknown(i.op)
        self.form(i, "leading_zeros({})", "u4")

    def op_shl(self, i: Instruction) -> None:
        self._shift(i, "<<", self.kind(i).replace("i", "u"))

    def op_shr(self, i: Instruction) -> None:
        self._shift(i, ">>", self.kind(i))

    def _shift(self, i: Instruction, sign: str, kind: str) -> None:
        a, bits = self.value(i.args[1], kind), 8 * SIZE[kind]
        if re.fullmatch(r"\d+", i.args[2]):
            if int(i.args[2]) >= bits:
                raise Unknown(f"a shift by {i.args[2]}")
            self.put(i.args[0], f"{a} {sign} {self.constant(int(i.args[2]), kind)}", kind)
            return
        by = f"np.minimum({self.value(i.args[2], 'u4')}, {self.constant(bits - 1, 'u4')})"
        result = f"({a} {sign} {by}.astype({kind}))"
        if kind[0] == "u":
            past = f"{self.value(i.args[2], 'u4')} >= {self.constant(bits, 'u4')}"
            result = f"np.where({past}, {self.constant(0, kind)}, {result})"
        self.put(i.args[0], result, kind)

    def op_bfi(self, i: Instruction) -> None:
        kind = self.kind(i)
        a, b = self.value(i.args[1], kind), self.value(i.args[2], kind)
        at, size = int(i.args[3]), int(i.args[4])
        mask = ((1 << size) - 1) << at
        inside = f"(({a} << {self.constant(at, kind)}) & {self.constant(mask, kind)})"
        self.put(i.args[0], f"({b} & {self.constant(~mask, kind)}) | {inside}", kind)

    def op_setp(self, i: Instruction) -> None:
        kind, how = self.kind(i), i.parts[1]
        a, b = (self.value(arg, kind) for arg in i.args[1:])
        if how.endswith("u") and how[:-1] in COMPARE:
            text = f"unordered({a}, {b}, {a} {COMPARE[how[:-1]]} {b})"
        elif how == "nan":
            text = f"np.isnan({a}) | np.isnan({b})"
        elif how == "ne" and kind[0] == "f":
            text = f"({a} != {b}) & ({a} == {a}) & ({b} == {b})"
        else:
            text = f"{a} {COMPARE[how]} {b}"
        self.put(i.args[0], text, "p")

    def op_selp(self, i: Instruction) -> None:
        kind = self.kind(i)
        a, b = (self.value(arg, kind) for arg in i.args[1:3])
        self.put(i.args[0], f"np.where({self.value(i.args[3], 'p')}, {a}, {b})", kind)

    def op_cvt(self, i: Instruction) -> None:
        to, of = i.parts[-2], i.parts[-1]
        arg = i.args[1]
        if to == "bf16":
            self.put(i.args[0], f"to_bf16({self.value(arg, TYPES[of])})", "u2")
        elif of == "bf16":
            self.put(i.args[0], f"of_bf16({self.value(arg, 'u2')})", TYPES[to])
        elif to == "tf32":
            self.put(i.args[0], f"to_tf32({self.value(arg, 'f4')})", "u4")
        elif "sat" in i.parts:
            self.put(i.args[0], f"saturated({self.value(arg, 'f4')})", "f4")
        elif "rni" in i.parts and to == of:
            self.put(i.args[0], f"np.rint({self.value(arg, TYPES[of])})", TYPES[to])
        elif set(i.parts[1:-2]) - {"rn"}:
            raise Unknown(i.op)
        else:
            a, b = TYPES[of], TYPES[to]
            own = self.kernel.type_of(arg)
            # Of a wider register the low part.
            self.put(i.args[0], f"{self.value(arg, a)}.astype({b})", b)
            assert own is None or SIZE[own] >= SIZE[a]

    def op_cvta(self, i: Instruction) -> None:
        if "shared" in i.parts:
            to = "from_generic" if "to" in i.parts else "generic"
            self.put(i.args[0], f"m.{to}({self.value(i.args[1], 'u8')})", "u8")
        elif "global" in i.parts:
            self.put(i.args[0], self.value(i.args[1], "u8"), "u8")
        else:
            raise Unknown(i.op)

    def op_mov(self, i: Instruction) -> None:
        to, of = i.args
        kind = self.kind(i)
        if kind == "b16":  # of 128 bits: two numbers
            if to.startswith("{"):
                for number, part in enumerate(split(to[1:-1])):
                    self.put(part, f"{self.name(of)}[{number}]", "u8")
            else:
                low, high = (self.value(part, "u8") for part in split(of[1:-1]))
                self.lines.append(f"{self.name(to)} = ({low}, {high})")
        elif to.startswith("{"):
            parts = split(to[1:-1])
            bits = 8 * SIZE[kind] // len(parts)
            for number, part in enumerate(parts):
                if part != "_":
                    shifted = f"({self.value(of, kind)} >> {self.constant(number * bits, kind)})"
                    self.put(part, f"{shifted}.astype(u{bits // 8})", f"u{bits // 8}")
        elif of.startswith("{"):
            parts = split(of[1:-1])
            bits = 8 * SIZE[kind] // len(parts)
            narrow = [f"{self.value(p, f'u{bits // 8}')}.astype({kind})" for p in parts]
            places = [self.constant(n * bits, kind) for n in range(len(parts))]
            each = [f"({x} << {at})" for x, at in zip(narrow, places, strict=True)]
            self.put(to, " | ".join(each), kind)
        else:
            self.put(to, self.value(of, kind), kind)
