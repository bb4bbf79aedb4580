"""The result tables of README and docs: written by a command, from a stored run.

A document has a table between the lines `<!-- benchmarks: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import itertools
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import compared, report, store
from .bars import Wanted, layers, one, plain
from .cases import GATED, Case
from .compared import Comparison
from .names import OURS, TORCH
from .store import Result

BLOCK = re.compile(r"(<!-- benchmarks: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
TRAIN, INFER = layers("train"), layers("infer")
Kinds = tuple[tuple[str, Wanted], ...]
# The README's lines, and those of the summary, which has one for each kind of call.
README_ROWS: Kinds = (("training", TRAIN), ("inference", INFER))
SUMMARY_ROWS: Kinds = (
    ("training, 16 sequences and 128 units or more", lambda c: TRAIN(c) and _batch(c)),
    ("training, fewer or smaller", lambda c: TRAIN(c) and not _batch(c)),
    ("inference, 16 sequences and 128 units or more", lambda c: INFER(c) and _batch(c)),
    ("inference, fewer or smaller", lambda c: INFER(c) and not _batch(c)),
    ("one step of a stream by `Stepper`", one("step", "rnn")),
    ("GRU, training", layers("train", "gru")),
    ("GRU, inference", layers("infer", "gru")),
    ("LSTM, training", layers("train", "lstm")),
    ("LSTM, inference", layers("infer", "lstm")),
    ("the demo's whole training step", lambda c: c.kind == "demo"),
)
LEVELS = ("L1", "L2", "L3", "DRAM")
# Beside the headline cases.
CALLS = (
    "rnn-T256-B32-I256-H512-infer-bfloat16",
    "rnn-T256-B32-I256-H512-infer-medium",
    "rnn-T100-B1-I64-H64-infer-2layers",
    "rnn-T100-B32-I64-H256-train-packed",
    "rnn-T1-B1-I256-H256-infer",
    "cell-B1-I256-H256-infer",
    "step-B1-I8-H8-infer",
    "step-B1-I256-H256-infer",
    "embedding-V50000-D256-N8192-uniform-gather",
    "embedding-V50000-D256-N8192-uniform-dense",
    "embedding-V50000-D256-N8192-uniform-sparse",
    "demo-T100-B20-I256-H256-train",
)
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "jax": "JAX"}


def _headline(cell: str, result: Result) -> str:
    cases = [row.case for row in result.rows.values()]
    return _of_cases([c.name for c in cases if "headline" in c.tags and c.cell == cell], result)


def _of_cases(names: Sequence[str], result: Result) -> str:
    """All columns but the spread."""
    for name in names:
        if name not in result.rows or not {OURS, TORCH} <= result.rows[name].seconds.keys():
            raise ValueError(f"{result.label} has no times of {name}")
    table = report.table(result, [result.rows[name] for name in names])
    header, *body = [[*line[:2], *line[3:]] for line in (table.header, *table.body)]
    return _captioned(result, report.Table(header, body))


def _means(kinds: Kinds, result: Result) -> str:
    """Means and ranges over each kind of call, on each kind of core of which a run was kept."""
    runs = {run.stamp["core"]: run for run in store.kept()} | {result.stamp["core"]: result}
    runs = dict(sorted(runs.items()))
    body = []
    for what, wanted in kinds:
        line, sizes = [], 0
        for run in runs.values():
            rows = plain(run, wanted)
            sizes = max(sizes, len(rows))
            theirs = [row.ratio(TORCH, OURS) for row in rows]
            best = [row.ratio(row.best_rival(OURS) or TORCH, OURS) for row in rows]
            line += [_mean_and_range(theirs), _mean_and_range(best)]
        body += [[f"{what} ({sizes} sizes)" if sizes > 1 else what, *line]] if any(line) else []
    whom = f"over {TORCH}", "over the best"
    header = [f"{core}, {other}" for core, other in itertools.product(runs, whom)]
    dates = ", ".join(f"{core}: {run.stamp['time'][:10]}" for core, run in runs.items())
    return f"\n{report.Table(['', *header], body).markdown()}\n\n{dates}.\n"


def _machines(result: Result) -> str:
    """The rates of all cores of each machine of which a run was kept."""
    runs = {run.stamp["core"]: run for run in store.kept()} | {result.stamp["core"]: result}
    body = []
    for core, run in sorted(runs.items()):
        roof = max(run.roofs.values(), key=lambda roof: roof.threads)
        rates = [(roof.flops.get(name), "GFLOP/s") for name in ("float32", "bfloat16")]
        rates += [(roof.read[level], "GB/s") for level in LEVELS]
        line = [f"{rate / 1e9:.0f} {unit}" if rate else "" for rate, unit in rates]
        body.append([f"{core}, {roof.threads} threads", *line])
    header = ["", "float32", "bfloat16", *LEVELS[:3], "memory"]
    return f"\n{report.Table(header, body).markdown()}\n"


def _batch(case: Case) -> bool:
    return case.B >= 16 and case.H >= 128


def _mean_and_range(ratios: Sequence[float | None]) -> str:
    found = [ratio for ratio in ratios if ratio is not None]
    if len(found) < 2:
        return "".join(f"{ratio:.1f}" for ratio in found)
    return f"{statistics.geometric_mean(found):.1f} ({min(found):.1f}-{max(found):.1f})"


TABLES: dict[str, Callable[[Result], str]] = {
    **{f"headline {cell}": partial(_headline, cell) for cell in ("rnn", *GATED)},
    "calls": partial(_of_cases, CALLS),
    "readme": partial(_means, README_ROWS),
    "summary": partial(_means, SUMMARY_ROWS),
    "machines": _machines,
}


def _captioned(result: Result | Comparison, table: report.Table) -> str:
    stamp = result.stamp
    rivals = TITLES if isinstance(result, Result) else {}
    versions = ", ".join(
        f"{rivals.get(package, package)} {version}"
        for package, version in stamp["versions"].items()
        if package in ("torch", *rivals)
    )
    runs = f", the fastest of {stamp['runs']} runs" if "runs" in stamp else ""
    where = f"{stamp['core']}, {stamp['threads']} threads"
    caption = f"{where}; {versions}; {stamp['time'][:10]}{runs}."
    return "\n".join(["", table.markdown(), "", *textwrap.wrap(caption, 100), ""])


def replaced(text: str, result: Result | Comparison) -> str:
    """The text with the result's tables made anew. ValueError for a name that no result has."""
    suites = {name: compared.suite(name).tables for name in compared.NAMES}
    known = set(TABLES).union(*suites.values())
    own: Any = suites[result.name] if isinstance(result, Comparison) else TABLES

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in known:
            raise ValueError(f"no table is called {name!r}; there are {', '.join(sorted(known))}")
        if name not in own:
            return match.group()
        if isinstance(result, Comparison):
            return begin + _captioned(result, result.table(own[name])) + end
        return f"{begin}{own[name](result)}{end}"

    return BLOCK.sub(block, text)


def write(result: Result | Comparison, documents: Iterable[Path]) -> list[Path]:
    """Write the result's tables of the documents; those that changed."""
    written = []
    for path in documents:
        old = path.read_text()
        new = replaced(old, result)
        if new != old:
            path.write_text(new)
            written.append(path)
    return written
