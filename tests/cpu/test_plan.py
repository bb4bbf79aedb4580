"""Who does what of a call: a pure function of sizes, kernels and machine, and its words."""

import itertools

import pytest
import torch

import rnnext.__main__
from helpers import samples
from helpers.common import ISAS, cover, run_python
from rnnext import _C
from rnnext.explain import explain

SHARE = 0.8  # of a cache
ZEN4 = {
    "multiply": 64, "pairs": 64, "first_bytes": SHARE * 2**15, "first_rate": 64,
    "second_bytes": SHARE * 2**20, "second_rate": 28, "far_rate": 10, "wait": 700, "line": 20,
    "tiles": 0,
}  # fmt: skip
ZEN5 = ZEN4 | {
    "multiply": 128, "pairs": 119, "first_bytes": SHARE * 3 * 2**14, "first_rate": 124,
    "second_rate": 36, "far_rate": 13,
}  # fmt: skip
XEON = ZEN4 | {
    "multiply": 128, "pairs": 32, "first_bytes": SHARE * 3 * 2**14, "first_rate": 128,
    "second_bytes": SHARE * 2**21, "second_rate": 50, "far_rate": 4,
    "tiles": 530,
}  # fmt: skip


def plan(T, B, I, H, **options):  # noqa: E741 - the field's letter
    options = {"dtype": torch.float32, "threads": 2, "machine": "zen4", **options}
    if isinstance(options["machine"], dict):
        options["machine"] = ",".join(f"{name}={n}" for name, n in options["machine"].items())
    return _C.plan(T=T, B=B, I=I, H=H, **options)


@pytest.fixture(autouse=True)
def _isa() -> None:
    """One shape of kernels, so that what is expected is the same on every machine."""
    _C.set_cpu_isa("generic")


@pytest.mark.parametrize(("name", "numbers"), [("zen4", ZEN4), ("zen5", ZEN5), ("xeon-amx", XEON)])
def test_a_machine_by_its_name_or_by_its_numbers(name, numbers):
    for size in [(100, 1, 64, 256), (64, 32, 64, 1024), (35, 20, 200, 200)]:
        named, described = plan(*size, machine=name), plan(*size, machine=numbers)
        assert named.pop("machine") == name
        assert named.pop("origin") == "its name"
        assert described.pop("origin") == "numbers that were given"
        del described["machine"]  # the row that the numbers changed
        assert named == described
        assert {number: named[number] for number in numbers} == numbers


def test_calls_are_planned_for_the_machine_that_runs_them():
    assert any(
        f"planned for {name}" in explain(9, 2, 3, 5) for name in ("zen4", "zen5", "xeon-amx")
    )
    code = "from rnnext import explain; print(explain.explain(100, 16, 64, 1024, threads=2))"
    named = run_python("-c", code, RNNEXT_CPU_MACHINE="zen4").stdout
    assert "planned for zen4, told by RNNEXT_CPU_MACHINE" in named
    assert "2 part(s) of the batch" in named
    changed = run_python("-c", code, RNNEXT_CPU_MACHINE="zen4,far_rate=4").stdout
    assert "far_rate=4," in changed
    assert "2 part(s) of the hidden units" in changed
    wrong = run_python("-c", "import rnnext", RNNEXT_CPU_MACHINE="z80")
    assert wrong.returncode != 0
    assert "machine must be one of zen4, zen5, xeon-amx, got z80" in wrong.stderr


@pytest.mark.skipif(ISAS[-1] != "avx512_bf16", reason="this processor has no pairs, or tiles too")
def test_pairs_are_multiplied_where_that_is_faster():
    code = "import rnnext; print(rnnext._C.cpu_isa())"
    for name, isa in (("zen4", "avx512_bf16"), ("xeon-amx", "avx512")):
        assert run_python("-c", code, RNNEXT_CPU_MACHINE=name).stdout.strip() == isa


def test_many_sequences_are_shared_out_and_nobody_waits():
    for threads in (1, 2, 3, 8):
        found = plan(100, 64, 64, 256, threads=threads)
        assert (found["batch_parts"], found["hidden_parts"]) == (threads, 1)
        assert found["unit_rows"] == -(-64 // threads)


def test_equal_lengths_are_split_as_none():
    for B, threads in itertools.product((1, 2, 7, 13, 64), (1, 2, 3, 5)):
        keys = ("batch_parts", "hidden_parts", "unit_rows")
        alike = [plan(100, B, 64, 64, threads=threads, lengths=n) for n in ([], [100] * B)]
        assert len({tuple(each[key] for key in keys) for each in alike}) == 1


def test_one_step_of_many_sequences_is_not_shared_by_hidden_units():
    """An odd number of rows divides less evenly than they do, but all members read all rows."""
    for B in (1250, 1253):
        found = plan(1, B, 128, 128, train=True)
        assert (found["batch_parts"], found["hidden_parts"]) == (2, 1)
        assert (found["own_rows"], found["state"]) == (True, "rows")


def test_one_sequence_of_large_weights_is_shared_by_hidden_units():
    found = plan(100, 1, 64, 256)
    assert (found["batch_parts"], found["hidden_parts"], found["pieces"]) == (1, 2, 2)
    assert plan(100, 1, 64, 32, threads=1)["hidden_parts"] == 1


def test_where_waiting_is_dear_nobody_shares_a_sequence():
    slow = ZEN4 | {"wait": 1e6}
    assert plan(100, 1, 64, 256, machine=slow)["hidden_parts"] == 1


def test_a_machine_slow_beyond_its_second_cache_splits_the_hidden_units():
    """Each thread's half of the weights then stays in its own second cache."""
    size = (64, 32, 64, 1024)
    assert plan(*size, machine="zen4")["hidden_parts"] == 1
    assert plan(*size, machine="xeon-amx")["hidden_parts"] == 2


def test_threads_without_work_are_not_called():
    assert plan(100, 1, 64, 64)["threads"] == 1
    assert plan(100, 1, 64, 256)["threads"] == 2
    assert plan(100, 3, 64, 64, threads=8)["threads"] == 3
    assert plan(100, 1, 64, 64, directions=2)["threads"] == 2


def test_the_estimate_falls_with_threads_and_rises_with_rows():
    cycles = [plan(100, 64, 64, 256, threads=n)["cycles"] for n in (1, 2, 4, 8)]
    assert cycles == sorted(cycles, reverse=True)
    cycles = [plan(100, B, 64, 256)["cycles"] for B in (1, 8, 64, 512)]
    assert cycles == sorted(cycles)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, "rows"),
        ({"lengths": [5, 9, 9, 9, 9, 9, 9, 9]}, "scratch"),  # rows past an end hold zeros
        ({"H": 1024}, "scratch"),  # its rows would meet in one cache set
        ({"B": 1, "H": 512}, "scratch"),  # others write a part of it
        ({"dtype": torch.bfloat16}, "scratch"),  # rows are rounded
        ({"dtype": torch.float64, "H": 512}, "scratch"),
    ],
)
def test_where_the_state_lives(case, expected):
    size = {"T": 9, "B": 8, "I": 16, "H": 192} | case
    found = plan(**size)
    assert found["state"] == expected
    if "lengths" in case:
        assert found["unit_rows"] >= 4


def test_threads_hold_narrow_steps_that_lie_beside_each_other():
    found = plan(100, 16, 16, 64)  # two threads, 2 KiB of each step
    assert (found["state"], found["held_steps"]) == ("scratch", 8)
    assert plan(6, 16, 64, 64)["held_steps"] == 6
    assert plan(100, 8, 16, 32)["held_steps"] == 32
    for other in (
        plan(100, 16, 16, 64, threads=1),  # nobody's rows beside its own
        plan(100, 18, 16, 64),  # wider
        plan(100, 32, 16, 16),  # rows of one line
        plan(3, 16, 256, 64),
        plan(300, 16, 16, 64),  # the output is prefetched
        plan(100, 16, 16, 64, directions=2),
    ):
        assert (other["state"], other["held_steps"]) == ("rows", 0)
    for other in (
        plan(100, 16, 16, 64, lengths=[99] * 16),
        plan(100, 16, 16, 64, dtype=torch.bfloat16),
    ):
        assert (other["state"], other["held_steps"]) == ("scratch", 0)
    assert "8 steps of the output are written together" in explain(
        100, 16, 16, 64, threads=2, machine="zen4"
    )


def test_the_only_step_reads_hx_where_it_lies():
    assert plan(1, 8, 16, 64, hx=True)["from_hx"]
    assert not plan(1, 8, 16, 64)["from_hx"]
    assert not plan(2, 8, 16, 64, hx=True)["from_hx"]


def test_one_step_of_few_sequences_packs_nothing():
    assert [plan(1, B, 16, 64)["one_step"] for B in (1, 7, 8)] == [True, True, False]
    assert not plan(2, 1, 16, 64)["one_step"]


def test_one_step_of_some_sequences_packs_its_own_hidden_units():
    found = plan(1, 16, 512, 512, hx=True)
    assert (found["streams"], found["hidden_parts"]) == (True, 2)
    assert not plan(2, 16, 512, 512)["streams"]


def test_few_rows_sum_the_gradients_of_weights_where_they_are_returned():
    assert plan(1, 16, 1024, 1024, train=True)["direct_sums"]
    assert plan(20, 1, 256, 256, train=True)["direct_sums"]
    assert not plan(65, 1, 256, 256, train=True)["direct_sums"]
    assert not plan(1, 64, 64, 64, train=True)["direct_sums"]  # each thread has sums of its own
    assert not plan(1, 16, 1024, 1024, train=True, dtype=torch.bfloat16)["direct_sums"]
    assert "gradients of the weights are summed where they are returned" in explain(
        1, 16, 512, 512, train=True, threads=2, machine="zen4"
    )


def test_one_step_backward_packs_nothing():
    found = plan(1, 16, 256, 256, train=True, threads=1)
    assert (found["streams"], found["own_rows"]) == (True, False)
    found = plan(3, 16, 256, 256, train=True, threads=1)
    assert (found["streams"], found["own_rows"]) == (False, True)


def test_what_is_packed_for_few_steps_counts():
    assert [plan(T, 16, 512, 512)["hidden_parts"] for T in (2, 3, 200)] == [2, 2, 1]


def test_one_step_of_many_sequences_from_zeros_is_a_product_of_rows():
    assert [plan(1, B, 16, 64)["from_zeros"] for B in (127, 128)] == [False, True]
    assert not plan(1, 128, 16, 64, hx=True)["from_zeros"]
    assert not plan(2, 128, 16, 64)["from_zeros"]


def test_few_rows_and_large_weights_project_ahead():
    assert plan(100, 2, 64, 64, threads=1)["projects"]
    assert not plan(100, 32, 64, 64, threads=1)["projects"]
    assert plan(100, 32, 1024, 1024)["projects"]
    assert plan(100, 32, 0, 64)["projects"]


def test_gradients_are_planned_for_the_threads_that_were_asked():
    found = plan(100, 16, 16, 64, train=True)
    assert found["own_sums"]
    assert found["own_rows"]
    few = plan(1, 16, 256, 256, train=True)  # fewer rows than hidden units
    assert not few["own_sums"]


def test_a_thread_takes_both_directions_where_it_has_sequences_enough():
    # Then the gradient of the features is summed without that of the pre-activations in memory.
    found = plan(100, 12, 16, 64, train=True, directions=2)  # a tile of 6 rows each
    assert (found["joined"], found["own_rows"], found["batch_parts"]) == (True, True, 2)
    for sizes in ((100, 11, 16, 64), (100, 32, 1024, 256), (1, 32, 16, 64), (100, 16, 0, 64)):
        found = plan(*sizes, train=True, directions=2)
        assert (found["joined"], found["own_rows"]) == (False, False)
    assert not plan(100, 32, 16, 64, train=True, directions=2, dtype=torch.bfloat16)["joined"]
    assert not plan(100, 32, 16, 64, directions=2)["joined"]


def test_layers_of_few_sequences_run_as_a_wavefront():
    assert plan(100, 1, 64, 64, layers=2)["wavefront"]
    assert not plan(100, 64, 64, 256, layers=2)["wavefront"]
    assert not plan(100, 1, 64, 64, layers=2, directions=2)["wavefront"]


def test_lengths_share_out_steps():
    lengths = [100] + [1] * 100
    found = plan(100, 101, 16, 64, lengths=lengths)
    assert (found["batch_parts"], found["unit_rows"]) == (2, 100)
    # A part ends nearest to its share, 275 steps: with 270 of 6 sequences, not with 290 of 7.
    found = plan(50, 20, 16, 64, lengths=[50] * 5 + [20] * 15)
    assert (found["batch_parts"], found["unit_rows"]) == (2, 14)


def test_work_is_counted_in_steps_that_there_are():
    lengths = [100] + [1] * 31
    assert plan(100, 32, 16, 64)["threads"] == 2
    assert plan(100, 32, 16, 16, lengths=lengths)["threads"] == 1


@cover(isa=ISAS, dtype=samples.DTYPES)
def test_kernels_tell_their_shape(isa, dtype):
    _C.set_cpu_isa(isa)  # after the fixture of this file
    found = plan(10, 2, 3, 5, dtype=dtype)
    tiles = "amx" in isa and dtype == torch.bfloat16
    narrow = isa == "generic" or (isa == "amx_stand_in" and not tiles)
    vector = 16 if narrow else 32 if isa == "avx2" else 64
    assert found["panel"] == 2 * vector // (8 if dtype == torch.float64 else 4)
    pairs = tiles or (isa == "avx512_bf16" and dtype == torch.bfloat16)
    assert found["depth"] == (2 if pairs else 1)
    assert found["amx"] == tiles
    assert found["tile_rows"] == (32 if tiles else 6 if narrow or isa == "avx2" else 8)


def test_a_machine_with_tiles_is_planned_for_them():
    size = (100, 32, 256, 256)
    fma = plan(*size, machine="xeon-amx", threads=1)
    _C.set_cpu_isa("amx_stand_in")
    tiles = plan(*size, machine="xeon-amx", threads=1, dtype=torch.bfloat16)
    assert fma["cycles"] > 6 * tiles["cycles"]
    assert tiles["weight_bytes"] == fma["weight_bytes"] / 2
    # Rows are multiplied by sixteen, so fewer of them take as long.
    few = plan(100, 17, 256, 256, machine="xeon-amx", threads=1, dtype=torch.bfloat16)
    assert few["cycles"] == tiles["cycles"]
    # The state is a row of factors where it fills blocks; else it is read from scratch.
    assert [plan(9, B, 16, H, dtype=torch.bfloat16)["state"] for B, H in [
        (64, 128), (64, 120), (60, 128)
    ]] == ["rows", "scratch", "scratch"]  # fmt: skip
    text = explain(*size, machine="xeon-amx", dtype=torch.bfloat16, threads=2)
    assert "on amx_stand_in\n" in text
    assert "planned for xeon-amx, told by its name" in text
    assert "tiles=530" in text
    assert "AMX tiles of up to 32 rows" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"T": 0}, "sizes must be positive, got 0"),
        ({"I": -1}, "I must not be negative, got -1"),
        ({"lengths": [1]}, "lengths must hold B = 2 numbers, got 1"),
        ({"lengths": [1, 11]}, r"lengths must be in 0..10, got 11"),
        ({"machine": "z80"}, "machine must be one of zen4, zen5, xeon-amx, got z80"),
        ({"machine": {"speed": 1.0}}, "a machine's numbers are multiply, .*, got speed"),
        ({"machine": {"far_rate": 0}}, "a machine's far_rate must be a positive number, got 0"),
        ({"machine": "zen5,wait="}, "a machine's wait must be a positive number, got"),
        ({"machine": "wait=0,zen5"}, "after a machine's name come NAME=NUMBER, got zen5"),
    ],
)
def test_questions_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan(**({"T": 10, "B": 2, "I": 3, "H": 5} | wrong))


def test_explain_says_it_in_words():
    text = explain(100, 1, 64, 256, threads=2, machine="zen4")
    assert "2 part(s) of the hidden units" in text
    assert "W_ih x comes first" in text
    assert "planned for zen4" in text
    assert "nothing is packed" in explain(1, 1, 8, 8)
    assert "a wavefront" in explain(100, 1, 64, 64, num_layers=2, threads=2, machine="zen4")
    assert "summed by each part over its own" in explain(100, 16, 16, 64, train=True, threads=2)


def test_explain_from_the_command_line(capsys):
    assert rnnext.__main__.main(["explain", "100", "64", "64", "256", "--threads", "2"]) == 0
    assert "2 part(s) of the batch" in capsys.readouterr().out
    assert rnnext.__main__.main(["explain", "0", "64", "64", "256"]) == 2
    assert "sizes must be positive" in capsys.readouterr().err
    assert rnnext.__main__.main([]) == 0
    assert "CPU ISA in use" in capsys.readouterr().out
