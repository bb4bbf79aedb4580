"""The notebook `examples/rnn_basics.ipynb` runs from top to bottom and is saved as it ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parents[2] / "examples" / "rnn_basics.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
FIGURES = 3


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_every_cell_runs_and_agrees_with_torch():
    """In one fresh namespace, as in a kernel; the checks inside compare with torch.nn."""
    torch.set_num_threads(1)  # calls this small wait for each other on a busy machine
    plt.switch_backend("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE, 1):
        exec(compile(source(cell), f"code cell {number}", "exec"), namespace)
    assert len(plt.get_fignums()) == FIGURES
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def test_saved_as_run():
    """After one run of all cells in order, in twelve sections, with its figures and no error."""
    assert [tags(cell) for cell in CODE if tags(cell)] == [["setup"], ["picture"]]
    for cell in CODE:
        assert tags(cell) or "\ncheck(" in source(cell), source(cell)
    titles = [source(cell).split(".")[0] for cell in CELLS if source(cell).startswith("## ")]
    assert titles[:12] == [f"## {n}" for n in range(1, 13)]
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    kinds = {"execute_result", "stream", "display_data"}
    assert {output["output_type"] for output in outputs} == kinds
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES
    assert [line for cell in CELLS for line in source(cell).split("\n") if len(line) > 100] == []
