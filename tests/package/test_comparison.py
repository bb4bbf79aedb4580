"""What the table of docs/comparison.md says of torch.nn and of torchrl, where they can be asked."""

import inspect
import itertools

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
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


def test_nn_rnn_has_no_leak_reset_noise_or_ready_inputs():
    cells = column("nn.RNN")
    for feature in ("leak", "resets within a row", "noise"):
        assert cells[feature] == "no"
    assert list(inspect.signature(nn.RNN.forward).parameters) == ["self", "input", "hx"]
    assert dict(nn.RNN(3, 4).named_parameters()).keys() == {
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0",
    }  # fmt: skip


def test_nn_rnn_has_two_activations():
    assert column("nn.RNN")["activations of an Elman cell"] == "2"
    for nonlinearity in ("sigmoid", "softplus", "identity"):
        with pytest.raises(ValueError, match="Unknown nonlinearity"):
            nn.RNN(3, 4, nonlinearity=nonlinearity)


def test_nn_rnn_takes_packed_sequences():
    assert column("nn.RNN")["lengths"] == "`PackedSequence`"
    rnn, x = nn.RNN(3, 4), torch.randn(5, 2, 3)
    output, _ = pad_packed_sequence(rnn(pack_padded_sequence(x, [5, 2]))[0])
    torch.testing.assert_close(output[:2, 1:], rnn(x[:2, 1:])[0])
    assert (output[2:, 1] == 0).all()


def test_nn_rnn_has_a_double_backward_on_the_cpu():
    assert column("nn.RNN")["double backward"].startswith("on the CPU")
    rnn = nn.RNN(2, 3, dtype=torch.float64)
    x = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], x)


def test_nn_rnn_has_forward_mode_on_the_cpu_and_no_vmap():
    cells = column("nn.RNN")
    assert cells["forward-mode derivatives"] == "on the CPU"
    rnn = nn.RNN(2, 3, dtype=torch.float64)
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    _, tangent = jvp(lambda x: rnn(x)[0], (x,), (torch.ones_like(x),))
    few = 1e-5
    difference = (rnn(x + few)[0] - rnn(x - few)[0]) / (2 * few)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)

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
