"""Modules and functions under torch.func's transforms, against torch.nn's, call by call."""

import copy
import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_close, pair, stacked

N = 3
features = functools.partial(torch.rand, dtype=torch.float64)


def twins(name, *args, **kwargs):
    """torch.nn's module and ours, of one state."""
    kwargs["dtype"] = torch.float64
    if name != "EmbeddingRNN":
        return pair(name, *args, **kwargs)
    ours = rnnext.EmbeddingRNN(*args, **kwargs)
    table, rnn = nn.Embedding(*args[:2], dtype=torch.float64), nn.RNN(*args[1:], **kwargs)
    theirs = nn.Sequential(OrderedDict(embedding=table, rnn=rnn))
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def tokens(*shape):
    return torch.randint(5, shape)


# Name, arguments, keywords, and N inputs of a call.
MODULES = {
    "RNN of one sequence": ("RNN", (4, 6), {"nonlinearity": "relu"}, (features(N, 5, 4),)),
    "bidirectional RNN": (
        "RNN", (4, 6, 2), {"bidirectional": True, "bias": False}, (features(N, 5, 2, 4),)
    ),
    "RNN with hx": (
        "RNN", (4, 6, 2), {"batch_first": True}, (features(N, 2, 5, 4), features(N, 2, 2, 6))
    ),
    "LSTM": ("LSTM", (4, 6, 2), {"bidirectional": True}, (features(N, 5, 2, 4),)),
    "RNNCell": ("RNNCell", (4, 6), {}, (features(N, 2, 4), features(N, 2, 6))),
    "Embedding by frequency, with padding": (
        "Embedding", (5, 3, 2), {"scale_grad_by_freq": True}, (tokens(N, 7),)
    ),
    "EmbeddingRNN of repeated tokens": (
        "EmbeddingRNN", (5, 3, 6, 2), {"bidirectional": True}, (tokens(N, 9, 2),)
    ),
}  # fmt: skip


@pytest.fixture(params=MODULES, name="module")
def _module(request):
    name, args, kwargs, inputs = MODULES[request.param]
    return (*twins(name, *args, **kwargs), inputs)


def value_of(module):
    def value(parameters, *inputs):
        results = tree_leaves(functional_call(module, parameters, inputs))
        return torch.cat([result.flatten() for result in results]).square().sum()

    return value


def eager_gradients(module, inputs):
    module.zero_grad()
    value_of(module)(dict(module.named_parameters()), *inputs).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


def test_vmap_over_inputs_and_per_sample_gradients(module):
    theirs, ours, inputs = module
    result = tree_leaves(vmap(ours)(*inputs))
    assert_close(result, stacked([tree_leaves(theirs(*x)) for x in zip(*inputs, strict=True)]))
    moved = [each.movedim(0, -1) for each in inputs]
    assert_close(tree_leaves(vmap(ours, in_dims=-1)(*moved)), result)
    none = tree_leaves(vmap(ours)(*[each[:0] for each in inputs]))
    assert [each.shape for each in none] == [(0, *each.shape[1:]) for each in result]
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    gradients = vmap(grad(value_of(ours)), in_dims=(None, *[0] * len(inputs)))
    expected = stacked([eager_gradients(theirs, each) for each in zip(*inputs, strict=True)])
    assert_close(list(gradients(parameters, *inputs).values()), expected)
    found = gradients(parameters, *[each[:0] for each in inputs])
    assert [v.shape for v in found.values()] == [(0, *v.shape) for v in parameters.values()]


def test_gradients_of_each_call_without_steps():
    x, hx, weight = features(N, 0, 2, 6), features(N, 2, 6), features(6, 6)

    def value(weight, hx, x):
        return (rnnext.functional.recurrence(x, hx, None, weight)[1] * 3).sum()

    found = vmap(grad(value, (0, 1)), in_dims=(None, 0, 0))(weight, hx, x)
    assert_close(found, [torch.zeros(N, 6, 6).double(), torch.full((N, 2, 6), 3).double()])


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "inputs"])
def test_ensemble_of_modules(module, shared):
    theirs, ours, inputs = module
    members = [copy.deepcopy(theirs) for _ in range(N)]
    for member in members:
        for parameter in member.parameters():
            nn.init.uniform_(parameter, -1, 1)
    parameters, buffers = stack_module_state(members)
    own = [[each[0 if shared else m] for each in inputs] for m in range(N)]
    given, dims = (own[0], None) if shared else (inputs, 0)

    def call(parameters, buffers, *inputs):
        return functional_call(ours, (parameters, buffers), inputs)

    in_dims = (0, 0, *[dims] * len(inputs))
    result = tree_leaves(vmap(call, in_dims=in_dims)(parameters, buffers, *given))
    pairs = list(zip(members, own, strict=True))
    assert_close(result, stacked([tree_leaves(member(*each)) for member, each in pairs]))
    sum(each.square().sum() for each in result).backward()
    gradients = stacked([eager_gradients(member, each) for member, each in pairs])
    assert_close([parameter.grad for parameter in parameters.values()], gradients)


def test_a_mapped_call_can_be_exported():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnnext.RNN(4, 6, 2)

        def forward(self, x):
            return vmap(self.rnn)(x)

    model, x = Mapped(), torch.rand(N, 5, 2, 4)
    assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_noise_is_drawn_for_each_call_or_for_all():
    leaky = rnnext.LeakyRNN(4, 6, alpha=0.5, noise_std=1.0, form="voltage")
    x = torch.rand(5, 2, 4).expand(N, -1, -1, -1)
    torch._C._functorch._set_vmap_fallback_enabled(False)  # torch warns of an op without a rule
    for call in (leaky, leaky.potentials):
        same, different = (vmap(call, randomness=word)(x)[0] for word in ("same", "different"))
        assert torch.equal(same[0], same[1])
        assert not torch.equal(different[0], different[1])


def test_a_sparse_gradient_is_refused_by_name():
    embedding = rnnext.Embedding(5, 3, sparse=True)
    parameters = {"weight": embedding.weight.detach()}
    assert vmap(embedding)(tokens(N, 4)).shape == (N, 4, 3)
    with pytest.raises(NotImplementedError, match="sparse=False"):
        vmap(grad(value_of(embedding)), in_dims=(None, 0))(parameters, tokens(N, 4))


def test_packed_sequences_of_which_the_data_is_mapped():
    (theirs, ours), data = twins("RNN", 4, 6, 2), features(N, 5, 4)

    def of(module):
        def call(data):
            output, h_n = module(nn.utils.rnn.PackedSequence(data, torch.tensor([2, 2, 1])))
            return output.data, h_n

        return call

    assert_close(vmap(of(ours))(data), stacked([of(theirs)(each) for each in data]))
    with pytest.raises(ValueError, match="vmap must map a call at least of a packed sequence"):
        vmap(of(ours))(data[:0])


def test_compiled_transforms():
    ours = rnnext.RNN(4, 6, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    each = vmap(grad(value_of(ours)), in_dims=(None, 0))
    for samples in (N, N + 1, N + 2):  # the batch becomes a symbol
        x = features(samples, 5, 4)
        result = torch.compile(each, fullgraph=True, backend="aot_eager")(parameters, x)
        assert_close(list(result.values()), list(each(parameters, x).values()))


def test_a_compiled_derivative_of_a_gradient():
    """Its gates are differentiated within a kernel, by the autograd engine."""
    ours, x = rnnext.LSTMCell(4, 6), torch.randn(N, 4)

    def derivative(x):
        return jvp(grad(lambda x: ours(x)[0].sum()), (x,), (x,))[1]

    assert_close(torch.compile(derivative, backend="eager")(x), derivative(x))


def test_padding_of_each_mapped_table_has_a_tangent():
    tables, rows = features(N, 5, 3), torch.arange(5)
    of_each = vmap(lambda table: rnnext.functional.embedding(rows, table, 1))
    assert_close(*jvp(of_each, (tables,), (tables,)))  # it is linear


@pytest.mark.filterwarnings("ignore:.* performance drop")  # of torch's own renorm
def test_an_ensemble_of_tables_of_bounded_norm():
    embedding, tables = rnnext.Embedding(5, 3, max_norm=0.5), torch.randn(N, 5, 3)
    rows = vmap(lambda table: functional_call(embedding, {"weight": table}, torch.arange(5)))
    assert_close(rows(tables), tables.flatten(end_dim=1).renorm(2, 0, 0.5).view(N, 5, 3))


def private_model(library):
    class Outputs(library.RNN):
        """opacus wants a tensor from each layer."""

        def forward(self, x):
            return super().forward(x)[0]

    torch.manual_seed(0)
    rnn = Outputs(4, 6, num_layers=2, batch_first=True)
    return nn.Sequential(library.Embedding(9, 4, padding_idx=1), rnn, nn.Linear(6, 2)).double()


@pytest.mark.filterwarnings("ignore")  # opacus' own: backward hooks, and what it will change
def test_per_sample_gradients_by_opacus():
    opacus = pytest.importorskip("opacus", reason="in the extra `test`")
    theirs, ours = private_model(nn), private_model(rnnext)
    sampled = opacus.GradSampleModule(ours, force_functorch=True, loss_reduction="sum")
    samples = tokens(3, 5)
    sampled(samples).square().sum().backward()
    for n, sample in enumerate(samples):
        theirs.zero_grad()
        theirs(sample.unsqueeze(0)).square().sum().backward()
        assert_close(
            [parameter.grad_sample[n] for parameter in ours.parameters()],
            [parameter.grad for parameter in theirs.parameters()],
        )
