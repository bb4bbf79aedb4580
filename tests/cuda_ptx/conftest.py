"""Tests of the compiled kernels: in the interpreter, which `make cuda-build` does and which needs
$CUDA_HOME, or on a device, as `make cuda-check` does."""

import os
import re
import time
from collections import Counter, defaultdict

import pytest
import torch

runs = {"CUDA_HOME", "RNNEXT_CHECK_DEVICE"} & os.environ.keys()
collect_ignore_glob = [] if runs else ["test_*.py"]


@pytest.fixture
def lib():
    """The kernels on an H100, which gives its memory back."""
    from cuda_ptx.ops import kernels

    torch.set_num_threads(1)  # the reference is small, and the interpreter has no use for more
    yield kernels()
    kernels().reset()


# ---- the table of what ran in the interpreter: cases of each kernel and type, planted faults, and
# seconds of a core

TYPES = {"tf32": "Tf32", "bf16": "bfloat16", "f16": "__half", "f64": "Id", "f32": "If"}
PATHS = ("block", "cluster", "grid")
OTHERS = ("step", "enter|reset|previous", "table_rows|constants", "gather", "keys", "reduce")


def row_and_type(kernel: str) -> tuple[str, str]:
    """The path of a resident kernel, of another its name; and its type, where it has one."""
    if found := re.search(r"\d([A-Z][a-zA-Z]+)Group", kernel):
        row = found[1].lower()
    else:
        row = next((n.replace("|", ", ") for n in OTHERS if re.search(n, kernel)), "")
    return row, next((kind for kind, word in TYPES.items() if word in kernel), "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    from cuda_ptx.ops import kernels

    kernels().ran.clear()
    began = time.process_time()
    yield
    ran = sorted(set(map(row_and_type, kernels().ran)))
    item.user_properties += [("kernels", ran), ("seconds", time.process_time() - began)]


def pytest_terminal_summary(terminalreporter):
    table: dict[str, Counter] = defaultdict(Counter)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            known = dict(report.user_properties)
            ran = [tuple(pair) for pair in known.get("kernels", [])]
            rows = {row for row, _ in ran} - {""}
            for row in rows:
                planted = "planted_fault" in report.nodeid and row in PATHS
                found = planted and outcome == "passed"
                seconds = known["seconds"] / len(rows)
                table[row] += Counter(cases=1, planted=planted, found=found, seconds=seconds)
                table[row].update(kind for name, kind in ran if name == row)
    columns = ["cases", *reversed(TYPES), "planted", "found", "seconds"]
    lines = ["| kernel | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for row, numbers in sorted(table.items()):
        cells = (f"{numbers[column]:.0f}" for column in columns)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    if table:
        terminalreporter.write_line("\n".join(lines))
