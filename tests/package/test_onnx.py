"""torch.onnx.export(dynamo=True) gives ONNX's RNN, GRU, LSTM and Gather; onnxruntime's results."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_close
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
    options = {"custom_translation_table": table, "dynamic_shapes": dynamic, "verbose": False}
    return torch.onnx.export(model, given, dynamo=True, **options)


def features(*shape, batch_first=False):
    x = torch.randn(*shape, 3)
    return x.transpose(0, 1) if batch_first else x


class Functional(nn.Module):
    """Both directions, with precomputed inputs, in all activations.

    States stay small: onnxruntime's softplus is infinite from 89 on.
    """

    def __init__(self):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.randn(4, 4) / 4)

    def forward(self, x, hx, lengths):
        found = ()
        for n, name in enumerate(rnnext.onnx._ACTIVATIONS):
            found += functional.recurrence(
                x, hx, None, self.weight_hh, lengths=lengths, nonlinearity=name, reverse=n == 0
            )
        return found


def words(*shape):
    return (torch.randint(9, shape),)


CELL = rnnext.RNNCell(3, 4, nonlinearity="relu")
BATCH_FIRST = rnnext.RNN(3, 4, 2, "relu", batch_first=True, bidirectional=True)
TOKENS = nn.Sequential(rnnext.Embedding(9, 3, padding_idx=2), rnnext.RNN(3, 4))
# Few tokens, of which features are made, and many, for which the table is multiplied.
WORDS = rnnext.EmbeddingRNN(9, 3, 4, 2, batch_first=True, bidirectional=True)
NO_BIAS = rnnext.RNN(3, 4, 2, bias=False, batch_first=True)
# A model, its dynamic sizes, how often it has an operator, and calls, of which the first is traced.
CASES = {
    **{
        f"{kind} in both directions": (
            getattr(rnnext, kind)(3, 4, 2, bidirectional=True), ({0: T, 1: B}, {1: B}), {kind: 2},
            [(features(t, b), torch.randn(4, b, 4)) for t, b in ((5, 2), (11, 3), (1, 1))],
        )
        for kind in ("RNN", "GRU")
    },
    "lengths": (
        BATCH_FIRST, ({0: B, 1: T}, None, {0: B}), {"RNN": 2},
        [
            (features(max(n), len(n), batch_first=True), None, torch.tensor(n))
            for n in ((5, 3, 1), (2, 7), (1, 4, 6, 3))
        ],
    ),
    "one sequence, no biases": (
        NO_BIAS, ({0: T}, None), {"RNN": 2}, [(features(t), torch.randn(2, 4)) for t in (5, 9)],
    ),
    **{
        name: (cell, ({0: B}, {0: B}), {}, [(features(b), torch.randn(b, 4)) for b in (2, 5)])
        for name, cell in (("cell", CELL), ("GRU cell", rnnext.GRUCell(3, 4)))
    },
    "LSTM with lengths": (
        rnnext.LSTM(3, 4, 2, batch_first=True, bias=False),
        ({0: B, 1: T}, ({1: B}, {1: B}), {0: B}), {"LSTM": 2},
        [
            (features(max(n), len(n), batch_first=True), tuple(torch.randn(2, 2, len(n), 4)),
             torch.tensor(n))
            for n in ((5, 0, 1), (2, 7), (1, 4, 0, 3))
        ],
    ),
    "LSTM of one sequence": (
        rnnext.LSTM(3, 4, bidirectional=True), ({0: T},), {"LSTM": 1},
        [(features(t),) for t in (5, 9)],
    ),
    "LSTM cell": (
        rnnext.LSTMCell(3, 4), ({0: B}, ({0: B}, {0: B})), {},
        [(features(b), (torch.randn(b, 4), torch.randn(b, 4))) for b in (2, 5)],
    ),
    "words of a GRU": (
        rnnext.EmbeddingRNN(9, 3, 4, cell="gru"), ({0: T, 1: B},), {"Gather": 1, "GRU": 1},
        [words(5, 2), words(4, 3)],
    ),
    "cell of one": (rnnext.RNNCell(3, 4, bias=False), None, {}, [(torch.randn(3), None)]),
    "embedding": (
        TOKENS, ({0: T, 1: B},), {"Gather": 1, "RNN": 1},
        [(words(t, b)[0].int(),) for t, b in ((5, 2), (7, 3))],
    ),
    "few words": (
        WORDS, ({0: B, 1: T},), {"Gather": 1}, [words(2, 5), words(3, 4), words(5, 60)],
    ),
    "many words": (
        WORDS, ({0: B, 1: T},), {"Gather": 1}, [words(2, 50), words(3, 4), words(5, 60)],
    ),
    "functional": (
        Functional(), ({1: B}, {0: B}, {0: B}), {},
        [
            (torch.randn(6, len(n), 4), torch.randn(len(n), 4), torch.tensor(n))
            for n in ((6, 2), (1, 3, 5), (0, 4))
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_the_same(name):
    model, dynamic, operators, calls = CASES[name]
    program = exported(model.eval(), calls[0], dynamic)
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}
    types = [node.op_type for node in program.model.graph]
    assert {kind: types.count(kind) for kind in operators} == operators
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    for given in calls:
        flat = [t.numpy() for t in tree_leaves(given) if t is not None]
        actual = session.run(None, dict(zip(names, flat, strict=True)))
        with torch.no_grad():
            assert_close([torch.from_numpy(a) for a in actual], tree_leaves(model(*given)))


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnnext.RNN(3, 4)

    def forward(self, x, lengths):
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths))[1]


def test_a_packed_sequence_is_refused_with_what_to_do():
    with pytest.raises(NotImplementedError, match="give the padded input, and lengths= beside it"):
        torch.export.export(Packing(), (features(5, 2), torch.tensor([5, 3])), strict=False)


NONE = "ONNX's operators RNN, GRU and LSTM have no "


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (rnnext.LeakyRNN(3, 4, alpha=0.5).eval(), [], rf"{NONE}leak \(alpha\)"),
        (rnnext.RNN(3, 4), [None, None, torch.ones(5, 2) > 0], f"{NONE}reset"),
        (rnnext.RNN(3, 4).bfloat16(), [], f"{NONE}bfloat16"),
        (rnnext.RNN(3, 4, 2, dropout=0.5), [], r"call model\.eval\(\) first"),
    ],
    ids=["leak", "reset", "bfloat16", "dropout"],
)
def test_what_onnx_cannot_say_is_named(model, given, message):
    with pytest.raises(torch.onnx.OnnxExporterError, match=message):
        exported(model, (features(5, 2).to(next(model.parameters()).dtype), *given))
