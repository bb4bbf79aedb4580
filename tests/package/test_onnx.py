"""torch.onnx.export(dynamo=True) gives ONNX's RNN and Gather; onnxruntime computes the same."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import rnnext
from helpers.common import assert_close
from reference.elman import ACTIVATIONS
from rnnext import functional

pytest.importorskip("onnxscript", reason="in the extra `test`")
onnxruntime = pytest.importorskip("onnxruntime", reason="in the extra `test`")

# The exporter's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:# :UserWarning", "ignore:Exporting a model while:UserWarning"
)

T, B = Dim("T", max=99), Dim("B", max=99)


def exported(model, given, dynamic=None):
    import rnnext.onnx

    table = rnnext.onnx.translation_table()
    return torch.onnx.export(
        model.eval(),
        given,
        dynamo=True,
        custom_translation_table=table,
        dynamic_shapes=dynamic,
        verbose=False,
    )


def operators(program):
    """How often the graph has each operator."""
    types = [node.op_type for node in program.model.graph]
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}
    return {kind: types.count(kind) for kind in set(types)}


def check(program, model, *calls):
    """The program's results in onnxruntime are the model's, for each of the calls."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    for given in calls:
        flat = [t.numpy() for t in given if t is not None]
        actual = session.run(None, dict(zip(names, flat, strict=True)))
        with torch.no_grad():
            expected = model(*given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert_close([torch.from_numpy(a) for a in actual], expected)


def features(time, batch, batch_first):
    return torch.randn(batch, time, 3) if batch_first else torch.randn(time, batch, 3)


@pytest.mark.parametrize(
    ("layers", "bidirectional", "nonlinearity", "bias", "batch_first", "with_hx"),
    [
        (1, False, "tanh", True, False, False),
        (1, True, "relu", True, False, True),
        (2, False, "tanh", False, True, True),
        (2, True, "relu", False, True, False),
    ],
)
def test_rnn(layers, bidirectional, nonlinearity, bias, batch_first, with_hx):
    rnn = rnnext.RNN(3, 4, layers, nonlinearity, bias, batch_first, 0.0, bidirectional)

    def call(time, batch):
        states = torch.randn(layers * (1 + bidirectional), batch, 4)
        return (features(time, batch, batch_first), states if with_hx else None)

    dynamic = ({0: B, 1: T} if batch_first else {0: T, 1: B}, {1: B} if with_hx else None)
    program = exported(rnn, call(5, 2), dynamic)
    assert operators(program)["RNN"] == layers
    check(program, rnn, call(5, 2), call(11, 3), call(1, 1))


def test_lengths_are_sequence_lens():
    rnn = rnnext.RNN(3, 4, 2, bidirectional=True, batch_first=True)

    def call(*lengths):
        return (features(max(lengths), len(lengths), True), None, torch.tensor(lengths))

    program = exported(rnn, call(5, 3, 1), ({0: B, 1: T}, None, {0: B}))
    check(program, rnn, call(5, 3, 1), call(2, 7), call(1, 4, 6, 3))


def test_one_sequence():
    rnn = rnnext.RNN(3, 4, 2, bidirectional=True)

    def call(time):
        return (torch.randn(time, 3), torch.randn(4, 4))

    check(exported(rnn, call(5), ({0: T}, None)), rnn, call(5), call(9))


def test_cell():
    cell = rnnext.RNNCell(3, 4, nonlinearity="relu")

    def call(batch):
        return torch.randn(batch, 3), torch.randn(batch, 4)

    check(exported(cell, call(2), ({0: B}, {0: B})), cell, call(2), call(5))
    cell, one = rnnext.RNNCell(3, 4, bias=False), (torch.randn(3), None)
    check(exported(cell, one), cell, one)


def test_embedding_is_gather():
    model = nn.Sequential(rnnext.Embedding(9, 3, padding_idx=2), rnnext.RNN(3, 4))

    def call(time, batch):
        return (torch.randint(9, (time, batch), dtype=torch.int32),)

    program = exported(model, call(5, 2), ({0: T, 1: B},))
    assert operators(program)["Gather"] == operators(program)["RNN"] == 1
    check(program, model, call(5, 2), call(7, 3))


@pytest.mark.parametrize("time", [5, 50])
def test_embedding_rnn(time):
    """Few tokens, of which features are made, and many, for which the table is multiplied."""
    model = rnnext.EmbeddingRNN(9, 3, 4, 2, batch_first=True, bidirectional=True)
    program = exported(model, (torch.randint(9, (2, time)),), ({0: B, 1: T},))
    assert operators(program)["Gather"] == 1
    check(program, model, *((torch.randint(9, shape),) for shape in ((2, time), (3, 4), (5, 60))))


class Functional(nn.Module):
    """Both directions, with precomputed inputs, in all activations."""

    def __init__(self):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x, hx, lengths):
        found = ()
        for n, name in enumerate(ACTIVATIONS):
            found += functional.recurrence(
                x, hx, None, self.weight_hh, lengths=lengths, nonlinearity=name, reverse=n == 0
            )
        return found


def test_functional_recurrence():
    model = Functional()

    def call(*lengths):
        batch = len(lengths)
        return torch.randn(6, batch, 4), torch.randn(batch, 4), torch.tensor(lengths)

    program = exported(model, call(6, 2), ({1: B}, {0: B}, {0: B}))
    check(program, model, call(6, 2), call(1, 3, 5), call(0, 4))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnnext.RNN(3, 4)

    def forward(self, x, lengths):
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))[1]


def test_a_packed_sequence_is_refused_with_what_to_do():
    given = (torch.randn(5, 2, 3), torch.tensor([5, 3]))
    with pytest.raises(NotImplementedError, match="give the padded input, and lengths= beside it"):
        torch.export.export(Packed(), given, strict=False)


class Reset(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnnext.RNN(3, 4)

    def forward(self, x, reset):
        return self.rnn(x, reset=reset)


@pytest.mark.parametrize(
    ("model", "given", "what"),
    [
        (rnnext.LeakyRNN(3, 4, alpha=0.5), (torch.randn(5, 2, 3),), r"leak \(alpha\)"),
        (Reset(), (torch.randn(5, 2, 3), torch.ones(5, 2, dtype=torch.bool)), "reset"),
        (rnnext.RNN(3, 4).bfloat16(), (torch.randn(5, 2, 3).bfloat16(),), "bfloat16"),
    ],
    ids=["leak", "reset", "bfloat16"],
)
def test_what_onnx_cannot_say_is_named(model, given, what):
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"ONNX's operator RNN has no {what}"):
        exported(model, given)


def test_dropout_while_training_is_named():
    import rnnext.onnx

    with pytest.raises(torch.onnx.OnnxExporterError, match=r"call model\.eval\(\) first"):
        torch.onnx.export(
            rnnext.RNN(3, 4, 2, dropout=0.5),
            (torch.randn(5, 2, 3),),
            dynamo=True,
            custom_translation_table=rnnext.onnx.translation_table(),
            verbose=False,
        )
