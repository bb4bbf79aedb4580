"""The check of other libraries' models, on one made here."""

import pytest
import torch

import rnnext
from benchmarks import clients, compared, measure


def tagger(wrong: str = "", layers: type = torch.nn.GRU) -> clients.Client:
    model, x = layers(3, 4), torch.randn(5, 2, 3)

    def output(way: str) -> torch.Tensor:
        return model(x)[0] * (1.001 if way == wrong and isinstance(model, rnnext.GRU) else 1.0)

    train = clients.training(model, lambda: output("train").square().mean())
    return clients.Client(model, lambda: [output("infer")], train)


def test_a_client_is_timed_only_if_its_results_are_the_same(monkeypatch):
    monkeypatch.setattr(compared, "EFFORT", measure.Effort(0, 1, 1, 0, 0))
    assert clients.measured(tagger).keys() >= {f"train {side}" for side in ("ours", "other")}
    for way in ("infer", "train"):
        with pytest.raises(RuntimeError, match=f"{way}: results differ"):
            clients.measured(lambda way=way: tagger(way))
    with pytest.raises(RuntimeError, match="is not converted"):
        clients.measured(lambda: tagger(layers=type("Own", (torch.nn.GRU,), {})))
