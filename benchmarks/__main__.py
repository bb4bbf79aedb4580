"""`python -m benchmarks COMMAND`: docs/benchmarks.md shows what each is for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import bars, cases, compared, measure, report, roof, runner, store
from .names import OURS, RIVALS

ROOT = Path(__file__).resolve().parents[1]
Options = argparse.Namespace


def run_command(options: Options) -> int:
    """time cases, store them under a label, print the table"""
    chosen = cases.select(cases.CASES, cases.QUICK if options.quick else ())
    chosen = cases.select(chosen, options.select)
    result = store.Result(options.label)
    if options.resume and store.path_of(options.label).exists():
        result = store.load(options.label)
        quiet = [n for n, r in result.rows.items() if r.bystanders <= measure.DISTURBED_CORES]
        chosen = [case for case in chosen if case.name not in quiet]
    effort = measure.QUICK if options.quick else measure.FULL
    begun = 0
    for kind, content in runner.run(chosen, effort, options.only):
        if kind == "start":
            begun += 1
            print(f"{begun}/{len(chosen)} {content}", file=sys.stderr)
        else:
            result.take(kind, content)
    print(report.text(result, list(result.rows.values())))
    print(f"stored in {store.path_of(options.label)}; see also: python -m benchmarks bars, plot")
    return int(any(row.failed for row in result.rows.values()))


def combine_command(options: Options) -> None:
    """store several runs as one, each row as it was fastest"""
    combined = store.combine(options.label, [store.load(run) for run in options.runs])
    print(f"stored {len(combined.rows)} rows in {combined.save()}")


def report_command(options: Options) -> None:
    """print a stored run, or two beside each other"""
    if options.compare:
        a, b = map(store.load, options.compare)
        print(report.comparison(a, b, options.rival))
        return
    result = store.load(options.label)
    chosen = cases.select((row.case for row in result.rows.values()), options.select)
    rows = [result.rows[case.name] for case in chosen]
    print(report.table(result, rows).markdown() if options.markdown else report.text(result, rows))


def bars_command(options: Options) -> int:
    """print each bar as held or missed"""
    result = store.load(options.label)
    verdicts, none_missed = bars.text(result, bars.BARS)
    print(report.describe(result), verdicts, sep="\n")
    return int(not none_missed)


def plot_command(options: Options) -> None:
    """draw a stored run's figure"""
    from .plots import draw

    for path in draw(store.load(options.label), options.out):
        print(f"wrote {path}")


def publish_command(options: Options) -> None:
    """keep a run in the repository, draw it, write its tables into the documents"""
    from . import plots, tables

    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if options.label in compared.NAMES:
        found: Any = compared.load(options.label)
        written = [found.save(store.KEPT)]
    else:
        found = store.load(options.label)
        name = f"cpu-{found.stamp['core'].lower().replace(' ', '')}"
        kept = replace(found, label=name).save(store.KEPT / f"{name}.json")
        written = [kept, *plots.draw(found, ROOT / "docs" / "figures")]
    for path in (*written, *tables.write(found, documents)):
        print(f"wrote {path}")


def roof_command(options: Options) -> None:
    """measure this machine's limits"""
    threads = measure.pin_threads(0)
    roofs = {count: roof.measure(count) for count in sorted({1, threads})}
    print(report.describe(store.Result("this machine", measure.stamp(threads), roofs)))


def cases_command(options: Options) -> None:
    """list the cases"""
    for case in cases.select(cases.CASES, options.select):
        print(f"{case.name:60} {' '.join(sorted(case.tags))}")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    label, select = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    label.add_argument("--label", default="latest", help="name of a stored run (default: latest)")
    select.add_argument(
        "select", nargs="*", default=[], metavar="PATTERN",
        help="shell patterns of case names or tags, such as 'headline' or '*-H256-train*'",
    )  # fmt: skip

    def command(
        function: Callable[[Options], int | None], *shared: argparse.ArgumentParser
    ) -> Callable[..., argparse.Action]:
        """Makes NAME_command a command, its docstring the help; returns what adds an argument."""
        name, text = function.__name__.removesuffix("_command"), function.__doc__
        added = commands.add_parser(name, help=text, description=text, parents=shared)
        added.set_defaults(command=function)
        return added.add_argument

    argument = command(run_command, select, label)
    argument("--quick", action="store_true", help="a case or two of every kind, briefly")
    argument("--only", nargs="*", default=[], choices=(OURS, *RIVALS), help="whom to run")
    argument("--resume", action="store_true", help="keep undisturbed rows, run the others")
    argument = command(combine_command, label)
    argument("runs", nargs="+", metavar="RUN", help="labels of runs on one machine")
    argument = command(report_command, select, label)
    argument("--markdown", action="store_true", help="as markdown")
    argument("--compare", nargs=2, metavar=("A", "B"), help="two labels")
    argument("--rival", default=OURS, help="whose times to compare (default: rnnext's)")
    command(bars_command, label)
    argument = command(plot_command, label)
    argument("--out", type=Path, default=store.FOLDER / "figures", help="folder")
    command(publish_command, label)
    command(roof_command)
    command(cases_command, select)
    for name in compared.NAMES:
        suite = commands.add_parser(name, help=f"time the rows of benchmarks/{name}.py")
        suite.add_argument("select", nargs="*", metavar="PATTERN", help="of rows to print alone")
        suite.set_defaults(command=lambda o, name=name: compared.suite(name).run(o.select))
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fine, 1 a rival failed or a bar was missed, 2 wrong usage."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
