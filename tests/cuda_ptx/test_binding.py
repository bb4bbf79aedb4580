"""The CUDA binding of the recurrence, over compiled kernels, against the plain reference.

Its ops are registered under PrivateUse1 and called past the dispatcher with tensors of the CPU.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from cuda_ptx.choice import DEVICES, PATHS, choose
from cuda_ptx.recurrence import binding
from helpers import samples
from helpers.cases import cuda_cases
from helpers.common import assert_close, case_id, same
from helpers.device import TF32, check, tf32_by

KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


def recurrence(**arguments):
    binding()
    return torch.ops.rnnext.recurrence.default.redispatch(KEYS, **arguments)


def recurrence_backward(**arguments):
    binding()
    return torch.ops.rnnext.recurrence_backward.default.redispatch(KEYS, **arguments)


def random_like(t):
    return (torch.rand(t.shape, dtype=torch.float64) * 2 - 1).to(t.dtype)


def by_mask(grad_input, grad_hx, weight_ih, weight_hh, bias, reset_state, alpha):
    """The gradients that each entry of the output mask decides about."""
    return [grad_input], [grad_hx], weight_ih, weight_hh, bias, [reset_state], alpha


CASES = [  # what decides how the gradient of W_hh is put together: all combinations
    {"path": path, "dtype": torch.float64, "T": T, "rows": rows, "reverse": reverse, "hx": hx}
    for path, T in (("step", 4), ("block", 4), ("block", 1))
    for rows in ("full", "lengths", "packed")
    for reverse in ((False,), (True,), (False, True))
    for hx in (True, False)
]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: case_id(CASES[n]))
def test_values_and_gradients(number, monkeypatch):
    case = dict(CASES[number])
    path, dtype = case.pop("path"), case["dtype"]
    if path is not None:
        monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    arguments = samples.make(**case)
    actual = arguments.call(recurrence)
    for a, e in zip(actual, arguments.to_double().expected(), strict=True):
        check(a, e, dtype)

    output, h_n = actual
    mask = [bool(number >> bit & 1) or number % 3 == 0 for bit in range(7)]
    given = arguments.backward(
        output,
        grad_output=None if number % 5 == 1 else random_like(output),
        grad_h_n=random_like(h_n),
        output_mask=mask,
    )
    actual = by_mask(*given.call(recurrence_backward))
    expected = by_mask(*given.to_double().expected())
    for wanted, grads, rights in zip(mask, actual, expected, strict=True):
        if not wanted:
            assert all(g.numel() == 0 for g in grads)
            continue
        for a, e in zip(grads, rights, strict=True):
            assert a.dtype == dtype
            check(a, e, dtype)


LISTED = cuda_cases(PATHS)


@pytest.mark.parametrize("number", range(len(LISTED)), ids=lambda n: case_id(LISTED[n]))
def test_the_list(number, monkeypatch):
    case = dict(LISTED[number])
    path, dtype = case.pop("path"), case["dtype"]
    if path is not None:
        monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    arguments = samples.make(**case, requires_grad=True)
    exact, arguments = arguments.to_double(), arguments.detach()
    results = exact.expected(stored=dtype)
    actual = arguments.call(recurrence)
    check(actual, results, dtype)

    grads = [random_like(t) for t in actual]
    torch.autograd.backward(results, [g.double() for g in grads])
    mask = [bool(number >> bit & 1) or number % 3 > 0 for bit in range(7)]
    given = arguments.backward(
        actual[0], *grads, output_mask=mask, saved=arguments.save(recurrence)
    )
    found = by_mask(*given.call(recurrence_backward))
    wanted = (
        [exact.input], [exact.hx], exact.weight_ih, exact.weight_hh, exact.bias_ih,
        [exact.reset_state], exact.alpha,
    )  # fmt: skip
    for i, (asked, gradients, leaves) in enumerate(zip(mask, found, wanted, strict=True)):
        if not asked:
            assert all(g.numel() == 0 for g in gradients)
            continue
        for g, leaf in zip(gradients, leaves, strict=i != 4):  # a bias has one always
            if leaf is not None and leaf.grad is not None:
                assert g.dtype == dtype
                check(g, leaf.grad, dtype)


@pytest.mark.parametrize("path", ["cluster", "grid"])
def test_the_environment_chooses_the_exchange(path, monkeypatch):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    arguments = samples.make(T=5, B=3, H=40, rows="lengths", reverse=(False, True))
    results, ran = {}, {}
    for word in (None, "fenced", "tagged"):
        if word is not None:
            monkeypatch.setenv("RNNEXT_CUDA_EXCHANGE", word)
        binding().ran.clear()
        output, h_n = arguments.call(recurrence)
        grads = {"grad_output": torch.ones_like(output), "grad_h_n": torch.ones_like(h_n)}
        given = arguments.backward(output, **grads)
        results[word] = [output, h_n, *itertools.chain(*by_mask(*given.call(recurrence_backward)))]
        ran[word] = any("Tagged" in name or "Async" in name for name in binding().ran)
    assert ran == {None: False, "fenced": False, "tagged": True}
    assert same(results["tagged"], results["fenced"])
    monkeypatch.setenv("RNNEXT_CUDA_EXCHANGE", "both")
    with pytest.raises(ValueError, match="RNNEXT_CUDA_EXCHANGE=both: expected fenced or tagged"):
        arguments.call(recurrence)


def test_a_leak_saves_only_where_it_is_told_to():
    arguments = samples.make(leak="rate")
    assert len(arguments.save(recurrence)) == 1
    arguments.call(recurrence)  # asserts that nothing is saved
    assert samples.make(reset="state").save(recurrence) == []
    output, h_n = arguments.call(recurrence)
    with pytest.raises(RuntimeError, match="saved must be what the forward pass saved, got none"):
        arguments.backward(output, output, h_n).call(recurrence_backward)


@pytest.mark.parametrize("path", PATHS)
def test_lengths_out_of_range_are_the_nearest_that_exist(path, monkeypatch):
    # The device has their values, which nobody waits for.
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    arguments = replace(
        samples.make(B=3, rows="lengths", reverse=(False, True)), lengths=torch.tensor([-3, 9, 2])
    )
    right = replace(arguments, lengths=torch.tensor([0, 5, 2]))
    output, h_n = arguments.call(recurrence)
    assert_close([output, h_n], right.expected())
    grads = {"grad_output": random_like(output), "grad_h_n": random_like(h_n)}
    actual = arguments.backward(output, **grads).call(recurrence_backward)
    expected = right.backward(output, **grads).expected()
    for a, e in zip(by_mask(*actual), by_mask(*expected), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_nothing_to_do(T, B):
    arguments = samples.make(T=T, B=B, reverse=(False, True))
    output, h_n = arguments.call(recurrence)
    assert output.shape == (T, B, 12)
    assert torch.equal(h_n, arguments.hx)
    grad = random_like(h_n)
    given = arguments.backward(output, grad_output=None, grad_h_n=grad)
    grad_input, grad_hx, weight_ih, weight_hh, bias, _, _ = given.call(recurrence_backward)
    assert grad_input.shape == arguments.input.shape
    assert all(g.eq(0).all() for g in weight_ih + weight_hh + bias)
    assert [g.shape for g in weight_ih] == [w.shape for w in arguments.weight_ih]
    assert torch.equal(grad_hx, grad)
    arguments = samples.make(T=T, B=B, reverse=(False, True), leak="voltage", reset="state")
    output, h_n = arguments.call(recurrence)
    assert torch.equal(h_n, arguments.hx)
    given = arguments.backward(output, None, grad, saved=arguments.save(recurrence))
    *_, reset_state, alpha = given.call(recurrence_backward)
    assert torch.equal(reset_state, torch.zeros_like(arguments.reset_state))
    assert [a.tolist() for a in alpha] == [[0] * 6] * 2


@pytest.mark.parametrize("setting", TF32)
def test_tf32_follows_the_setting(monkeypatch, setting):
    arguments = samples.make(T=3, B=2, H=20, dtype=torch.float32)
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "block")
    exact = arguments.call(recurrence)[0]
    with tf32_by(setting):
        coarse = arguments.call(recurrence)[0]
    assert 1e-5 < (coarse - exact).abs().max() < 2e-3
    assert torch.equal(arguments.call(recurrence)[0], exact)


def test_one_setting_of_tf32_overrides_another(monkeypatch):
    arguments = samples.make(T=3, B=2, H=20, dtype=torch.float32)
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "block")
    exact = arguments.call(recurrence)[0]
    with tf32_by("backends.fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert torch.equal(arguments.call(recurrence)[0], exact)


def test_a_backward_pass_in_autocast_keeps_its_dtype():
    arguments = samples.make(T=3, B=2, I=4, H=6, dtype=torch.float32)
    output, h_n = arguments.call(recurrence)
    given = arguments.backward(output, random_like(output), random_like(h_n))
    expected = by_mask(*given.call(recurrence_backward))
    with torch.autocast("cpu", torch.bfloat16):
        actual = by_mask(*given.call(recurrence_backward))
    assert all(same(a, e) for a, e in zip(actual, expected, strict=True))


def test_a_device_that_runs_fewer_blocks_than_it_has_takes_the_step_path(monkeypatch):
    # A cluster is chosen; in a green context of one multiprocessor it does not start.
    arguments = samples.make(T=6, B=1, I=1, H=300, dtype=torch.float32)
    lib, small = binding(), DEVICES["small"]
    for backward in (False, True):
        assert choose(small, 8, 1, 300, backward=backward).path == PATHS["cluster"]
    try:
        lib.set_device(*small[:3], granted=1)
        actual = arguments.call(recurrence)
        check(actual, arguments.to_double().expected(), torch.float32)
        given = arguments.backward(*actual[:1], random_like(actual[0]), random_like(actual[1]))
        gradients = by_mask(*given.call(recurrence_backward))
        for a, e in zip(gradients, by_mask(*given.to_double().expected()), strict=True):
            check(a, e, torch.float32)
        for path in ("cluster", "grid"):
            monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
            with pytest.raises(RuntimeError, match="does not fit the device at once"):
                arguments.call(recurrence)
    finally:
        lib.set_device(*small[:3])


def test_a_path_that_cannot_run_is_a_value_error(monkeypatch):
    for word, message in (("block", "hidden size 600"), ("fast", "expected step, block")):
        monkeypatch.setenv("RNNEXT_CUDA_PATH", word)
        with pytest.raises(ValueError, match=f"RNNEXT_CUDA_PATH={word}: {message}"):
            samples.make(H=600).call(recurrence)


@pytest.mark.parametrize("rows", ["full", "packed"])
def test_of_a_table_that_no_step_can_read_only_the_rows_that_occur_are_copied(rows, monkeypatch):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "block")
    # 16-bit rows of odd H lie at odd places.
    options = {"H": 7, "source": "table", "vocabulary": 1000, "dtype": torch.bfloat16}
    arguments = samples.make(rows=rows, reverse=(False, True), **options)
    assert len(arguments.input) == 1000
    with torch.profiler.profile(record_shapes=True) as profile:
        actual = arguments.call(recurrence)
    shapes = [e.input_shapes for e in profile.events() if e.name == "aten::copy_"]
    assert shapes
    assert not [s for s in shapes if s and s[0] and s[0][0] == 1000]
    check(actual, arguments.to_double().expected(), torch.bfloat16)


def test_an_index_into_an_empty_table():
    arguments = samples.make(source="table")
    arguments = replace(arguments, input=arguments.input[:0])
    with pytest.raises(IndexError, match="the table has no rows"):
        arguments.call(recurrence)
