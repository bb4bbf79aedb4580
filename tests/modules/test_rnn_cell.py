"""rnnext.RNNCell against torch.nn.RNNCell."""

import pytest
import torch

import rnnext
from helpers.common import assert_close, pair
from helpers.modules import results


def inputs(case):
    """x and, where there is one, hx."""
    given = []
    for width in (4, case["H"]) if case["with_hx"] else (4,):
        x = torch.randn(case["rows"] or 0, width, dtype=case["dtype"])
        if case["layout"] == "strided":
            x = x.repeat_interleave(2, 1)[:, ::2]
        elif case["layout"] == "expanded":
            x = torch.randn(1, width, dtype=case["dtype"]).expand_as(x)
        given.append(torch.randn(width, dtype=case["dtype"]) if case["rows"] is None else x)
    return given


@pytest.mark.parametrize("rows", [3, None])
def test_a_cell_without_units_compiles(rows):
    torch.compiler.reset()
    cell = rnnext.RNNCell(4, 0)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    compiled.parameters = cell.parameters
    given = inputs({"rows": rows, "H": 0, "layout": None, "with_hx": True, "dtype": torch.float32})
    assert_close(results(compiled, *given), results(cell, *given))


def test_a_loop_of_steps_is_the_recurrence():
    rnn, cell = rnnext.RNN(4, 6), rnnext.RNNCell(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in rnn.state_dict().items()})
    x = torch.randn(7, 3, 4)
    state, states = None, []
    for step in x:
        state = cell(step, state)
        states.append(state)
    assert torch.equal(torch.stack(states), rnn(x)[0])


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_a_step_is_one_node_and_does_not_read_its_result(shape):
    x, found = torch.randn(shape), []
    for cell in pair("RNNCell", 4, 5):
        state = cell(x, cell(x))
        doubled = state if type(cell) is rnnext.RNNCell else state.clone()
        doubled *= 2
        doubled.sum().backward()
        found.append([p.grad for p in cell.parameters()])
    names = [f.name() for f, _ in cell(x, cell(x)).grad_fn.next_functions if f]
    assert names == ["RnnCellBackward"] + 4 * ["torch::autograd::AccumulateGrad"]
    assert_close(found[1], found[0])


def test_each_bias_has_a_gradient_of_its_own():
    cell, x = rnnext.RNNCell(4, 6), torch.randn(3, 4)
    first, second = torch.autograd.grad(cell(x).sum(), [cell.bias_ih, cell.bias_hh])
    first.mul_(3)
    assert_close(first, 3 * second)


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_the_state_can_be_detached_in_place(shape):
    """Truncated backpropagation through time: h.detach_() between pieces of a sequence."""
    x, found = torch.randn(5, *shape), []
    for cell in pair("RNNCell", 4, 6):
        state, loss, own = None, 0.0, type(cell) is rnnext.RNNCell
        for step, x_t in enumerate(x):
            state = cell(x_t, state)
            loss = loss + (state * (step + 1)).sum()
            if step == 2:  # torch.nn keeps the state for backward, or gives a view of it
                state = state.detach_() if own else state.detach()
        loss.backward()
        found.append([loss, *(p.grad for p in cell.parameters())])
    assert_close(found[1], found[0])
    with torch.no_grad():
        assert not cell(x[0])._is_view()


def test_second_derivatives_of_a_batch():
    cell = rnnext.RNNCell(2, 3, dtype=torch.float64)
    x, hx = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3))
    given = (x, hx, *cell.parameters())
    assert torch.autograd.gradgradcheck(rnnext.functional.rnn_cell, given)
