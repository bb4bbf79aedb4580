"""The recurrence under torch.func's transforms, against the same transforms of the plain loop."""

from dataclasses import replace
from operator import methodcaller

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from helpers import samples
from helpers.common import assert_close, cover, stacked
from helpers.samples import VARIANTS

ops = torch.ops.rnnext
N = 3
MAPPED = [
    ["input", "index"], ["hx", "weight_ih"], ["weight_hh", "bias_ih"], ["alpha", "lengths"],
    ["reset"], ["reset_state", "bias_hh", "index"], list(vars(samples.make())),
]  # fmt: skip


class Mapped:
    """N calls of which some arguments differ, and how vmap is given these."""

    def __init__(self, mapped, dim, **case):
        calls = [samples.make(**case) for _ in range(N)]
        self.one, self.dim = calls[0], dim
        given = {name: [vars(call)[name] for call in calls] for name in mapped}
        present = {k: v for k, v in given.items() if tensors_of(v) and k != "batch_sizes"}
        self.values = {
            name: tree_map(lambda *each: torch.stack(each, dim), *values)
            for name, values in (present or {"input": [call.input for call in calls]}).items()
        }
        tensors = tensors_of({**vars(self.one), **self.values})
        self.tensors = [tensor for tensor in tensors if tensor.is_floating_point()]

    def calls(self):
        return [
            replace(self.one, **tree_map(lambda v, n=n: v.select(self.dim, n), self.values))
            for n in range(N)
        ]

    def vmap(self, function):
        mapped = vmap(lambda given: function(replace(self.one, **given)), in_dims=self.dim)
        return mapped(self.values)


def tensors_of(values):
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def loss_of(function, call):
    """A loss as a function of the call's float tensors."""

    def loss(*tensors):
        output, h_n = function(call.with_tensors(tensors))
        return output.square().sum() + h_n.sin().sum()

    return loss


by_op, by_loop = methodcaller("call", ops.recurrence), methodcaller("expected")
ANY = {k: v for k, v in VARIANTS.items() if k not in ("layout", "dtype", "index_dtype")}
ANY |= {"reverse": [(True,), (False, True)], "reset": [None, "state"]}
FEW = {**ANY, "nonlinearity": ["tanh", "softplus"]}
FEW |= {"cell": ["elman", "rate", "voltage", "gru", "lstm"]}


@cover("case", samples.possible, **FEW, mapped=MAPPED, dim=[0, 1])
def test_vmap_gradients_through_it_and_gradients_of_each_call(case):
    given = Mapped(**case)

    def gradients(by):
        def of_call(call):
            tensors = call.float_tensors()
            return grad(loss_of(by, call), tuple(range(len(tensors))))(*tensors)

        return of_call

    expected = stacked([gradients(by_loop)(call) for call in given.calls()])
    assert_close(given.vmap(gradients(by_op)), expected)
    for tensor in given.tensors:
        tensor.requires_grad_()
    result, expected = given.vmap(by_op), stacked([call.expected() for call in given.calls()])
    assert_close(result, expected)
    cotangents = [torch.rand_like(v) for v in result]
    found, wanted = (
        torch.autograd.grad(of, given.tensors, cotangents, materialize_grads=True)
        for of in (result, expected)
    )
    assert_close(found, wanted)


SMALL = {"T": 3, "B": 2, "I": 2, "H": 3, "vocabulary": 3}


@pytest.mark.parametrize("cell", FEW["cell"])
def test_nested_vmap(cell):
    """Of inputs around weights, and the other way round."""
    one = samples.make(cell=cell)
    x, W = (torch.rand(2, *t.shape, dtype=t.dtype) for t in (one.input, one.weight_hh[0]))

    def each(by):
        def of(x, W):
            call = replace(one, input=x, weight_hh=[W])
            return (*by(call), *grad(loss_of(by, call), (0, 2))(*call.float_tensors()))

        return of

    inputs, weights = (0, None), (None, 0)
    expected = stacked([stacked([each(by_loop)(x_, W_) for W_ in W]) for x_ in x])
    assert_close(vmap(vmap(each(by_op), weights), inputs)(x, W), expected)
    turned = vmap(vmap(each(by_op), inputs), weights)(x, W)
    assert_close([t.transpose(0, 1) for t in turned], expected)


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
@cover("case", samples.possible, **ANY, noise=[False, True])
def test_gradcheck_in_every_mode(case):
    function, tensors = samples.make(**SMALL, **case).as_function(ops.recurrence)
    modes = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(
        function, tensors, check_forward_ad=True, check_batched_forward_grad=True, **modes
    )
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, **modes)
