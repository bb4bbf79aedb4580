"""Instructions of PTX as lines of Python: a register is a numpy array with an element for each
lane, or one number where all lanes have the same."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from cuda_ptx.arithmetic import KINDS, SIZE
from cuda_ptx.parse import TYPES, Instruction, Kernel, split
from cuda_ptx.warp import FORMATS

COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<",
           "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
# What an operation is in Python; then the kinds of its operands, of which the last one repeats, and
# of its result, if that is another than the first operand's. k: the instruction's type; u: the same
# without a sign; w: twice as wide; 4: u32; p: a predicate.
FORMS = {
    "abs": ("np.abs({})", "k"),
    "add": ("{} + {}", "u"),
    "add.rz": ("toward_zero({}, {})", "k"),
    "and": ("{} & {}", "k"),
    "bfi": ("inserted({}, {}, {}, {})", "kk4"),
    "bfind.shiftamt": ("leading_zeros({})", "k"),
    "brev": ("reversed_bits({})", "k"),
    "clz": ("leading_zeros({}, 32)", "k"),
    "copysign": ("np.copysign({1}, {0})", "k"),
    "div": ("quotient({}, {})", "k"),
    "ex2": ("np.exp2({})", "k"),
    "fma": ("fma_{kind}({}, {}, {})", "k"),
    "fma.rm": ("fma_down_{kind}({}, {}, {})", "k"),
    "mad": ("{} * {} + {}", "u"),
    "mad.wide": ("wide({}, {}) + {}", "kkw", "w"),
    "max": ("np.fmax({}, {})", "k"),
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
    "shl": ("shifted({}, {}, True)", "u4"),
    "shr": ("shifted({}, {}, False)", "k4"),
    "sub": ("{} - {}", "u"),
    "xor": ("{} ^ {}", "k"),
}
# The machine does these, or waits for them, before or behind a block.
OF_THE_MACHINE = {
    "bar.arrive", "bar.wait", "bar.warp.sync", "nanosleep.u32", "ret", "exit",
    "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned",
    "barrier.cluster.wait.acquire.aligned",
}  # fmt: skip
SPECIAL = {"%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%laneid",
           "%cluster_ctarank", "%clock64"}  # fmt: skip
WHOLE = {"%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",
         "%cluster_nctarank"}  # fmt: skip


class Unknown(Exception):
    """An instruction that nobody has implemented."""


def vector(i: Instruction) -> int:
    return 4 if "v4" in i.parts else 2 if "v2" in i.parts else 1


def space(i: Instruction) -> str:
    return next((s for s in ("global", "shared") if s in i.op), "generic")


def order(i: Instruction) -> str:
    words = ("acquire", "release", "relaxed", "volatile")
    return next((word for word in words if word in i.parts), "plain")


class Writer:
    """The source of one block."""

    def __init__(self, kernel: Kernel, constants: dict[str, Any]) -> None:
        self.kernel, self.constants = kernel, constants
        self.lines: list[str] = []
        self.offsets = {name: at for name, at, _ in kernel.params}

    # ---- operands

    def constant(self, value: Any, kind: str) -> str:
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
        if own in (kind, "b16"):
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
        for symbols in (self.offsets, self.kernel.shared):
            if arg in symbols:
                return self.constant(symbols[arg], kind)
        if arg in SPECIAL:
            return f'm.special["{arg}"][L]'
        if arg in WHOLE:
            return f'm.whole["{arg}"]'
        if arg.startswith(("$str", "__unnamed")):  # what an assertion says
            return self.constant(0, kind)
        raise Unknown(f"operand {arg}")

    def put(self, arg: str, expression: str, kind: str) -> None:
        """Writes an expression of a kind to a register."""
        if arg == "_":
            return
        own = self.kernel.type_of(arg)
        assert own, arg
        if own in (kind, "b16"):
            pass
        elif SIZE[own] == SIZE[kind]:
            expression = f"({expression}).view({own})"
        elif kind[0] in "ui" and own[0] == "u":
            # A narrow load or conversion fills the register, with its sign.
            wide = f"{kind[0]}{SIZE[own]}"
            expression = f"({expression}).astype({wide}).view({own})"
        else:
            raise Unknown(f"{kind} to {arg} of {own}")
        self.lines.append(f"{self.name(arg)} = {expression}")

    def address(self, arg: str) -> tuple[str, int]:
        found = re.fullmatch(r"\[([\w%$.]+)(?:\+(-?\d+))?\]", arg)
        if not found:
            raise Unknown(f"address {arg}")
        own = self.kernel.type_of(found[1])
        return self.value(found[1], own or "u8"), int(found[2] or 0)

    def sum(self, arg: str) -> str:
        """An address of shared memory as one number."""
        base, at = self.address(arg)
        return f"{base} + {self.constant(at, 'u4')}"

    # ---- instructions

    def write(self, i: Instruction) -> None:
        if i.guard:
            raise Unknown(f"a guard before {i.op}")
        rounding = ("rn", "approx", "ftz", "lo")
        operation = ".".join(p for p in i.parts if p not in TYPES and p not in rounding)
        method: Callable[[Instruction], None] | None = getattr(self, "op_" + i.parts[0], None)
        if method is not None:
            method(i)
        elif form := FORMS.get(operation):
            self.form(i, *form)
        elif i.op not in OF_THE_MACHINE:
            raise Unknown(i.op)
        elif i.parts[0] == "bar" and i.args not in (["0"], ["-1"]):
            raise Unknown(f"{i.op} {i.args}")

    def kind(self, i: Instruction, at: int = -1) -> str:
        return TYPES[i.parts[at]]

    def form(self, i: Instruction, form: str, operands: str, result: str = "") -> None:
        k = self.kind(i)
        kinds = {"k": k, "u": k.replace("i", "u"), "4": "u4", "p": "p"}
        kinds["w"] = f"{k[0]}{2 * SIZE[k]}"
        given = i.args[1:]
        letters = operands + operands[-1] * len(given)
        values = [self.value(a, kinds[letter]) for a, letter in zip(given, letters, strict=False)]
        self.put(i.args[0], form.format(*values, kind=k), kinds[result or operands[0]])

    def op_setp(self, i: Instruction) -> None:
        kind, how = self.kind(i), i.parts[1]
        a, b = (self.value(arg, kind) for arg in i.args[1:])
        either = f"np.isnan({a}) | np.isnan({b})"
        if how == "nan":
            text = either
        elif how.endswith("u"):  # or unordered
            text = f"{either} | ({a} {COMPARE[how[:-1]]} {b})"
        elif how == "ne" and kind[0] == "f":
            text = f"({a} != {b}) & ~({either})"
        else:
            text = f"{a} {COMPARE[how]} {b}"
        self.put(i.args[0], text, "p")

    def op_cvt(self, i: Instruction) -> None:
        to, of = i.parts[-2], i.parts[-1]
        if to == "bf16":
            form, kinds = "to_bf16({})", ("f4", "u2")
        elif of == "bf16":
            form, kinds = "of_bf16({})", ("u2", "f4")
        elif to == "tf32":
            form, kinds = "to_tf32({})", ("f4", "u4")
        elif "sat" in i.parts:
            form, kinds = "saturated({})", ("f4", "f4")
        elif "rni" in i.parts and to == of:
            form, kinds = "np.rint({})", (TYPES[of], TYPES[to])
        elif set(i.parts[1:-2]) - {"rn"}:
            raise Unknown(i.op)
        else:
            form, kinds = f"{{}}.astype({TYPES[to]})", (TYPES[of], TYPES[to])
        self.put(i.args[0], form.format(self.value(i.args[1], kinds[0])), kinds[1])

    def op_cvta(self, i: Instruction) -> None:
        form = "m.generic({})" if i.op == "cvta.shared.u64" else "{}"
        if i.op == "cvta.to.shared.u64":
            raise Unknown(i.op)
        self.put(i.args[0], form.format(self.value(i.args[1], "u8")), "u8")

    def op_mov(self, i: Instruction) -> None:
        to, of = i.args
        kind = self.kind(i)
        if kind == "b16" and to.startswith("{"):  # of 128 bits: two numbers
            for number, part in enumerate(split(to[1:-1])):
                self.put(part, f"{self.name(of)}[{number}]", "u8")
        elif kind == "b16":
            low, high = (self.value(part, "u8") for part in split(of[1:-1]))
            self.lines.append(f"{self.name(to)} = ({low}, {high})")
        elif to.startswith("{"):
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
        kind, count = self.kind(i), vector(i)
        base, at = self.address(i.args[1])
        to = split(i.args[0][1:-1]) if count > 1 else [i.args[0]]
        if i.parts[1] == "param":
            for number, register in enumerate(to):
                offset = at + number * SIZE[kind]
                self.put(register, f"m.param({base}, {offset}, {kind})", kind)
            return
        if order(i) != "plain" and space(i) != "global":
            raise Unknown(i.op)
        if kind == "b16":
            call = f'm.load_global(L, {base}, {at}, "u8", 2, "{order(i)}")'
            self.lines.append(f"{self.name(to[0])} = {call}")
            return
        loaded = [f"t{number}" for number in range(count)]
        call = f'm.load_{space(i)}(L, {base}, {at}, "{kind}", {count}, "{order(i)}")'
        self.lines.append(f"{', '.join(loaded)}, = {call}")
        for register, text in zip(to, loaded, strict=True):
            self.put(register, text, kind)

    def op_st(self, i: Instruction) -> None:
        if "async" in i.parts:
            parts = ", ".join(self.value(p, "u4") for p in split(i.args[1][1:-1]))
            to, barrier = self.sum(i.args[0]), self.sum(i.args[2])
            self.lines.append(f"m.store_async(L, {to}, [{parts}], {barrier})")
            return
        kind = self.kind(i)
        base, at = self.address(i.args[0])
        values = split(i.args[1][1:-1]) if vector(i) > 1 else [i.args[1]]
        if kind == "b16":
            kind, texts = "u8", [f"*{self.name(values[0])}"]
        else:
            texts = [self.value(v, kind) for v in values]
        given = f'({", ".join(texts)},), "{kind}", "{order(i)}"'
        self.lines.append(f"m.store_{space(i)}(L, {base}, {at}, {given})")

    def op_atom(self, i: Instruction) -> None:
        if i.op != "atom.global.cas.b32":
            raise Unknown(i.op)
        base, at = self.address(i.args[1])
        a, b = self.value(i.args[2], "u4"), self.value(i.args[3], "u4")
        self.put(i.args[0], f"m.compare_and_swap(L, {base}, {at}, {a}, {b})", "u4")

    def op_cp(self, i: Instruction) -> None:
        if i.op == "cp.async.commit_group":
            self.lines.append("m.commit(L)")
        elif i.op == "cp.async.wait_group":
            self.lines.append(f"m.wait_copies(L, {int(i.args[0])})")
        elif i.op in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
            (to, to_at), (of, of_at) = self.address(i.args[0]), self.address(i.args[1])
            size = int(i.args[2])
            if size not in ((16,) if "cg" in i.parts else (4, 8, 16)):
                raise Unknown(f"{i.op} of {size} bytes")
            self.lines.append(f"m.copy(L, {to}, {to_at}, {of}, {of_at}, {size})")
        else:
            raise Unknown(i.op)

    def op_mapa(self, i: Instruction) -> None:
        forms = {"mapa.u64": "m.mapa_generic", "mapa.shared::cluster.u32": "m.mapa_shared"}
        kind = self.kind(i)
        a, rank = self.value(i.args[1], kind), self.value(i.args[2], "u4")
        self.put(i.args[0], f"{forms[i.op]}({a}, {rank})", kind)

    def op_membar(self, i: Instruction) -> None:
        self.lines.append("m.release(L)")

    def op_fence(self, i: Instruction) -> None:
        if i.op != "fence.mbarrier_init.release.cluster":
            raise Unknown(i.op)
        self.lines.append("m.barrier_init_fence(L)")

    def op_mbarrier(self, i: Instruction) -> None:
        if i.op == "mbarrier.init.shared::cta.b64":
            count = self.value(i.args[1], "u4")
            self.lines.append(f"m.barrier_init(L, {self.sum(i.args[0])}, {count})")
        elif i.op == "mbarrier.arrive.expect_tx.shared::cta.b64":
            count = self.value(i.args[2], "u4")
            self.lines.append(f"m.barrier_arrive(L, {self.sum(i.args[1])}, {count})")
        elif i.op == "mbarrier.try_wait.parity.shared::cta.b64":
            odd = self.value(i.args[2], "u4")
            self.put(i.args[0], f"m.barrier_try(L, {self.sum(i.args[1])}, {odd})", "p")
        else:
            raise Unknown(i.op)

    # ---- of a warp

    def op_shfl(self, i: Instruction) -> None:
        if i.parts[2] not in ("bfly", "idx"):
            raise Unknown(i.op)
        to, _, inside = i.args[0].partition("|")
        a, b, c, mask = (self.value(arg, "u4") for arg in i.args[1:5])
        self.lines.append(f'ts, ti = m.shuffle(L, "{i.parts[2]}", {a}, {b}, {c}, {mask})')
        self.put(to, "ts", "u4")
        if inside:
            self.put(inside, "ti", "p")

    def op_vote(self, i: Instruction) -> None:
        if i.op != "vote.sync.ballot.b32":
            raise Unknown(i.op)
        self.put(i.args[0], f"m.ballot(L, {self.value(i.args[1], 'p')})", "u4")

    def op_mma(self, i: Instruction) -> None:
        d, a, b, c = (split(arg[1:-1]) for arg in i.args)
        form = i.op.removeprefix("mma.sync.aligned.")
        if form not in FORMATS:
            raise Unknown(i.op)
        texts = [self.value(x, "u4") for x in a + b] + [self.value(x, "f4") for x in c]
        self.lines.append(f't0, t1, t2, t3 = m.mma(L, "{form}", {", ".join(texts)})')
        for number, register in enumerate(d):
            self.put(register, f"t{number}", "f4")
