"""A case in a process of its own: one that hangs, or whose CUDA context dies, harms no other.

As a plugin of pytest (`-p tools.cuda_check.isolate`) it does that for every test. The process forks
from one that has imported torch and has never called CUDA.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 60.0  # for one test


def isolated(call: Callable[[], Any], limit: float) -> tuple[str, Any]:
    """(empty, what call() returned), or (why there is nothing, None)."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, call))
    process.start()
    theirs.close()
    error, value = f"not done after {limit:.0f} s", None
    try:
        if ours.poll(limit):
            error, value = ours.recv()
    except EOFError:
        process.join(5)
        error = f"the process died, exit code {process.exitcode}"
    process.kill()
    process.join(5)
    return error, value


def _send(connection: Connection, call: Callable[[], Any]) -> None:
    try:
        connection.send(("", call()))
    except Exception as error:
        traceback.print_exc()
        connection.send((traceback.format_exception_only(error)[-1].strip(), None))


def pytest_runtest_protocol(item: Any) -> bool:
    from _pytest.reports import TestReport
    from _pytest.runner import runtestprotocol

    def run() -> list[Any]:
        to_data = item.config.hook.pytest_report_to_serializable
        reports = runtestprotocol(item, log=False)
        return [to_data(config=item.config, report=report) for report in reports]

    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{item.nodeid}\n".encode())
    error, found = isolated(run, SECONDS)
    if error:
        reports = [TestReport(item.nodeid, item.location, {}, "failed", error, "call")]
    else:
        from_data = item.config.hook.pytest_report_from_serializable
        reports = [from_data(config=item.config, data=data) for data in found]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
