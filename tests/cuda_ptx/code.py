"""Basic blocks of PTX as Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda_ptx.arithmetic import NAMESPACE, SIZE
from cuda_ptx.parse import STORES, Block, Instruction, Kernel, split
from cuda_ptx.writer import SPECIAL, WHOLE, Arithmetic, Unknown

MMA = ["m16n8k16.row.col.f32.bf16.bf16.f32", "m16n8k16.row.col.f32.f16.f16.f32",
       "m16n8k8.row.col.f32.tf32.tf32.f32"]  # fmt: skip
# What lanes do each for itself, beside loads.
EACH = (*STORES, "shfl", "vote", "atom", "mma", "mapa")


class Writer(Arithmetic):
    """With what touches memory, or other lanes."""

    def _vector(self, i: Instruction) -> int:
        return 4 if "v4" in i.parts else 2 if "v2" in i.parts else 1

    def op_ld(self, i: Instruction) -> None:
        kind, count = self.kind(i), self._vector(i)
        base, at = self.address(i.args[1])
        to = split(i.args[0][1:-1]) if count > 1 else [i.args[0]]
        if i.parts[1] == "param":
            for number, register in enumerate(to):
                offset = at + number * SIZE[kind]
                self.put(register, f"m.param({base}, {offset}, {kind})", kind)
            return
        space = next((s for s in ("global", "shared") if s in i.op), "generic")
        how = next((h for h in ("acquire", "relaxed", "volatile") if h in i.parts), "plain")
        if how != "plain" and space != "global":
            raise Unknown(i.op)
        if kind == "b16":
            kind, count = "u8", 2
            loaded = [f"{self.name(to[0])}"]
        else:
            loaded = [f"t{number}" for number in range(count)]
        call = f'm.load_{space}(L, {base}, {at}, "{kind}", {count}, "{how}")'
        if len(loaded) == 1 and count == 2:
            self.lines.append(f"{loaded[0]} = {call}")
            return
        self.lines.append(f"{', '.join(loaded)}, = {call}")
        for register, text in zip(to, loaded, strict=True):
            self.put(register, text, kind)

    def op_st(self, i: Instruction) -> None:
        if "async" in i.parts:
            (base, at), (barrier, past) = self.address(i.args[0]), self.address(i.args[2])
            base, barrier = (
                f"{a} + {self.constant(n, 'u4')}" for a, n in ((base, at), (barrier, past))
            )
            parts = [self.value(p, "u4") for p in split(i.args[1][1:-1])]
            self.lines.append(f"m.store_async(L, {base}, [{', '.join(parts)}], {barrier})")
            return
        kind, count = self.kind(i), self._vector(i)
        base, at = self.address(i.args[0])
        values = split(i.args[1][1:-1]) if count > 1 else [i.args[1]]
        space = next((s for s in ("global", "shared") if s in i.op), "generic")
        how = next((h for h in ("release", "relaxed", "volatile") if h in i.parts), "plain")
        if kind == "b16":
            kind, texts = "u8", [f"*{self.name(values[0])}"]
        else:
            texts = [self.value(v, kind) for v in values]
        given = f'({", ".join(texts)},), "{kind}", "{how}"'
        self.lines.append(f"m.store_{space}(L, {base}, {at}, {given})")

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
        form = "m.mapa_generic" if i.op == "mapa.u64" else "m.mapa_shared"
        kind = "u8" if i.op == "mapa.u64" else "u4"
        if i.op not in ("mapa.u64", "mapa.shared::cluster.u32"):
            raise Unknown(i.op)
        a, rank = self.value(i.args[1], kind), self.value(i.args[2], "u4")
        self.put(i.args[0], f"{form}({a}, {rank})", kind)

    def op_membar(self, i: Instruction) -> None:
        self.lines.append("m.release(L)")

    def op_fence(self, i: Instruction) -> None:
        if i.op == "fence.mbarrier_init.release.cluster":
            self.lines.append("m.barrier_init_fence(L)")
        else:
            raise Unknown(i.op)

    def op_mbarrier(self, i: Instruction) -> None:
        base, at = self.address(i.args[1] if i.parts[1] != "init" else i.args[0])
        base = f"{base} + {self.constant(at, 'u4')}"
        if i.op == "mbarrier.init.shared::cta.b64":
            self.lines.append(f"m.barrier_init(L, {base}, {self.value(i.args[1], 'u4')})")
        elif i.op == "mbarrier.arrive.expect_tx.shared::cta.b64":
            count = self.value(i.args[2], "u4")
            self.lines.append(f"m.barrier_arrive(L, {base}, {count})")
        elif i.op == "mbarrier.try_wait.parity.shared::cta.b64":
            odd = self.value(i.args[2], "u4")
            self.put(i.args[0], f"m.barrier_try(L, {base}, {odd})", "p")
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
        wide = "m.mma_" + form.replace(".", "_")
        if form not in MMA:
            raise Unknown(i.op)
        texts = [self.value(x, "u4") for x in a + b] + [self.value(x, "f4") for x in c]
        self.lines.append(f"t0, t1, t2, t3 = {wide}(L, {', '.join(texts)})")
        for number, register in enumerate(d):
            self.put(register, f"t{number}", "f4")

    def op_bar(self, i: Instruction) -> None:  # the machine waits, before or behind the block
        if i.parts[1] not in ("sync", "warp"):
            raise Unknown(i.op)
        if i.op.startswith("bar.sync") and i.args != ["0"]:
            raise Unknown(f"{i.op} {i.args}")

    def op_barrier(self, i: Instruction) -> None:
        words = ("arrive.release", "arrive.relaxed", "wait.acquire")
        if i.op not in [f"barrier.cluster.{w}.aligned" for w in words]:
            raise Unknown(i.op)

    def op_nanosleep(self, i: Instruction) -> None:
        pass

    op_ret = op_exit = op_trap = op_nanosleep

    def op_bra(self, i: Instruction) -> None:
        pass


def same_for_all(kernel: Kernel) -> tuple[set[str], list[Instruction]]:
    """Registers that hold one number for all lanes, and the instructions that make them."""
    written: dict[str, int] = {}
    everything = [i for block in kernel.blocks for i in block.instructions]
    for i in everything:
        for name, writes in i.names():
            written[name] = written.get(name, 0) + writes
    known: set[str] = set()
    makers = []
    for i in everything:
        loads = i.parts[0] == "ld" and i.parts[1] != "param"
        if i.guard or loads or i.parts[0] in EACH:
            continue
        names = list(i.names())
        results = [n for n, writes in names if writes and kernel.type_of(n)]
        sources = [n for n, writes in names if not writes]
        steady = all(
            n in known or n in WHOLE or (kernel.type_of(n) is None and n not in SPECIAL)
            for n in sources
        )
        wide = any(kernel.type_of(n) == "b16" for n in results)
        if results and steady and not wide and all(written[r] == 1 for r in results):
            known |= set(results)
            makers.append(i)
    return known, makers


class Program:
    """The functions of a kernel: `start` makes what all lanes share, block(n) is made when it is
    needed."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.uniform, makers = same_for_all(kernel)
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
            lines = _lines(self.kernel.blocks[number], Writer(self.kernel, self.namespace), self)
            function = self.blocks[number] = self._define(f"b{number}", "m, R, U, L", lines)
        return function


def _lines(block: Block, writer: Writer, program: Program) -> list[str]:
    for i in block.instructions:
        if id(i) not in program.made and not i.op.startswith(("bra", "trap")):
            writer.write(i)
    names = [each for i in block.instructions for each in i.names()]
    used, defined = {n for n, _ in names}, {n for n, written in names if written}
    read, kept = block.live_in - program.uniform, (block.live_out & defined) - program.uniform
    body = [f'{writer.name(n)} = R["{n}"][L]' for n in sorted(read & used)]
    body += [f'{writer.name(n)} = U["{n}"]' for n in sorted(used & program.uniform)]
    body += writer.lines
    body += [f'R["{n}"][L] = {writer.name(n)}' for n in sorted(kept)]
    if guard := block.last.guard:
        text = writer.name(guard.lstrip("!"))
        body.append(f"return np.logical_not({text})" if guard[0] == "!" else f"return {text}")
    return body or ["pass"]
