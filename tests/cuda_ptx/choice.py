"""The choice of a path, csrc/cuda/recurrence/choice.cpp, and the cards that tests describe.

As a script, prints the capacity table of docs/cuda.md.
"""

import bisect
import ctypes
import functools
import re

from cuda_ptx import build

HEADER = build.CUDA / "recurrence" / "choice.h"
TYPES = {
    "int64_t": ctypes.c_int64, "int": ctypes.c_int, "unsigned": ctypes.c_uint,
    "double": ctypes.c_double, "bool": ctypes.c_bool, "Path": ctypes.c_int,
    "Compute": ctypes.c_int,
}  # fmt: skip


def struct(name: str):
    """A struct of choice.h for ctypes; choice_library() compares the sizes."""
    body = re.search(rf"struct {name} {{(.*?)\n}};", HEADER.read_text(), re.DOTALL)
    assert body, f"no struct {name} in {HEADER}"
    fields = []
    for line in re.sub(r"//.*", "", body[1]).split(";"):
        if not (found := re.match(r"\s*(\w+) ([^({]+(\{[\d, ]*\})?)$", line)):
            continue  # a method
        for each in re.sub(r"\{.*\}", "", found[2]).split(","):
            field, count = re.fullmatch(r"\s*(\w+)(?:\[(\d)\])?.*", each).groups()
            kind = TYPES[found[1]]
            fields.append((field, kind * int(count) if count else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Device, Problem, Geometry = STRUCTS = [struct(name) for name in ("Device", "Problem", "Geometry")]

PATHS = {"step": 0, "block": 1, "cluster": 2, "grid": 3}
COMPUTES = {"f32": 0, "f64": 1, "bf16": 2, "f16": 3, "tf32": 4}
# capability, SMs, shared memory of a block, clusters of 2, 4, 8 and 16 blocks that fit at once
# (where there are clusters: what the sizes of a GPU's SM groups allow, to be asked of the driver).
DEVICES = {
    "A100": (80, 108, 163 * 1024, 0, 0, 0, 0),
    "H100": (90, 132, 227 * 1024, 66, 32, 16, 8),
    "RTX 4090": (89, 128, 99 * 1024, 0, 0, 0, 0),
    "T4": (75, 40, 64 * 1024, 0, 0, 0, 0),
    "small": (90, 12, 227 * 1024, 6, 3, 1, 1),  # few SMs: tests meet several tiles a group
    "tight": (90, 12, 40 * 1024, 6, 3, 1, 1),  # little shared memory
}


@functools.cache
def choice_library() -> ctypes.CDLL:
    """choice.cpp alone: neither CUDA nor its headers are needed."""
    sources = [HEADER.with_suffix(".cpp"), build.HERE / "choice_entries.cpp"]
    library = ctypes.CDLL(str(build.link("choice", build.compile_all(sources))))
    assert library.rnn_same_sizes(*map(ctypes.sizeof, STRUCTS))
    return library


def choose(card, T, B, H, D=1, compute="f32", backward=False, path=None):
    """The Geometry that is chosen for a problem on a device; ValueError where choose() throws."""
    device = Device(*card[:3], card[3:])
    problem = Problem(T, B, H, D, COMPUTES[compute], backward)
    geometry, message = Geometry(), ctypes.create_string_buffer(256)
    structs = map(ctypes.byref, (problem, device, geometry))
    choice_library().rnn_choose(*structs, None if path is None else path.encode(), message)
    if message.value:
        raise ValueError(message.value.decode())
    return geometry


def capacity(path: str, compute: str, device: tuple[int, ...]) -> int:
    """The largest H that a path holds on the chip for one sequence."""

    def too_large(H: int) -> bool:
        try:
            choose(device, 1, 1, H, compute=compute, path=path)
        except ValueError:
            return True
        return False

    return bisect.bisect_left(range(1, 16384), True, key=too_large)


def capacity_table() -> str:
    """The largest H of each path, card and arithmetic, as Markdown."""
    lines = ["| card | path | " + " | ".join(COMPUTES) + " |", "|---|---|" + "---|" * len(COMPUTES)]
    for card in ["A100", "H100", "RTX 4090"]:
        for path in ("block", "cluster", "grid"):
            sizes = [capacity(path, compute, DEVICES[card]) for compute in COMPUTES]
            if any(sizes):
                lines.append(f"| {card} | {path} | " + " | ".join(map(str, sizes)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(capacity_table())
