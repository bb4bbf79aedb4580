"""The notebook `examples/rnn_basics.ipynb` runs from top to bottom and is saved as it ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "rnn_basics.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_every_cell_runs_and_agrees_with_torch():
    """In one fresh namespace, as in a kernel; the assertions inside compare with torch.nn."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE, 1):
        exec(compile(source(cell), f"code cell {number}", "exec"), namespace)


@pytest.mark.parametrize("number", range(1, len(CODE)))
def test_every_computing_cell_asserts(number):
    assert "assert" in source(CODE[number])


def test_twelve_sections():
    titles = [source(cell).split("\n")[0] for cell in CELLS if source(cell).startswith("## ")]
    assert [title.split(".")[0] for title in titles[:12]] == [f"## {n}" for n in range(1, 13)]


def test_saved_as_run():
    """Saved after one run of all cells in order, with no error among the outputs."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds <= {"execute_result", "stream"}
