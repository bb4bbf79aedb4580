"""The notebook `examples/rnn_basics.ipynb` runs from top to bottom and is saved as it ran."""

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parents[2] / "examples" / "rnn_basics.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
FIGURES = 3


def test_every_cell_runs_and_agrees_with_torch():
    """In one fresh namespace, as in a kernel; the checks inside compare with torch.nn."""
    torch.set_num_threads(1)  # calls this small wait for each other on a busy machine
    plt.switch_backend("Agg")
    plt.close("all")  # what other tests left
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE, 1):
        exec(compile("".join(cell["source"]), f"code cell {number}", "exec"), namespace)
    assert len(plt.get_fignums()) == FIGURES
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def test_saved_as_run():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES
