"""``python -m rnnext``: what a bug report needs to say of this build and machine.

``python -m rnnext explain T B I H`` says how a call of these sizes would run on this CPU.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

import rnnext
from rnnext import _C
from rnnext.explain import explain

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
PRECISIONS = ("highest", "high", "medium")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for arguments that do not fit."""
    parser = argparse.ArgumentParser(prog="python -m rnnext", description=__doc__)
    parser.set_defaults(command=print_build)
    commands = parser.add_subparsers(metavar="COMMAND")
    text = "say how a call would run on this CPU"
    explains = commands.add_parser("explain", help=text, description=text)
    explains.set_defaults(command=print_plan)
    meanings = ("steps", "sequences", "features; 0: the input is W_ih x already", "units")
    for name, meaning in zip("TBIH", meanings, strict=True):
        explains.add_argument(name, type=int, help=meaning)
    explains.add_argument("--train", action="store_true", help="the backward pass")
    explains.add_argument("--layers", dest="num_layers", type=int, default=1, help="default: 1")
    explains.add_argument("--bidirectional", action="store_true")
    explains.add_argument("--hx", action="store_true", help="first states are given")
    explains.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    explains.add_argument(
        "--precision", choices=PRECISIONS, default="highest", help="of float32 (default: highest)"
    )
    explains.add_argument("--cell", default="rnn", help="or gru, lstm, rate, voltage, blend")
    explains.add_argument("--threads", type=int, help="default: torch's")
    text = "zen4, zen5 or xeon-amx, NAME=NUMBER,.. or both (default: this one)"
    explains.add_argument("--machine", help=text)
    try:
        given = vars(parser.parse_args(arguments))
        given.pop("command")(**given)
    except ValueError as error:
        print(f"rnnext: {error}", file=sys.stderr)
        return 2
    return 0


def print_build() -> None:
    build = _C.build_info()
    rows = {
        "rnnext": rnnext.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (built against {build['torch']})",
        "compiler": build["compiler"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "CPU ISAs built": ", ".join(build["isas"]),
        "CPU ISAs of this CPU": ", ".join(build["isas_supported"]),
        "CPU ISA in use": _C.cpu_isa(),
        "CUDA archs": build["cuda_archs"] or "not built",
        "settings": " ".join(f"{k}={v}" for k, v in os.environ.items() if "RNNEXT_" in k) or "none",
    }
    for name, value in rows.items():
        print(f"{name:22}{value}")


def print_plan(dtype: str, precision: str, **options: Any) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        print(explain(dtype=DTYPES[dtype], **options))
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    sys.exit(main())
