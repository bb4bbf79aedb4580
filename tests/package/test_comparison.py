"""What the table of docs/comparison.md says of torch.nn and of torchrl, where they can be asked."""

import inspect
import itertools

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from helpers.prose import ROOT, text


def column(library):
    """The cells of a library, by feature."""
    lines = [x for x in text(ROOT / "docs" / "comparison.md").split("\n") if x.startswith("|")]
    start = next(i for i, x in enumerate(lines) if "| rnnext | `nn.RNN` |" in x)
    rows = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines[start:]]
    rows = list(itertools.takewhile(lambda row: len(row) == len(rows[0]), rows))
    place = next(i for i, name in enumerate(rows[0]) if library in name)
    return {row[0]: row[place] for row in rows[2:]}


def test_what_nn_rnn_takes():
    cells = column("nn.RNN")
    for feature in ("leak", "resets within a row", "noise"):
        assert cells[feature] == "no"
    assert list(inspect.signature(nn.RNN.forward).parameters) == ["self", "input", "hx"]
    assert dict(nn.RNN(3, 4).named_parameters()).keys() == {
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0",
    }  # fmt: skip
    assert cells["activations of an Elman cell"] == "2"
    for nonlinearity in ("sigmoid", "softplus", "identity"):
        with pytest.raises(ValueError, match="Unknown nonlinearity"):
            nn.RNN(3, 4, nonlinearity=nonlinearity)
    assert cells["lengths"] == "`PackedSequence`"
    rnn, x = nn.RNN(3, 4), torch.randn(5, 2, 3)
    output, _ = pad_packed_sequence(rnn(pack_padded_sequence(x, [5, 2]))[0])
    torch.testing.assert_close(output[:2, 1:], rnn(x[:2, 1:])[0])
    assert (output[2:, 1] == 0).all()


def test_which_derivatives_nn_rnn_has_on_the_cpu():
    cells = column("nn.RNN")
    rnn = nn.RNN(2, 3, dtype=torch.float64)
    x = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert cells["double backward"].startswith("on the CPU")
    assert cells["forward-mode derivatives"] == "on the CPU"
    assert torch.autograd.gradcheck(lambda x: rnn(x)[0], x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], x)

    x = torch.randn(5, 4, 2, dtype=torch.float64)
    assert cells["`vmap`, per-sample gradients"] == "no"
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, x):
        return functional_call(rnn, parameters, (x,))[0].sum()

    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        vmap(rnn)(x)
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        vmap(grad(loss), in_dims=(None, 0))(parameters, x.expand(6, 5, 4, 2))
    assert cells["several sets of weights in one call"] == "no"
    stacked, _ = stack_module_state([rnn, nn.RNN(2, 3, dtype=torch.float64)])
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        vmap(lambda own: functional_call(rnn, own, (x,)))(stacked)


def test_nn_rnn_does_not_compile_into_one_graph():
    assert column("nn.RNN")["`torch.compile(fullgraph=True)`"] == "no"
    compiled = torch.compile(nn.RNN(2, 3), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN"):
        compiled(torch.randn(5, 4, 2))


def test_torchrl_has_lstm_and_gru_modules_that_read_is_init():
    modules = pytest.importorskip("torchrl.modules")
    cells = column("torchrl")
    assert cells["cells"] == "LSTM, GRU"
    assert cells["resets within a row"] == "yes, `is_init`"
    assert not hasattr(modules, "RNNModule")
    for kind in (modules.LSTMModule, modules.GRUModule):
        module = kind(input_size=3, hidden_size=4, in_key="observation", out_key="embed")
        assert "is_init" in module.in_keys
