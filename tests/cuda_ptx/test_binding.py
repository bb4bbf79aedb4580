"""The CUDA binding of the recurrence in the interpreter: what is about neither path nor type."""

import ctypes
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from cuda_ptx.choice import DEVICES, PATHS, choose
from cuda_ptx.ops import check_call, forced, recurrence, recurrence_backward, run
from helpers import samples
from helpers.common import assert_close, assert_refused, case_id, same
from helpers.device import TF32, tf32_by


@pytest.fixture(autouse=True)
def small(lib):
    lib.set_device("small")
    return lib


def test_a_leak_saves_only_where_it_is_told_to():
    arguments = samples.make(cell="rate")
    assert len(arguments.save(recurrence)) == 1
    arguments.call(recurrence)  # asserts that nothing is saved
    assert samples.make(reset="state").save(recurrence) == []
    output, h_n = arguments.call(recurrence)
    with pytest.raises(RuntimeError, match="saved must be what the forward pass saved, got none"):
        arguments.backward(output, output, h_n).call(recurrence_backward)


@pytest.mark.parametrize("path", PATHS)
def test_lengths_out_of_range_are_clamped(path, monkeypatch):
    # The device has their values, which nobody waits for.
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    options = {"rows": "lengths", "reverse": (False, True), "requires_grad": True}
    right, results = replace(samples.make(**options), lengths=torch.tensor([0, 5, 2])), []
    for lengths in (right.lengths, torch.tensor([-3, 9, 2])):
        torch.manual_seed(1)
        results.append(check_call(replace(right, lengths=lengths)))
    assert same(*results)


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}], ids=case_id)
@pytest.mark.parametrize("options", [{}, {"cell": "voltage", "reset": "state"}], ids=case_id)
def test_nothing_to_do(sizes, options):
    run(**sizes, **options, reverse=(False, True))


@pytest.mark.parametrize("setting", TF32)
def test_tf32_follows_the_setting_and_what_overrides_it(monkeypatch, setting):
    arguments = samples.make(T=3, B=2, H=20, dtype=torch.float32)
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "block")
    exact = arguments.call(recurrence)[0]
    with tf32_by(setting):
        coarse = arguments.call(recurrence)[0]
        if setting == "backends.fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            assert torch.equal(arguments.call(recurrence)[0], exact)
    assert 1e-5 < (coarse - exact).abs().max() < 2e-3
    assert torch.equal(arguments.call(recurrence)[0], exact)


def test_a_backward_pass_in_autocast_keeps_its_dtype():
    given = samples.make(T=3, B=2, I=4, H=6, dtype=torch.float32).backward_of(recurrence)
    expected = tree_leaves(given.call(recurrence_backward))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(tree_leaves(given.call(recurrence_backward)), expected)


def test_too_few_resident_blocks_take_the_step_path(small, monkeypatch):
    # A cluster is chosen; in a green context of one multiprocessor it does not start.
    arguments = samples.make(T=6, B=1, I=1, H=300, dtype=torch.float32, requires_grad=True)
    for backward in (False, True):
        assert choose(DEVICES["small"], 8, 1, 300, backward=backward).path == PATHS["cluster"]
    small.set_device("small", granted=1)
    check_call(arguments)
    for path in ("cluster", "grid"):
        monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
        assert_refused(arguments.call, RuntimeError, "does not fit the device at once", recurrence)


def test_a_path_that_cannot_run_is_a_value_error(monkeypatch):
    for word, message in (("block", "hidden size 600"), ("fast", "expected step, block")):
        monkeypatch.setenv("RNNEXT_CUDA_PATH", word)
        with pytest.raises(ValueError, match=f"RNNEXT_CUDA_PATH={word}: {message}"):
            samples.make(H=600).call(recurrence)


@pytest.mark.parametrize("rows", ["full", "packed"])
def test_only_the_rows_that_occur_are_copied_of_a_table(rows, monkeypatch):
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
    assert_close(actual, arguments.to_double().expected(), tolerance=2**-4)


def test_an_index_into_an_empty_table():
    arguments = samples.make(source="table")
    arguments = replace(arguments, input=arguments.input[:0])
    assert_refused(arguments.call, IndexError, "the table has no rows", recurrence)


def test_noise_is_refused():
    noise = {"noise": [torch.ones(6, dtype=torch.float64)], "noise_key": torch.tensor(1)}
    with pytest.raises(NotImplementedError, match="drawn on the CPU alone"):
        recurrence(**vars(samples.make()) | noise, save=False)


@pytest.mark.parametrize("way", ["step", "block"])
def test_an_index_out_of_range_reads_row_0_and_is_named_later(lib, way):
    arguments = samples.make(T=30, source="table", vocabulary=7)
    expected = arguments.expected()
    for bad in (-1, 7):
        wrong = arguments.index.clone()
        wrong[9, 1] = bad
        zero = replace(arguments, index=wrong.where(wrong != bad, 0))
        with forced(way):
            assert_close(replace(arguments, index=wrong).call(recurrence), zero.expected())
            with pytest.raises(IndexError, match=rf"\[28\] = {bad}, expected 0 <= index < 7"):
                arguments.call(recurrence)
            assert_close(arguments.call(recurrence), expected)


@pytest.mark.parametrize(("compiled", "capability"), [(75, 75), (86, 86), (90, 90), (100, 90)])
def test_a_card_counts_as_what_its_code_was_compiled_for(lib, compiled, capability):
    # Code for "8.0;8.6+PTX" on a card of 9.0 knows no clusters.
    limits = torch.zeros(7, dtype=torch.int64)
    lib.set_device(compiled=compiled)
    describe = lib.handle.stand_in_describe
    assert describe(ctypes.c_void_p(limits.data_ptr())) == 0
    assert limits[0] == capability
    assert (limits[3:] > 0).all() == (capability >= 90)
    lib.set_device(compiled=0)
    assert describe(ctypes.c_void_p(limits.data_ptr())) == 209  # cudaErrorNoKernelImageForDevice


def test_a_kernel_is_told_its_limits_once(lib):
    case = {"T": 1, "B": 1, "H": 200, "dtype": torch.float32}  # more than 48 KiB of shared memory
    run("block", "H100", **case)
    before = lib.handle.stand_in_calls()
    run("block", "H100", **case)
    assert lib.handle.stand_in_calls() == before
