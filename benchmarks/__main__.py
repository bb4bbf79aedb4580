"""`python -m benchmarks COMMAND`: run, combine, report, bars, plot, edges, roof, cases,
interference."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, measure, roof, runner, store
from .runner import Event


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 1 a rival failed or a bar was missed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    # Tables keep their columns when the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        code: int = options.command(options, console)
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
    run = command("run", run_command, "time cases, store them under a label, print the table")
    run.add_argument("select", **select)
    run.add_argument("--label", **label)
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
    report.add_argument("--markdown", action="store_true", help="as markdown, for README and docs")
    report.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two labels")
    report.add_argument("--rival", help="whose times to compare (default: rnnext's)")
    bars = command("bars", bars_command, "print each bar as held or missed")
    bars.add_argument("--label", **label)
    plot = command("plot", plot_command, "draw a stored run's figures")
    plot.add_argument("--label", **label)
    plot.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder of the PNGs")
    sweep = command("edges", edges_command, "time sizes one apart around tile edges, add to a run")
    sweep.add_argument("--label", **label)
    command("roof", roof_command, "measure this machine's limits")
    listing = command("cases", cases_command, "list the cases")
    listing.add_argument("select", **select)
    check = command("interference", interference_command, "time rivals alone and taking turns")
    check.add_argument("select", **{**select, "default": ["rnn-T100-B64-I64-H256-infer"]})
    return parser


def run_command(options: argparse.Namespace, console: Console) -> int:
    from .report import print_result

    chosen = cases.select(options.select, options.quick)
    result = store.Result(options.label)
    if options.resume and result.path.exists():
        result = store.load(options.label)
        quiet = [n for n, r in result.rows.items() if r.bystanders <= measure.DISTURBED_CORES]
        chosen = [case for case in chosen if case.name not in quiet]
    effort = measure.QUICK if options.quick else measure.FULL
    _collect(result, runner.run(chosen, effort, options.only), len(chosen))
    print_result(result, list(result.rows.values()), console)
    console.print(f"stored in {result.path}; see also: python -m benchmarks bars, plot, edges")
    return 1 if any(row.failed for row in result.rows.values()) else 0


def _collect(result: store.Result, events: Iterator[Event], total: int) -> None:
    """Take in what workers send, showing progress and saving after every case."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        TextColumn("{task.fields[now]:60.60}"), *columns, console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=total, now="")
        for kind, content in events:
            if kind == "start":
                bar.update(task, now=content)
                continue
            if kind == "stamp":
                if not result.stamp or content["threads"] > result.stamp["threads"]:
                    result.stamp = content
            elif kind == "roof":
                threads, limits = content
                result.roofs[threads] = limits.best(result.roofs.get(threads))
            elif kind == "row":
                result.rows[content.case.name] = content
                bar.advance(task)
            elif kind == "edge":
                key, times, busy = content
                result.edges[key] = times
                bar.advance(task)
                if busy > measure.DISTURBED_CORES:
                    bar.console.print(f"{key}: other processes kept the cores busy meanwhile")
            result.save()


def combine_command(options: argparse.Namespace, console: Console) -> int:
    combined = store.combine(options.label, [store.load(run) for run in options.runs])
    console.print(f"stored {len(combined.rows)} rows in {combined.save()}")
    return 0


def report_command(options: argparse.Namespace, console: Console) -> int:
    from . import report

    if options.compare:
        a, b = map(store.load, options.compare)
        report.print_comparison(a, b, options.rival or report.OURS, console)
        return 0
    result = store.load(options.label)
    wanted = {case.name for case in cases.select(options.select)}
    rows = [row for name, row in result.rows.items() if name in wanted]
    if options.markdown:
        print(report.markdown(result, rows))
    else:
        report.print_result(result, rows, console)
    return 0


def bars_command(options: argparse.Namespace, console: Console) -> int:
    from .bars import print_bars

    return 0 if print_bars(store.load(options.label), console) else 1


def plot_command(options: argparse.Namespace, console: Console) -> int:
    from .plots import draw

    for path in draw(store.load(options.label), options.out):
        console.print(f"wrote {path}")
    return 0


def edges_command(options: argparse.Namespace, console: Console) -> int:
    from . import edges

    result = store.load(options.label)
    total = len(cases.MODES) * sum(map(len, edges.SIZES.values()))
    _collect(result, runner.in_worker(edges.sweep, 0), total)
    ratio, where = edges.worst_jump(result.edges)
    console.print(f"worst rise of the cost per unit: {ratio:.2f}x at {where}")
    return 0 if ratio <= edges.LIMIT else 1


def roof_command(options: argparse.Namespace, console: Console) -> int:
    from .report import describe

    threads = measure.pin_threads(0)
    roofs = {count: roof.measure(count) for count in sorted({1, threads})}
    console.print(describe(store.Result("this machine", measure.stamp(threads), roofs)))
    return 0


def cases_command(options: argparse.Namespace, console: Console) -> int:
    for case in cases.select(options.select):
        console.print(f"{case.name:60} {' '.join(sorted(case.tags))}", highlight=False)
    return 0


def interference_command(options: argparse.Namespace, console: Console) -> int:
    """Each rival alone in a process, then taking turns with the others: the ratio should be 1."""
    from .report import duration

    chosen = cases.select(options.select)
    for _, found in runner.in_worker(runner.interference, 0, chosen, 5):
        case, rival, alone, turns = found
        console.print(
            f"{case:40} {rival:14} alone {duration(alone):>8}, taking turns {duration(turns):>8}, "
            f"ratio {turns / alone:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
