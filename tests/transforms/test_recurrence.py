"""The recurrence under torch.func's transforms, against the same transforms of the plain loop."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from helpers import samples
from helpers.cases import VARIANTS
from helpers.common import assert_close, cover

ops = torch.ops.rnnext
N = 3
FACTORS = ("source", "reverse", "nonlinearity", "bias", "hx", "rows", "leak", "reset")
MAPPED = [
    ["input", "index"], ["hx", "weight_ih"], ["weight_hh", "bias_ih"], ["alpha", "lengths"],
    ["reset"], ["reset_state", "bias_hh", "index"], list(vars(samples.make())),
]  # fmt: skip


def fit(case):
    """The case without resets where rows are packed, and of one argument at least."""
    case = dict(case)
    if case["rows"] == "packed":
        case["reset"] = None
    present = {
        name for name, value in vars(samples.make(**plain(case))).items()
        if name != "batch_sizes" and (isinstance(value, Tensor) or value) and tensors_of(value)
    }  # fmt: skip
    case["mapped"] = [name for name in case["mapped"] if name in present] or ["input"]
    return case


def plain(case):
    return {k: v for k, v in case.items() if k not in ("mapped", "dims")}


def tensors_of(value):
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Tensor)]


def joined(values, dim):
    """Several arguments of one name as one with another dimension."""
    if isinstance(values[0], list):
        return [torch.stack(each, dim) for each in zip(*values, strict=True)]
    return torch.stack(values, dim)


def picked(value, dim, n):
    if isinstance(value, list):
        return [each.select(dim, n) for each in value]
    return value.select(dim, n)


def stacked(results):
    """The results of calls in a row as those of all of them."""
    return [torch.stack(each) for each in zip(*results, strict=True)]


class Mapped:
    """N calls of which some arguments differ, and how vmap is given these."""

    def __init__(self, case):
        case = fit(case)
        self.dim = case["dims"]
        calls = [samples.make(**plain(case)) for _ in range(N)]
        self.one = calls[0]
        self.values = {
            name: joined([getattr(call, name) for call in calls], self.dim)
            for name in case["mapped"]
        }
        self.tensors = [
            tensor
            for value in {**vars(self.one), **self.values}.values()
            for tensor in tensors_of(value)
            if tensor.is_floating_point()
        ]

    def calls(self):
        """Each call by itself."""
        return [
            replace(self.one, **{k: picked(v, self.dim, n) for k, v in self.values.items()})
            for n in range(N)
        ]

    def vmap(self, function):
        """What vmap makes of a function of one call."""
        return vmap(lambda given: function(replace(self.one, **given)), in_dims=self.dim)(
            self.values
        )


def loss_of(function, call):
    """A function of the call's float tensors, and these."""

    def loss(*tensors):
        output, h_n = function(call.with_tensors(tensors))
        return output.square().sum() + h_n.sin().sum()

    return loss


def by_op(call):
    return call.call(ops.recurrence)


def by_loop(call):
    return call.expected()


ANY = {k: VARIANTS[k] for k in FACTORS}
ANY |= {"reverse": [(True,), (False, True)], "reset": [None, "state"]}
FEW = {**ANY, "nonlinearity": ["tanh", "softplus"]}


@cover("case", **{**FEW, "leak": [None, "rate", "voltage"]}, mapped=MAPPED, dims=[0, 1])
def test_vmap_gradients_through_it_and_gradients_of_each_call(case):
    given = Mapped(case)

    def gradients(by):
        def of_call(call):
            tensors = call.float_tensors()
            return grad(loss_of(by, call), tuple(range(len(tensors))))(*tensors)

        return of_call

    expected = stacked([gradients(by_loop)(call) for call in given.calls()])
    assert_close(given.vmap(gradients(by_op)), expected)
    for tensor in given.tensors:
        tensor.requires_grad_()
    result = given.vmap(by_op)
    expected = stacked([call.expected() for call in given.calls()])
    assert_close(result, expected)
    cotangents = [torch.rand_like(v) for v in result]
    found, wanted = (
        torch.autograd.grad(
            of, given.tensors, cotangents, allow_unused=True, materialize_grads=True
        )
        for of in (result, expected)
    )
    assert_close(found, wanted)


SMALL = {"T": 3, "B": 2, "I": 2, "H": 3, "vocabulary": 3}


def unpacked_resets(case):
    return case["rows"] != "packed" or case["reset"] is None


@pytest.mark.parametrize(
    ("outer", "inner", "leak"),
    [("input", "weight_hh", "rate"), ("weight_hh", "input", "voltage"), ("input", "input", None)],
)
def test_nested_vmap(outer, inner, leak):
    one = samples.make(leak=leak)
    x, W = (
        torch.rand([2] * [outer, inner].count(name) + list(t.shape), dtype=t.dtype)
        for name, t in (("input", one.input), ("weight_hh", one.weight_hh[0]))
    )

    def each(by):
        def of(x, W):
            call = replace(one, input=x, weight_hh=[W])
            return (*by(call), *grad(loss_of(by, call), (0, 2))(*call.float_tensors()))

        return of

    def mapped(function, name):
        return vmap(function, (0, None) if name == "input" else (None, 0))

    def looped(function, name):
        def of(x, W):
            pairs = [(x_, W) for x_ in x] if name == "input" else [(x, W_) for W_ in W]
            return stacked([function(*pair) for pair in pairs])

        return of

    found = mapped(mapped(each(by_op), inner), outer)(x, W)
    assert_close(found, looped(looped(each(by_loop), inner), outer)(x, W))


def test_a_call_inside_a_vmap_that_maps_none_of_it():
    call = samples.make(**SMALL)
    x = torch.stack([call.input, -call.input])
    factors = torch.tensor([1.0, 2.0, -4.0], dtype=x.dtype)

    def of(by):
        def gradient(x):
            def total(weight_hh):
                given = replace(call, input=x, weight_hh=[weight_hh])
                return vmap(lambda factor: factor * by(given)[0].sum())(factors).sum()

            return grad(total)(call.weight_hh[0])

        return gradient

    assert_close(vmap(of(by_op))(x), torch.stack([of(by_loop)(each) for each in x]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's make_dual
@cover("case", unpacked_resets, **ANY)
def test_gradcheck_in_every_mode(case):
    call = samples.make(**SMALL, **case, requires_grad=True)
    tensors = call.float_tensors()

    def function(*tensors):
        return call.with_tensors(tensors).call(ops.recurrence)

    modes = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        function, tensors, check_forward_ad=True, check_batched_forward_grad=True, **modes
    )
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, **modes)
