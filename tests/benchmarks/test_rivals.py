"""All who take part compute the same."""

import itertools

import pytest
import torch

from benchmarks import cases, names, rivals
from benchmarks.rivals import contract

SHAPE = {"T": 5, "B": 3, "I": 4, "H": 6}


@pytest.mark.parametrize(
    ("mode", "options"),
    [("infer", {}), *zip(itertools.cycle(cases.MODES[::-1]), cases.OPTIONS, strict=False)],
)
def test_every_rival_agrees(mode, options, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    case = cases.Case("rnn", mode, **SHAPE, **options)
    data, expected = contract.Data(case), None
    for rival in rivals.installed():
        try:
            prepared = rival.prepare(case, data, threads=1)
        except contract.Unsupported:
            assert rival.name not in (names.OURS, names.TORCH)
            continue
        prepared.call()
        result = prepared.result()
        expected = expected or result
        contract.compare(case, expected, result)
    spoilt = {**expected, "output": expected["output"] + 1e-3}
    with pytest.raises(ValueError, match="output is off by"):
        contract.compare(case, expected, spoilt)


@pytest.mark.parametrize("B", [1, 3])
def test_rivals_agree_about_a_stream_and_go_on_from_their_state(B):
    case = cases.Case("step", "infer", B=B, I=4, H=6)
    data = contract.Data(case)
    rnn = torch.nn.RNN(4, 6)
    rnn.load_state_dict(data.state)
    with torch.no_grad():
        second = rnn(data.input.expand(2, B, 4))[0][1]
    streaming = {"rnnext", "torch.nn", "onnxruntime", "openvino", "jax"}
    for rival in (rival for rival in rivals.installed() if rival.name in streaming):
        prepared = rival.prepare(case, data, threads=1)
        for _ in range(3):
            prepared.call()
        contract.compare(case, {"output": contract.array(second)}, prepared.result())


def test_embedding_rivals_agree_and_indices_change():
    for sparse in (False, True):
        case = cases.Case("embedding", "train", V=50, D=3, N=40, indices="zipf", sparse=sparse)
        data = contract.Data(case)
        ours, torchs = (r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs()))
        assert contract.compare(case, ours.result(), torchs.result()) < 1e-6
        assert len({tuple(indices.tolist()) for indices in data.indices}) == contract.INDEX_SETS
    for indices in ("uniform", "repeated"):  # the gradient alone
        case = cases.Case("embedding", "backward", V=50, D=3, N=40, indices=indices)
        data = contract.Data(case)
        assert len(set(data.indices[0].tolist())) <= (50 if indices == "uniform" else 16)
        results = [r.prepare(case, data, 1).result() for r in (rivals.ours(), rivals.theirs())]
        assert results[0].keys() == {"grad:weight"}
        assert contract.compare(case, *results) < 1e-6


def test_the_demo_takes_the_same_steps_with_both_libraries():
    case = cases.Case("demo", "train", T=7, B=2, I=12, H=12, V=20)
    data = contract.Data(case)
    ours, theirs = (r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs()))
    ours.call()
    assert contract.compare(case, ours.result(), theirs.result()) < 1e-5
    for rival in rivals.installed():
        if rival.name not in (names.OURS, names.TORCH):
            with pytest.raises(contract.Unsupported):
                rival.prepare(case, data, 1)
