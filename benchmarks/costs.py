"""What a case must do at least: operations, weights streamed each step, bytes moved once."""

from __future__ import annotations

from .cases import REPEATED_ROWS, Case

ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def operations(case: Case) -> float:
    """Multiplications and additions of the matrix products; training takes three forwards."""
    if case.kind == "embedding":
        return 0.0
    rows = sum(case.lengths)
    total = 2.0 * rows * case.directions * case.H * case.V  # the demo's scores
    for layer in range(case.layers):
        inputs = case.I if layer == 0 else case.directions * case.H
        total += 2.0 * rows * case.directions * case.H * (inputs + case.H)
    return total * (3 if case.mode == "train" else 1)


def step_operations(case: Case) -> float:
    """Those of them that wait for the step before: W_hh h, and W_hh^T times its gradient."""
    passes = 2 if case.mode == "train" else 1
    return 2.0 * passes * case.layers * sum(case.lengths) * case.directions * case.H**2


def streamed_bytes(case: Case) -> float:
    """Recurrent weights, once a step (twice in training), since each step waits for the last."""
    if case.kind == "embedding":
        return 0.0
    passes = 2 if case.mode == "train" else 1
    weights = case.layers * case.directions * case.H * case.H * ITEMSIZE[case.dtype]
    return float(passes * case.T * weights)


def moved_bytes(case: Case) -> float:
    """What must be read or written at least once: inputs, outputs, weights and their gradients.

    A table row that occurs twice is read once, and has one row in a sparse gradient; a write costs
    as much as a read.
    """
    item = ITEMSIZE[case.dtype]
    if case.kind == "embedding":
        output, row = case.N * case.D * item, case.D * item
        distinct = expected_distinct(case)
        gather = distinct * row + output + 8 * case.N
        gradient = distinct * (row + 8) if case.sparse else case.V * row
        backward = output + gradient + 8 * case.N
        return {"infer": gather, "train": gather + backward, "backward": backward}[case.mode]
    rows = sum(case.lengths)
    weights = 0
    for layer in range(case.layers):
        inputs = case.I if layer == 0 else case.directions * case.H
        weights += case.directions * case.H * (inputs + case.H + 2)
    features, output = rows * case.I, rows * case.directions * case.H
    if case.mode == "infer":
        return float(item * (features + output + weights))
    # Each layer's output is written forward and read backward; the last one's gradient is read.
    return float(item * (2 * features + (2 * case.layers + 1) * output + 2 * weights))


def expected_distinct(case: Case) -> float:
    """How many of the N indices are different, on average."""
    if case.indices != "zipf":
        rows = case.V if case.indices == "uniform" else REPEATED_ROWS
        return rows * (1 - (1 - 1 / rows) ** case.N)
    total = sum(1 / rank for rank in range(1, case.V + 1))
    return sum(1 - (1 - 1 / (rank * total)) ** case.N for rank in range(1, case.V + 1))
