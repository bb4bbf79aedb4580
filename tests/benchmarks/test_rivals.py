import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cases, measure, names, rivals, runner
from benchmarks.rivals import contract

LAYER, TABLE = {"T": 5, "B": 3, "I": 4, "H": 6}, {"V": 50, "D": 3, "N": 40}
CASES = [
    cases.Case("rnn", "infer", **LAYER),
    *(
        cases.Case("rnn", mode, **LAYER, **options)
        for mode, options in zip(itertools.cycle(cases.MODES[::-1]), cases.OPTIONS, strict=False)
    ),
    *(
        cases.Case("rnn", mode, **LAYER, **cases.OPTIONS[2], packed=True, cell=cell)
        for cell, mode in itertools.product(cases.GATED, cases.MODES)
    ),
    *(cases.Case("cell", "train", **LAYER, cell=cell) for cell in ("rnn", *cases.GATED)),
    *(cases.Case("embedding", "train", **TABLE, indices="zipf", sparse=s) for s in (False, True)),
    *(cases.Case("embedding", "backward", **TABLE, indices=i) for i in ("uniform", "repeated")),
    cases.Case("demo", "train", T=7, B=2, I=12, H=12, V=20),
]
EFFORT = measure.Effort(0.001, min_rounds=1, max_rounds=1, sample_seconds=0, warm_seconds=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_rival_agrees_and_is_timed(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    row = runner.time_case(case, rivals.installed(), EFFORT, threads=1)
    assert row.failed == {}
    assert {names.OURS, names.TORCH} <= row.seconds.keys()


def test_a_rival_that_is_wrong_is_not_timed():
    prepared = rivals.theirs().prepare(CASES[0], contract.Data(CASES[0]), 1)
    bad = {name: values + 1e-3 for name, values in prepared.result().items()}
    wrong = SimpleNamespace(name="wrong", prepare=lambda *_: replace(prepared, result=lambda: bad))
    row = runner.time_case(CASES[0], [rivals.ours(), wrong], EFFORT, threads=1)
    assert row.seconds.keys() == {names.OURS}
    assert "output is off by" in row.failed["wrong"]


@pytest.mark.parametrize("cell", ["rnn", *cases.GATED])
@pytest.mark.parametrize("B", [1, 3])
def test_rivals_agree_about_a_stream_and_go_on_from_their_state(B, cell):
    case = cases.Case("step", "infer", B=B, I=4, H=6, cell=cell)
    data, rnn = contract.Data(case), contract.layer_of(torch.nn, case)
    rnn.load_state_dict(data.state)
    with torch.no_grad():
        second = rnn(data.input.expand(2, B, 4))[0][1]
    streaming = {"rnnext", "torch.nn", "onnxruntime", "openvino", "jax"}
    for rival in (rival for rival in rivals.installed() if rival.name in streaming):
        prepared = rival.prepare(case, data, threads=1)
        for _ in range(3):
            prepared.call()
        contract.compare(case, {"output": contract.array(second)}, prepared.result())
