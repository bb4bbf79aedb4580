"""The result tables of README and docs: written by a command, from a stored run.

A document has a table between the lines `<!-- benchmarks: NAME -->` and `<!-- end -->`, or one of
runs on one kind of core between `<!-- benchmarks: NAME, CORE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import bars, report, store
from .cases import MODES
from .compared import Comparison
from .names import OURS, TORCH
from .store import Result, Row

BLOCK = re.compile(r"(<!-- benchmarks: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
README_ROWS = (
    ("a language model's sentences, training", "rnn-T35-B20-I200-H200-train"),
    ("digits pixel by pixel, training", "rnn-T784-B64-I1-H128-train"),
    ("long signals, inference", "rnn-T1000-B16-I16-H64-infer"),
    ("wide layers, training", "rnn-T128-B64-I1024-H1024-train"),
    ("a stream, step by step", "step-B1-I256-H256-infer"),
    ("the demo's whole training step", "demo-T100-B20-I256-H256-train"),
)
# Beside the headline cases.
CALLS = (
    "rnn-T256-B32-I256-H512-infer-bfloat16",
    "rnn-T256-B32-I256-H512-infer-medium",
    "rnn-T100-B1-I64-H64-infer-2layers",
    "rnn-T100-B1-I256-H256-infer-2layers",
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
# Forward and in training.
SHARES = (
    "rnn-T64-B32-I64-H2048",
    "rnn-T128-B64-I1024-H1024",
    "rnn-T256-B32-I256-H512",
    "rnn-T100-B64-I64-H256",
    "rnn-T100-B32-I64-H256",
    "rnn-T100-B16-I64-H256",
    "rnn-T35-B20-I200-H200",
    "rnn-T100-B64-I3-H128",
    "rnn-T784-B64-I1-H128",
    "rnn-T1000-B16-I16-H64",
    "rnn-T64-B32-I64-H16",
    "rnn-T100-B2-I64-H256",
    "rnn-T100-B1-I64-H256",
    "rnn-T100-B1-I256-H1024",
)
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "jax": "JAX"}


def headline(result: Result) -> str:
    rows = [row for row in result.rows.values() if "headline" in row.case.tags]
    return _captioned(result, report.table(result, rows))


def calls(result: Result) -> str:
    return _captioned(result, report.table(result, [_row(result, name) for name in CALLS]))


def readme(result: Result) -> str:
    body = []
    for what, name in README_ROWS:
        row = _row(result, name)
        sizes = [str(getattr(row.case, letter)) for letter in "TBIH"]
        times = [report.duration(row.seconds[who]["median"]) for who in (OURS, TORCH)]
        other, ratio = row.best_rival(OURS), ""
        if other not in (None, TORCH):
            ratio = f"{row.ratio(other, OURS):.1f} ({TITLES.get(other, other)})"
        body.append([what, *sizes, *times, f"{row.ratio(TORCH, OURS):.1f}", ratio])
    header = ["", *"TBIH", OURS, TORCH, f"times as fast as {TORCH}", "as the best other"]
    return _captioned(result, report.Table(header, body))


def _row(result: Result, name: str) -> Row:
    row = result.rows.get(name)
    if row is None or OURS not in row.seconds or TORCH not in row.seconds:
        raise ValueError(f"{result.label} has no times of {name}")
    return row


def promises(result: Result) -> str:
    return _captioned(result, bars.table(bars.evaluate(result)))


def shares(result: Result) -> str:
    """Of the roof of its own rounds, on each kind of core of which a run was kept."""
    runs = {run.stamp["core"]: run for run in store.kept()} | {result.stamp["core"]: result}
    columns = [(core, mode) for core in sorted(runs) for mode in MODES]
    body = [
        [case, *(report.rate_and_share(runs[core], _row(runs[core], f"{case}-{mode}"))[1]
                 for core, mode in columns)]
        for case in SHARES
    ]  # fmt: skip
    header = ["", *(f"{core}, {mode}" for core, mode in columns)]
    dates = (f"{core}: {runs[core].stamp['time'][:10]}" for core in sorted(runs))
    table = report.Table(header, body).markdown()
    return "\n".join(["", table, "", *textwrap.wrap(", ".join(dates) + ".", 100), ""])


def ensembles(run: Comparison) -> str:
    from .transforms import ensembles_table

    return _captioned(run, ensembles_table(run))


def per_sample(run: Comparison) -> str:
    from .transforms import samples_table

    return _captioned(run, samples_table(run))


def features(run: Comparison) -> str:
    return _captioned(run, run.table())


def compiled(run: Comparison) -> str:
    from .compiled import table

    return _captioned(run, table(run))


def sharing(run: Comparison) -> str:
    from .sharing import table

    return _captioned(run, table(run))


TABLES: dict[str, Callable[[Result], str]] = {
    "headline": headline,
    "calls": calls,
    "readme": readme,
    "bars": promises,
    "shares": shares,
}
# By what made them.
COMPARED: dict[str, dict[str, Callable[[Comparison], str]]] = {
    "features": {"features": features},
    "transforms": {"ensembles": ensembles, "per-sample": per_sample},
    "compiled": {"compiled": compiled},
    "sharing": {"sharing": sharing},
}


def _captioned(result: Result | Comparison, table: report.Table) -> str:
    stamp = result.stamp
    versions = ", ".join(
        f"{TITLES.get(package, package)} {version}"
        for package, version in stamp["versions"].items()
        if package not in (OURS, "numpy")
    )
    runs = f", the median of {stamp['runs']} runs" if "runs" in stamp else ""
    caption = f"{report.machine(stamp)}; {versions}; {stamp['time'][:10]}{runs}."
    return "\n".join(["", table.markdown(), "", *textwrap.wrap(caption, 100), ""])


def _own(result: Result | Comparison) -> dict[str, Callable[[Any], str]]:
    return dict(COMPARED[result.name] if isinstance(result, Comparison) else TABLES)


def replaced(text: str, result: Result | Comparison) -> str:
    """The text with the result's tables made anew. ValueError for a name that no result has."""
    own, known = _own(result), set(TABLES).union(*COMPARED.values())

    def block(match: re.Match[str]) -> str:
        begin, title, end = match.groups()
        name, _, core = title.partition(", ")
        if name not in known:
            raise ValueError(f"no table is called {name!r}; there are {', '.join(sorted(known))}")
        if name not in own or core not in ("", result.stamp["core"]):
            return match.group()
        return begin + own[name](result) + end

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
