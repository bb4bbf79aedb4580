"""Per-sample gradients by opacus, against those of torch.nn's modules, sample by sample."""

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_close

opacus = pytest.importorskip("opacus", reason="in the extra `test`")


def outputs_of(base):
    """opacus wants a tensor from each layer."""

    class Outputs(base):
        def forward(self, x):
            return super().forward(x)[0]

    return Outputs


def model(library):
    torch.manual_seed(0)
    rnn = outputs_of(library.RNN)(4, 6, num_layers=2, batch_first=True)
    layers = (library.Embedding(9, 4, padding_idx=1), rnn, nn.Linear(6, 2))
    return nn.Sequential(*layers).double()


@pytest.mark.filterwarnings("ignore")  # opacus' own: backward hooks, and what it will change
def test_grad_sample_module_by_functorch():
    theirs, ours = model(nn), model(rnnext)
    sampled = opacus.GradSampleModule(ours, force_functorch=True, loss_reduction="sum")
    tokens = torch.randint(9, (3, 5))
    sampled(tokens).square().sum().backward()
    for n, sample in enumerate(tokens):
        theirs.zero_grad()
        theirs(sample.unsqueeze(0)).square().sum().backward()
        assert_close(
            [parameter.grad_sample[n] for parameter in ours.parameters()],
            [parameter.grad for parameter in theirs.parameters()],
        )
