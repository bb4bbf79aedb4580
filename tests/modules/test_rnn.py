"""rnnext.RNN against torch.nn.RNN: values, gradients, and everything else a module can do."""

import copy
import functools
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn as rnn_utils

import rnnext
from helpers import common
from helpers.common import assert_close, case_id, error_of, pairwise, same

CONFIGS = pairwise(
    nonlinearity=["tanh", "relu"],
    bias=[True, False],
    batch_first=[False, True],
    num_layers=[1, 2, 3],
    bidirectional=[False, True],
    layout=["batched", "single", "strided", "packed", "packed_sorted"],
    with_hx=[True, False],
    dtype=[torch.float32, torch.float64],
)


pair = functools.partial(common.pair, "RNN")


def grads(module):
    return [p.grad for p in module.parameters()]


def run(module, x, hx, layout):
    """Output, h_n, and the gradients of x, hx and the parameters for a fixed random cotangent."""
    x = x.clone().requires_grad_()
    hx = None if hx is None else hx.clone().requires_grad_()
    given = x
    state = hx
    if layout == "single":
        given = x.select(0 if module.batch_first else 1, 0)
        state = None if hx is None else hx[:, 0]
    elif layout == "strided":
        given = x.transpose(0, 2).contiguous().transpose(0, 2)
        state = None if hx is None else hx.transpose(0, 2).contiguous().transpose(0, 2)
    elif layout.startswith("packed"):
        lengths = [5, 3, 1] if layout == "packed_sorted" else [1, 5, 3]
        given = rnn_utils.pack_padded_sequence(
            x, lengths, module.batch_first, enforce_sorted=layout == "packed_sorted"
        )
    output, h_n = module(given, state)
    if layout.startswith("packed"):
        assert isinstance(output, rnn_utils.PackedSequence)
        output, lengths_out = rnn_utils.pad_packed_sequence(output, module.batch_first)
        assert lengths_out.tolist() == lengths
    generator = torch.Generator().manual_seed(3)
    cotangents = [torch.rand(v.shape, generator=generator, dtype=v.dtype) for v in (output, h_n)]
    torch.autograd.backward([output, h_n], cotangents)
    result = [output, h_n, x.grad, *grads(module)]
    return result if hx is None else [*result, hx.grad]


@pytest.mark.parametrize("config", CONFIGS, ids=case_id)
def test_values_and_gradients(config):
    config = dict(config)
    layout, with_hx = config.pop("layout"), config.pop("with_hx")
    theirs, ours = pair(4, 6, **config)
    x = torch.randn((3, 5, 4) if theirs.batch_first else (5, 3, 4), dtype=config["dtype"])
    states = theirs.num_layers * (2 if theirs.bidirectional else 1)
    hx = torch.randn(states, 3, 6, dtype=config["dtype"]) if with_hx else None
    assert_close(run(ours, x, hx, layout), run(theirs, x, hx, layout))


@pytest.mark.parametrize("layout", ["batched", "single", "packed", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_without_gradients_give_the_same_bits(layout, batch_first):
    rnn = rnnext.RNN(4, 64, 3, batch_first=batch_first, dropout=0.5).eval()
    x, hx = torch.randn((2, 70, 4) if batch_first else (70, 2, 4)), torch.randn(3, 2, 64)
    given = {"input": x, "hx": hx}
    if layout == "single":
        given = {"input": x.select(0 if batch_first else 1, 0), "hx": hx[:, 0]}
    elif layout == "packed":
        packed = rnn_utils.pack_padded_sequence(x, [50, 70], batch_first, enforce_sorted=False)
        given["input"] = packed
    elif layout == "lengths":
        given["lengths"] = torch.tensor([0, 70])
    expected = rnn(**given)
    assert expected[1].requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            result = rnn(**given)
        for a, b in zip(result, expected, strict=True):
            assert torch.equal(getattr(a, "data", a), getattr(b, "data", b))


def test_expanded_input_and_state():
    theirs, ours = pair(4, 6, 2)
    x, hx = torch.randn(5, 1, 4).expand(5, 3, 4), torch.randn(1, 1, 6).expand(2, 3, 6)
    assert_close(ours(x, hx), theirs(x, hx))


def test_empty_batch():
    theirs, ours = pair(4, 6, 2, bidirectional=True)
    output, h_n = ours(torch.randn(5, 0, 4))
    assert [output.shape, h_n.shape] == [v.shape for v in theirs(torch.randn(5, 0, 4))]
    (output.sum() + h_n.sum()).backward()
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads(ours))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_same_mask_from_the_same_seed(packed, batch_first):
    theirs, ours = pair(4, 6, 3, dropout=0.4, bidirectional=True, batch_first=batch_first)
    x = torch.randn(5, 5, 4)
    if packed:
        x = rnn_utils.pack_padded_sequence(
            x, [2, 5, 4, 3, 1], enforce_sorted=False, batch_first=batch_first
        )
    results = []
    for module in (theirs, ours):
        torch.manual_seed(5)
        output, h_n = module(x)
        module.eval()
        results.append([output.data if packed else output, h_n, module(x)[1]])
        assert not torch.equal(results[-1][1], results[-1][2])
    assert_close(results[1], results[0])


def test_lengths_are_what_packing_gives():
    _, ours = pair(4, 6, 2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(5, 4, 4, dtype=torch.float64), torch.tensor([5, 1, 4, 2])
    output, h_n = ours(x, lengths=lengths)
    packed = rnn_utils.pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, expected_h_n = ours(packed)
    assert torch.equal(output, rnn_utils.pad_packed_sequence(expected)[0])
    assert torch.equal(h_n, expected_h_n)


def test_length_zero_keeps_the_first_state():
    _, ours = pair(4, 6, 2)
    hx = torch.randn(2, 3, 6)
    output, h_n = ours(torch.randn(5, 3, 4), hx, lengths=torch.tensor([0, 5, 0]))
    assert torch.equal(h_n[:, ::2], hx[:, ::2])
    assert not output[:, ::2].any()
    assert output[:, 1].all()


def test_attributes_state_dict_and_repr():
    theirs, ours = pair(4, 6, 2, "relu", True, True, 0.25, True, dtype=torch.float64)
    assert repr(ours) == repr(theirs)
    for name in [*theirs.__constants__, "nonlinearity", "training"]:
        assert getattr(ours, name) == getattr(theirs, name)
    assert [[w.shape for w in ws] for ws in ours.all_weights] == [
        [w.shape for w in ws] for ws in theirs.all_weights
    ]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    public = {n for n in dir(theirs) if not n.startswith("_")}
    assert public <= set(dir(ours))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.RNNBase)


def test_constructor_takes_the_documented_arguments():
    names = list(inspect.signature(rnnext.RNN).parameters)
    documented = nn.RNN.__doc__.split("(", 1)[1].split(")", 1)[0].split(",")
    assert names[:-1] == [part.split("=")[0] for part in documented]
    rnn = rnnext.RNN(4, 6, device="meta", dtype=torch.float16)
    assert (rnn.weight_hh_l0.device.type, rnn.weight_hh_l0.dtype) == ("meta", torch.float16)
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        rnnext.RNN(4, 6, dropout=0.5)


def test_frozen_parameters_get_no_gradient():
    theirs, ours = pair(4, 6, 2)
    x = torch.randn(5, 3, 4)
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l1.requires_grad_(False)
        module(x)[0].sum().backward()
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert_close(a, b)


def test_nothing_to_train_builds_no_graph():
    rnn = rnnext.RNN(4, 6, 2).requires_grad_(False)
    assert rnn(torch.randn(5, 3, 4))[0].grad_fn is None
    x = torch.randn(5, 3, 4, requires_grad=True)
    rnn(x)[1].sum().backward()
    assert x.grad is not None
    rnn.requires_grad_(True)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            assert all(v.grad_fn is None and not v.requires_grad for v in rnn(x))


def test_backward_in_eval_mode():
    theirs, ours = pair(4, 6, 2, dropout=0.5)
    x = torch.randn(5, 3, 4)
    for module in (theirs, ours):
        module.eval()
        module(x)[0].sum().backward()
    assert_close(grads(ours), grads(theirs))


@pytest.mark.parametrize("bias", [True, False])
def test_a_result_without_a_gradient_gives_none(bias):
    rnn, x = rnnext.RNN(4, 5, 2, bias=bias, bidirectional=True), torch.randn(2, 3, 4)
    x.requires_grad_()
    common.NoGradient.apply(rnn(x)[0]).sum().backward()
    assert all(v.grad is None for v in (x, *rnn.parameters()))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_double_backward(nonlinearity):
    rnn = rnnext.RNN(2, 3, 2, nonlinearity, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    names = list(dict(rnn.named_parameters()))

    def call(x, hx, *parameters):
        return torch.func.functional_call(rnn, dict(zip(names, parameters, strict=True)), (x, hx))

    assert torch.autograd.gradcheck(call, (x, hx, *rnn.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, hx, *rnn.parameters()), fast_mode=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    "weight_norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm]
)
def test_weight_norm_trains(weight_norm):
    losses = []
    x, target = torch.randn(5, 3, 4), torch.randn(5, 3, 6)
    for module in pair(4, 6):
        module = weight_norm(module, "weight_hh_l0")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        before = module.weight_hh_l0.detach().clone()
        of_module = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = (module(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
            of_module.append(loss.detach())
        module(x)
        assert not torch.equal(before, module.weight_hh_l0)
        losses.append(torch.stack(of_module))
    assert_close(losses[1], losses[0])


def test_functional_call_uses_the_given_weights():
    theirs, ours = pair(4, 6)
    weights = {name: torch.randn_like(p) for name, p in theirs.named_parameters()}
    x = torch.randn(5, 3, 4)
    call = torch.func.functional_call
    assert_close(call(ours, weights, x), call(theirs, weights, x))


def test_a_write_through_data_is_seen():
    theirs, ours = pair(4, 6)
    x = torch.randn(5, 3, 4)
    ours(x)
    for module in (theirs, ours):
        module.weight_hh_l0.data.mul_(0.5)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(clone):
    _, ours = pair(4, 6, 2)
    x = torch.randn(5, 3, 4)
    expected = ours(x)
    twin = clone(ours)
    assert type(twin) is rnnext.RNN
    assert same(twin(x), expected)
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert torch.equal(ours(x)[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_to_another_dtype(dtype):
    theirs, ours = pair(4, 6, 2)
    x = torch.randn(5, 3, 4, dtype=dtype)
    ours = ours.half() if dtype is torch.float16 else ours.to(dtype)
    output, h_n = ours(x)
    assert output.dtype == h_n.dtype == dtype
    exact = theirs.to(dtype).double()(x.double())
    assert_close([output, h_n], exact)


def test_meta_device():
    rnn = rnnext.RNN(4, 6, 2, bidirectional=True, device="meta")
    output, h_n = rnn(torch.empty(5, 3, 4, device="meta"))
    assert (output.shape, output.device.type) == ((5, 3, 12), "meta")
    assert (h_n.shape, h_n.device.type) == ((4, 3, 6), "meta")
    assert rnn.to_empty(device="cpu")(torch.zeros(5, 3, 4))[0].shape == (5, 3, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    theirs, ours = pair(4, 6, 2)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype):
        result, expected = ours(x), theirs(x)
    assert [v.dtype for v in result] == [v.dtype for v in expected] == [dtype, dtype]
    assert_close(result, expected)
    result[0].float().sum().backward()
    assert all(g.dtype == torch.float32 for g in grads(ours))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("training", [False, True])
def test_compile_without_graph_breaks(backend, training):
    _, ours = pair(4, 6, 2, bidirectional=True)
    compiled = torch.compile(ours.train(training), fullgraph=True, backend=backend)
    x, hx = torch.randn(5, 3, 4), torch.randn(4, 3, 6)
    expected = run(ours, x, hx, "batched")
    ours.zero_grad()
    x = x.requires_grad_()
    output, h_n = compiled(x, hx)
    assert_close([output, h_n], expected[:2])
    (output.sum() + h_n.sum()).backward()
    compiled_grads = grads(ours)
    ours.zero_grad()
    output, h_n = ours(x, hx)
    (output.sum() + h_n.sum()).backward()
    assert_close(compiled_grads, grads(ours))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_compile_without_gradients(bidirectional):
    torch.compiler.reset()  # the tests share a limit of how often one function is compiled
    _, ours = pair(4, 6, 2, bidirectional=bidirectional)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for T, B in [(5, 3), (7, 2), (1, 1)]:
        x = torch.randn(T, B, 4)
        with torch.no_grad():
            assert_close(compiled(x), ours(x))
    assert compiled(x)[0].requires_grad


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_export_with_dynamic_time_and_batch(strict, bidirectional):
    ours = rnnext.RNN(4, 6, 2, bidirectional=bidirectional).eval()
    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        ours, (torch.randn(5, 3, 4),), dynamic_shapes=({0: auto, 1: auto},), strict=strict
    )
    for shape in [(5, 3, 4), (9, 2, 4), (33, 7, 4)]:
        x = torch.randn(shape)
        assert_close(program.module()(x), ours(x))


@pytest.mark.parametrize("edited", ["mode", "nonlinearity", "both", "unknown"])
def test_the_mode_decides_which_nonlinearity_as_in_torch(edited):
    theirs, ours = pair(4, 6)
    x, results = torch.randn(5, 3, 4), []
    for module in (theirs, ours):
        if edited in ("mode", "both"):
            module.mode = "RNN_RELU"
        if edited in ("nonlinearity", "both"):
            module.nonlinearity = "relu"
        if edited == "unknown":
            module.mode = "GRU"
        results.append(error_of(lambda m=module: m(x)) if edited == "unknown" else module(x))
    if edited == "unknown":
        assert results[1] == results[0]
    else:
        assert_close(results[1], results[0])


def test_compiled_autograd():
    _, ours = pair(4, 6, 2, bidirectional=True)
    x, results = torch.randn(5, 3, 4), []

    def train():
        ours(x)[0].square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        for step in (train, torch.compile(train, backend="eager")):
            ours.zero_grad()
            step()
            results.append([g.clone() for g in grads(ours)])
    assert_close(results[1], results[0])
