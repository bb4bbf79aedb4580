"""rnnext.RNNCell against torch.nn.RNNCell."""

import copy
import functools
import inspect
import pickle

import pytest
import torch
from torch import nn

import rnnext
from helpers import common
from helpers.common import assert_close, error_of

pair = functools.partial(common.pair, "RNNCell")


def run(cell, x, hx, call=None):
    """The next state, and the gradients of the input, the state and the parameters."""
    x = x.clone().requires_grad_()
    hx = None if hx is None else hx.clone().requires_grad_()
    state = (cell if call is None else call)(x, hx)
    (state * torch.arange(1, state.numel() + 1).view_as(state)).sum().backward()
    result = [state, x.grad, *(p.grad for p in cell.parameters())]
    return result if hx is None else [*result, hx.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (4,), (0, 4), (1, 4)])
@pytest.mark.parametrize("with_hx", [True, False])
def test_values_and_gradients(nonlinearity, bias, shape, with_hx, dtype):
    theirs, ours = pair(4, 6, bias, nonlinearity, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    hx = torch.randn(*shape[:-1], 6, dtype=dtype) if with_hx else None
    assert_close(run(ours, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (4,), (0, 4)])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_a_cell_may_have_no_units(bias, shape, with_hx, backend):
    torch.compiler.reset()
    theirs, ours = pair(4, 0, bias)
    x, hx = torch.randn(shape), torch.randn(*shape[:-1], 0) if with_hx else None
    call = ours if backend is None else torch.compile(ours, fullgraph=True, backend=backend)
    state, *gradients = run(ours, x, hx, call)
    assert_close([state, *gradients], run(theirs, x, hx))
    assert state.shape == (*shape[:-1], 0)
    assert not gradients[0].any()


def test_strided_and_expanded():
    theirs, ours = pair(4, 6)
    x, hx = torch.randn(4, 3).t(), torch.randn(1, 6).expand(3, 6)
    assert_close(ours(x, hx), theirs(x, hx))
    x, hx = torch.randn(3, 8)[:, ::2], torch.randn(3, 12)[:, 1::2]
    assert_close(ours(x, hx), theirs(x, hx))


def test_a_loop_of_steps_is_the_recurrence():
    rnn, cell = rnnext.RNN(4, 6), rnnext.RNNCell(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in rnn.state_dict().items()})
    x = torch.randn(7, 3, 4)
    state, states = None, []
    for step in x:
        state = cell(step, state)
        states.append(state)
    assert torch.equal(torch.stack(states), rnn(x)[0])


def test_attributes_state_dict_and_repr():
    for args in [(4, 6), (4, 6, False), (4, 6, True, "relu")]:
        theirs, ours = pair(*args, dtype=torch.float64)
        assert repr(ours) == repr(theirs)
        assert isinstance(ours, nn.RNNCell)
        for name in theirs.__constants__:
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)
    assert inspect.signature(rnnext.RNNCell) == inspect.signature(nn.RNNCell)


@pytest.mark.parametrize("sizes", [(-4, 6), (4, -6), (1.5, 6), ("4", 6)])
def test_constructor_refuses_what_torch_refuses(sizes):
    assert error_of(lambda: rnnext.RNNCell(*sizes)) == error_of(lambda: nn.RNNCell(*sizes))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(1, 3, 4),),
        (torch.zeros(()),),
        (torch.zeros(3, 5),),
        (torch.zeros(5),),
        (torch.zeros(3, 4), torch.zeros(2, 6)),
        (torch.zeros(3, 4), torch.zeros(3, 5)),
        (torch.zeros(3, 4), torch.zeros(1, 3, 6)),
        (torch.zeros(3, 4), torch.zeros(6)),
        (torch.zeros(1, 4), torch.zeros(6)),
        (torch.zeros(4), torch.zeros(5)),
        (torch.zeros(4), torch.zeros(1, 6)),
    ],
    ids=lambda a: "-".join(str(tuple(getattr(v, "shape", "x"))) for v in a),
)
def test_forward_refuses_what_torch_refuses(arguments):
    theirs, ours = pair(4, 6)
    assert error_of(lambda: ours(*arguments)) == error_of(lambda: theirs(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 4, dtype=torch.float64),),
        (torch.zeros(3, 4, dtype=torch.int64),),
        (torch.zeros(3, 4), torch.zeros(3, 6, dtype=torch.float64)),
        (torch.zeros(3, 4, device="meta"),),
        (torch.zeros(3, 4), torch.zeros(3, 6, device="meta")),
        (torch.zeros(4), torch.zeros(6, 1)),
    ],
    ids=range(6),
)
def test_forward_refuses_with_the_type_of_torch(arguments):
    theirs, ours = pair(4, 6)
    kind, message = error_of(lambda: ours(*arguments))
    assert kind is error_of(lambda: theirs(*arguments))[0]
    assert message


def test_unknown_nonlinearity_is_refused_when_called():
    theirs, ours = pair(4, 6, nonlinearity="gelu")
    x = torch.zeros(3, 4)
    assert error_of(lambda: ours(x)) == error_of(lambda: theirs(x))


def test_a_result_without_a_gradient_gives_none():
    cell, x = rnnext.RNNCell(4, 5), torch.randn(3, 4, requires_grad=True)
    common.NoGradient.apply(cell(x)).sum().backward()
    assert all(v.grad is None for v in (x, *cell.parameters()))


def test_double_backward():
    cell = rnnext.RNNCell(2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def call(x, hx, *parameters):
        names = [name for name, _ in cell.named_parameters()]
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(cell, weights, (x, hx))

    assert torch.autograd.gradcheck(call, (x, hx, *cell.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, hx, *cell.parameters()))


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_a_step_is_one_node_and_does_not_read_its_result(shape):
    ours = rnnext.RNNCell(4, 5)
    theirs = nn.RNNCell(4, 5)
    theirs.load_state_dict(ours.state_dict())
    x, results = torch.randn(shape), []
    for cell in (theirs, ours):
        first = cell(x)
        second = cell(x, first)
        doubled = second.clone() if cell is theirs else second
        doubled *= 2
        doubled.sum().backward()
        results.append([p.grad for p in cell.parameters()])
    names = [f.name() for f, _ in cell(x, cell(x)).grad_fn.next_functions if f]
    assert names == ["RnnCellBackward"] + 4 * ["torch::autograd::AccumulateGrad"]
    assert_close(results[1], results[0])


def test_compiled_autograd():
    cell, x, results = rnnext.RNNCell(4, 5), torch.randn(3, 4), []

    def train():
        cell(x, cell(x)).square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        for step in (train, torch.compile(train, backend="eager")):
            cell.zero_grad()
            step()
            results.append([p.grad.clone() for p in cell.parameters()])
    assert_close(results[1], results[0])


def test_no_grad_builds_no_graph():
    cell, x = rnnext.RNNCell(4, 6), torch.randn(3, 4)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            assert not cell(x).requires_grad
    assert cell.requires_grad_(False)(x).grad_fn is None


def test_weight_norm_trains():
    x, results = torch.randn(3, 4), []
    for cell in pair(4, 6):
        cell = nn.utils.parametrizations.weight_norm(cell, "weight_hh")
        cell(x, cell(x)).sum().backward()
        results.append([p.grad for p in cell.parameters()])
    assert all(g.abs().sum() > 0 for g in results[1])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal(clone):
    cell, x = rnnext.RNNCell(4, 6), torch.randn(3, 4)
    twin = clone(cell)
    assert type(twin) is rnnext.RNNCell
    assert torch.equal(twin(x), cell(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_to_another_dtype(dtype):
    theirs, ours = pair(4, 6)
    x = torch.randn(3, 4, dtype=dtype)
    state = ours.to(dtype)(x)
    assert state.dtype == dtype
    assert_close(state, theirs.to(dtype).double()(x.double()))


def test_meta_device_and_autocast():
    assert rnnext.RNNCell(4, 6, device="meta")(torch.zeros(3, 4, device="meta")).shape == (3, 6)
    theirs, ours = pair(4, 6)
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        state, expected = ours(x), theirs(x)
    assert state.dtype == expected.dtype == torch.bfloat16
    assert_close(state, expected)


def test_compile_without_graph_breaks():
    cell = rnnext.RNNCell(4, 6)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(3, 4), (5, 4), (4,)]:
        x = torch.randn(shape)
        assert_close(compiled(x), cell(x))


def test_each_bias_has_a_gradient_of_its_own():
    results = []
    for cell in pair(4, 6):
        torch.manual_seed(1)
        loss = cell(torch.randn(3, 4)).square().sum()
        grads = torch.autograd.grad(loss, [cell.bias_ih, cell.bias_hh])
        grads[0].mul_(3)
        results.append(grads)
    assert_close(results[1], results[0])


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_the_state_can_be_detached_in_place(shape, grad_mode):
    """Truncated backpropagation through time: h.detach_() between pieces of a sequence."""
    theirs, ours = pair(4, 6)
    x = torch.randn(5, *shape)
    results = []
    for cell in (theirs, ours):
        state, loss = None, 0.0
        with torch.set_grad_enabled(grad_mode):
            for step, x_t in enumerate(x):
                state = cell(x_t, state)
                loss = loss + (state * (step + 1)).sum()
                # torch.nn keeps the state for backward, or gives a view of it.
                if step == 2:
                    state = state.detach_() if cell is ours else state.detach()
        assert not (cell is ours and state._is_view())
        if grad_mode:
            loss.backward()
        results.append([loss, *(p.grad for p in cell.parameters() if grad_mode)])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh", "both"])
def test_a_missing_bias_is_none_at_all(missing, shape):
    results = []
    for cell in pair(4, 6):
        for name in ["bias_ih", "bias_hh"] if missing == "both" else [missing]:
            setattr(cell, name, None)
        torch.manual_seed(1)
        hx = torch.randn(*shape[:-1], 6)
        state = cell(torch.randn(shape), hx)
        state.square().sum().backward()
        results.append([state, *(p.grad for p in cell.parameters())])
    assert_close(results[1], results[0])
