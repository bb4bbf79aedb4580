"""`python -m benchmarks COMMAND`: run, edges, combine, report, bars, plot, tables, publish, roof,
cases, features, transforms, compiled, sharing, interference."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, compared, measure, roof, runner, store
from .names import OURS
from .runner import Event

if TYPE_CHECKING:
    from .bars.verdict import Verdict
    from .features import Row, Timed
    from .report import Table

ROOT = Path(__file__).resolve().parents[1]
FIGURES = store.FOLDER / "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 1 a rival failed or a bar was missed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    label: dict[str, Any] = {"default": "latest", "help": "name of a stored run (default: latest)"}
    select: dict[str, Any] = {
        "nargs": "*",
        "default": [],
        "metavar": "PATTERN",
        "help": "shell patterns of case names or tags, such as 'headline' or '*-H256-train*'",
    }
    device: dict[str, Any] = {"default": "cpu", "choices": sorted(cases.CASES)}
    run = command("run", run_command, "time cases, store them under a label, print the table")
    run.add_argument("select", **select)
    run.add_argument("--label", **label)
    run.add_argument("--device", **device)
    run.add_argument("--quick", action="store_true", help="a case or two of every kind, briefly")
    run.add_argument("--only", nargs="*", default=[], metavar="RIVAL", help="rivals to run")
    run.add_argument(
        "--resume", action="store_true", help="keep the label's undisturbed rows, run the others"
    )
    combine = command("combine", combine_command, "store the median of several runs")
    combine.add_argument("runs", nargs="+", metavar="RUN", help="labels of runs on one machine")
    combine.add_argument("--label", **label)
    report = command("report", report_command, "print a stored run, or two beside each other")
    report.add_argument("select", **select)
    report.add_argument("--label", **label)
    report.add_argument("--markdown", action="store_true", help="as markdown")
    report.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two labels")
    report.add_argument("--rival", help="whose times to compare (default: rnnext's)")
    bars = command("bars", bars_command, "print each bar as held or missed")
    bars.add_argument("--label", **label)
    plot = command("plot", plot_command, "draw a stored run's figures")
    plot.add_argument("--label", **label)
    plot.add_argument("--out", type=Path, default=FIGURES, help=f"folder (default: {FIGURES})")
    tables = command("tables", tables_command, "write the tables of documents from a stored run")
    tables.add_argument("--label", **label)
    tables.add_argument("documents", type=Path, nargs="+", metavar="FILE", help="markdown")
    publish = command(
        "publish", publish_command, "keep a run in the repository, draw and write it into docs"
    )
    publish.add_argument("--label", **label)
    sweep = command("edges", edges_command, "time sizes one apart around tile edges, add to a run")
    sweep.add_argument("--label", **label)
    command("roof", roof_command, "measure this machine's limits")
    listing = command("cases", cases_command, "list the cases")
    listing.add_argument("select", **select)
    listing.add_argument("--device", **device)
    command(
        "features", features_command, "time what nn.RNN has not against what is written instead"
    )
    loop = command(
        "compiled", compiled_command, "time a compiled model and a compiled loop over cells"
    )
    loop.add_argument(
        "--limit", type=float, default=600, help="seconds for a row's compiling (default: 600)"
    )
    command("sharing", sharing_command, "time processes that share the machine")
    command("transforms", transforms_command, "time ensembles and per-sample gradients")
    check = command("interference", interference_command, "time rivals alone and taking turns")
    check.add_argument("select", **{**select, "default": ["rnn-T100-B64-I64-H256-infer"]})
    return parser


def run_command(options: argparse.Namespace) -> int:
    from . import report

    chosen = cases.select(cases.CASES[options.device], options.select, options.quick)
    result = store.Result(options.label)
    if options.resume and result.path.exists():
        result = store.load(options.label)
        quiet = [n for n, r in result.rows.items() if r.bystanders <= measure.DISTURBED_CORES]
        chosen = [case for case in chosen if case.name not in quiet]
    effort = measure.QUICK if options.quick else measure.FULL
    if options.device == "cuda":
        effort = measure.CUDA
    _collect(result, runner.run(chosen, effort, options.only), len(chosen))
    print(report.text(result, list(result.rows.values())))
    print(f"stored in {result.path}; see also: python -m benchmarks bars, plot, edges")
    return 1 if any(row.failed for row in result.rows.values()) else 0


def _collect(result: store.Result, events: Iterator[Event], total: int) -> None:
    """Store what workers send, showing progress."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        TextColumn("{task.fields[now]:60.60}"), *columns, console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=total, now="")
        for kind, content in events:
            if kind == "start":
                bar.update(task, now=content)
                continue
            bar.advance(task, kind in ("row", "edge"))
            if warning := result.take(kind, content):
                bar.console.print(warning)


def combine_command(options: argparse.Namespace) -> int:
    combined = store.combine(options.label, [store.load(run) for run in options.runs])
    print(f"stored {len(combined.rows)} rows in {combined.save()}")
    return 0


def report_command(options: argparse.Namespace) -> int:
    from . import report

    if options.compare:
        a, b = map(store.load, options.compare)
        print(report.comparison(a, b, options.rival or OURS))
        return 0
    result = store.load(options.label)
    chosen = cases.select((row.case for row in result.rows.values()), options.select)
    rows = [result.rows[case.name] for case in chosen]
    print(report.table(result, rows).markdown() if options.markdown else report.text(result, rows))
    return 0


def bars_command(options: argparse.Namespace) -> int:
    from . import bars

    result = store.load(options.label)
    verdicts = bars.evaluate(result)
    print(bars.text(result, verdicts))
    return 1 if any(verdict.held is False for verdict in verdicts) else 0


def plot_command(options: argparse.Namespace) -> int:
    from .plots import draw

    for path in draw(store.load(options.label), options.out):
        print(f"wrote {path}")
    return 0


def tables_command(options: argparse.Namespace) -> int:
    from . import tables

    for path in tables.write(store.load(options.label), options.documents):
        print(f"wrote {path}")
    return 0


def publish_command(options: argparse.Namespace) -> int:
    from . import plots, tables

    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if options.label in compared.NAMES:
        run = compared.load(options.label)
        for path in (run.save(store.KEPT), *tables.write(run, documents)):
            print(f"wrote {path}")
        return 0
    result = store.load(options.label)
    if any(row.case.device != "cpu" for row in result.rows.values()):
        raise ValueError("the documents have tables and figures of a run on the CPU only")
    kept = replace(result, label=f"cpu-{result.stamp['core'].lower().replace(' ', '')}")
    for path in (
        kept.save(store.KEPT / f"{kept.label}.json"),
        *tables.write(result, documents),
        *plots.draw(result, ROOT / "docs" / "figures"),
    ):
        print(f"wrote {path}")
    return 0


def edges_command(options: argparse.Namespace) -> int:
    from . import edges

    result = store.load(options.label)
    total = len(cases.MODES) * sum(map(len, edges.SIZES.values()))
    _collect(result, runner.in_worker(edges.sweep, 0), total)
    ratio, where = edges.worst_jump(result.edges)
    print(f"worst rise of the cost per unit: {ratio:.2f}x at {where}")
    return 0 if ratio <= edges.LIMIT else 1


def roof_command(options: argparse.Namespace) -> int:
    from .report import describe

    threads = measure.pin_threads(0)
    roofs = {count: roof.measure(count) for count in sorted({1, threads})}
    print(describe(store.Result("this machine", measure.stamp(threads), roofs)))
    return 0


def cases_command(options: argparse.Namespace) -> int:
    for case in cases.select(cases.CASES[options.device], options.select):
        print(f"{case.name:60} {' '.join(sorted(case.tags))}")
    return 0


def features_command(options: argparse.Namespace) -> int:
    """Each feature beside the code that people write without it, as markdown, then the bars."""
    from . import features

    return _compared("features", features.rows(), features.verdicts)


def transforms_command(options: argparse.Namespace) -> int:
    """Ensembles and per-sample gradients beside a loop, as markdown, then the bars."""
    from . import transforms

    return _compared("transforms", transforms.rows(), transforms.verdicts)


def _compared(
    name: str, rows: Iterable[Row], verdicts: Callable[[list[Timed]], list[Verdict]]
) -> int:
    """Time the rows, and keep them by this name. Returns the exit code."""
    from . import features

    run = compared.Comparison(name, measure.stamp(measure.pin_threads(0)))
    timed = []
    for each in features.run(rows):
        timed.append(each)
        what = each.row.what
        run.rows[what] = {"ours": each.ours, "other": each.other, "scale": each.row.scale}
        print(f"{run.faster(what):>7}  {what}", file=sys.stderr)
    _keep(run, run.table())
    found = verdicts(timed)
    for verdict in found:
        got = "-" if verdict.got is None else f"{verdict.got:.2f}"
        sign = "at most" if verdict.at_most else "at least"
        print(
            f"{verdict.word:12} {verdict.what}: {got}, {sign} {verdict.needed:g} {verdict.detail}"
        )
    return int(any(verdict.held is False for verdict in found))


def _keep(run: compared.Comparison, table: Table) -> None:
    print(f"{run.stamp['cpu']}, {run.stamp['threads']} threads")
    print(table.markdown())
    path = run.save()
    print(f"stored in {path}; into the documents: python -m benchmarks publish --label {run.name}")


def compiled_command(options: argparse.Namespace) -> int:
    """A compiled model beside torch.compile of a loop over cells, as markdown."""
    from . import compiled

    run = compared.Comparison("compiled", measure.stamp(measure.pin_threads(0)))
    run.stamp["limit"] = options.limit
    for what, seconds in compiled.run(options.limit):
        run.rows[what] = seconds
        print(what, seconds, file=sys.stderr)
    _keep(run, compiled.table(run))
    return 0


def sharing_command(options: argparse.Namespace) -> int:
    """How much longer a call takes than its process's share of the cores would, as markdown."""
    from . import sharing

    run = compared.Comparison("sharing", measure.stamp(os.cpu_count() or 1))
    for what, seconds in sharing.run():
        run.rows[what] = seconds
        print(f"{sharing.over_fair(seconds):>7.2f}  {what}", file=sys.stderr)
    _keep(run, sharing.table(run))
    return 0


def interference_command(options: argparse.Namespace) -> int:
    """Each rival alone in a process, then taking turns with the others: the ratio should be 1."""
    from .report import duration

    chosen = cases.select(cases.CASES["cpu"], options.select)
    for _, found in runner.in_worker(runner.interference, 0, chosen, 5):
        case, rival, alone, turns = found
        print(
            f"{case:40} {rival:14} alone {duration(alone):>8}, taking turns {duration(turns):>8}, "
            f"ratio {turns / alone:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
