"""A worker process that computes with the rnnext of one built source tree."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import measure


class Worker:
    """Runs functions in a process whose rnnext is `tree`'s; all other modules are this tree's.

    The process may use `threads` cores (0: all). RuntimeError when it dies or cannot import.
    """

    def __init__(self, tree: Path, threads: int = 0) -> None:
        self.tree = tree
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, tree, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._result()  # of the import

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What function(*arguments), of this tree's modules, returns there.

        RuntimeError, with its traceback, if it raises.
        """
        self._connection.send((function, arguments))
        return self._result()

    def _result(self) -> Any:
        try:
            error, value = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"the worker of {self.tree} died, exit code {code}") from None
        if error:
            raise RuntimeError(f"in the worker of {self.tree}:\n{error}")
        return value

    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, tree: Path, threads: int) -> None:
    count = measure.pin_threads(threads)  # before torch is imported
    _answer(connection, _import_rnnext, tree, count)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        _answer(connection, function, *arguments)


def _answer(connection: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        connection.send(("", function(*arguments)))
    except Exception:
        connection.send((traceback.format_exc(), None))


def _import_rnnext(tree: Path, threads: int) -> None:
    """Import rnnext from the tree, which then leaves the path: benchmarks come from this one."""
    sys.path.insert(0, str(tree))
    import torch

    import rnnext

    sys.path.remove(str(tree))
    found = Path(rnnext.__file__).resolve().parents[1]
    if found != tree.resolve():
        raise RuntimeError(f"rnnext was imported from {found}: is {tree} built?")
    torch.set_num_threads(threads)
