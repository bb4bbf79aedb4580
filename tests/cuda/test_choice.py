"""The choice of a path for the CUDA recurrence, over the properties of real cards."""

import itertools

import pytest

from cuda_ptx.build import ROOT
from cuda_ptx.choice import COMPUTES, DEVICES, PATHS, capacity_table, choose
from helpers.device import cuda_paths

THREADS, WARPS, REGISTER_BLOCKS = 512, 16, 8  # choice.h
NAMES, CARDS = list(PATHS), ["A100", "H100", "RTX 4090", "T4"]


def path_of(card: str, *sizes: int, **options: object) -> str:
    return NAMES[choose(DEVICES[card], *sizes, **options).path]


@pytest.mark.parametrize("compute", list(COMPUTES))
@pytest.mark.parametrize("card", [*CARDS, "small", "tight"])
def test_what_is_chosen_fits_the_card_and_covers_the_problem(card, compute):
    capability, sms, shared, *clusters = DEVICES[card]
    element = {"f64": 8, "bf16": 2, "f16": 2}.get(compute, 4)
    matrix = compute not in ("f32", "f64")
    sizes = itertools.product(
        [1, 17, 64, 129, 250, 1000, 2048],
        [1, 13, 128, 4097],
        [1, 2],
        [False, True],
        [None, "block", "cluster", "grid"] if card in ("H100", "tight") else [None],
    )
    resident = 0
    for H, B, D, backward, forced in sizes:
        try:
            g = choose(DEVICES[card], 50, B, H, D, compute, backward, path=forced)
        except ValueError:
            assert forced in ("block", "cluster", "grid")
            continue
        assert forced in (None, NAMES[g.path])
        if NAMES[g.path] == "step":
            continue
        resident += 1
        assert capability >= (90 if NAMES[g.path] == "cluster" else 80)
        assert g.shared_bytes <= shared
        assert g.groups % D == 0
        assert g.groups // D <= -(-B // g.rows)  # no group without a tile
        assert g.tile_step == g.groups // D * g.rows
        if NAMES[g.path] == "block":
            assert g.blocks == 1
        elif NAMES[g.path] == "cluster":
            assert g.blocks in (2, 4, 8, 16)
            assert clusters[g.blocks.bit_length() - 2] > 0
        else:
            assert g.groups * g.blocks <= sms  # all at once, or they wait for each other
        # All units and all of k have a worker.
        assert g.blocks * g.slice >= H
        assert g.unit_workers * (16 if matrix else 2) >= g.slice
        assert g.unit_workers * g.k_workers <= (WARPS if matrix else THREADS)
        assert g.k_blocks * g.k_workers * (64 if matrix else 16) >= H * element
        assert g.vector_stride >= H * element
        assert g.vector_stride % 16 == 0
        # A multiplication divides the numbers of all words that threads begin with.
        assert all(slot * g.pair_divisor >> 32 == slot // g.pairs for slot in range(THREADS))
        # The parts of shared memory follow each other, aligned, each large enough.
        words = g.rows * g.pairs * (8 if compute == "f64" else 4)
        accumulator = 8 if compute == "f64" else 4
        parts = [
            (0, (1 if NAMES[g.path] == "grid" else 2) * g.rows * g.vector_stride),
            (g.part_offset, g.parts * g.rows * g.part_stride * accumulator),
            (g.input_offset, 2 * (2 if backward else 1) * words),
            (g.bias_offset, g.slice * accumulator),
            (g.length_offset, 3 * g.rows * 4),
            (g.place_offset, (4 + 2 * g.rows) * 8),
            (g.weight_offset, max(0, g.k_blocks - REGISTER_BLOCKS) * THREADS * 32),
        ]
        ends = [offset for offset, _ in parts[1:]] + [g.shared_bytes]
        assert all(offset % 16 == 0 for offset in ends)
        assert all(at + size <= end for (at, size), end in zip(parts, ends, strict=True))
    assert (resident > 0) == (card != "T4")


def test_small_states_stay_in_a_block_and_large_ones_spread():
    for card in ("A100", "H100", "RTX 4090"):
        assert path_of(card, 100, 16, 64) == "block"
        assert path_of(card, 100, 16, 256, compute="bf16") == "block"
    assert path_of("H100", 100, 16, 1024, compute="bf16") == "cluster"
    assert path_of("A100", 100, 16, 1024, compute="bf16") == "grid"
    assert path_of("H100", 100, 1, 2048, compute="bf16") == "grid"


def test_gemms_take_large_batches():
    """(The capacities say what does not fit.)"""
    assert path_of("A100", 100, 128, 2048) == "step"


def test_batch_and_directions_spread_over_the_card():
    one, two = (choose(DEVICES["H100"], 100, 66, 64, D) for D in (1, 2))
    assert (one.groups, one.rows) == (66, 1)
    assert (two.groups, two.rows) == (132, 1)
    assert choose(DEVICES["H100"], 100, 1000, 64).groups <= 132


def test_batches_past_what_kernels_count_take_the_step_path():
    for B in (2**30, 2**31 - 1, 2**31):
        assert path_of("H100", 10, B, 16) == "step"
        with pytest.raises(ValueError, match="RNNEXT_CUDA_PATH=block"):
            path_of("H100", 10, B, 16, path="block")
    assert path_of("H100", 10, 2**30 - 1, 16, path="block") == "block"


@pytest.mark.parametrize("card", CARDS)
def test_the_gpu_check_lists_the_paths_of_a_card(card):
    able = []
    for path in PATHS:
        try:
            choose(DEVICES[card], 11, 4, 64, path=path)
        except ValueError:
            continue
        able.append(path)
    assert sorted(cuda_paths(divmod(DEVICES[card][0], 10))) == sorted(able)


def test_an_empty_word_forces_no_path():
    assert path_of("H100", 10, 4, 100, path="") == path_of("H100", 10, 4, 100)


def test_a_forced_path_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="RNNEXT_CUDA_PATH=quick: expected step, block, cluster"):
        choose(DEVICES["H100"], 10, 4, 100, path="quick")
    with pytest.raises(ValueError, match="=block: hidden size 1024 in this dtype does not fit"):
        choose(DEVICES["H100"], 10, 4, 1024, path="block")
    with pytest.raises(ValueError, match="=cluster: hidden size 64 in this dtype does not fit"):
        choose(DEVICES["A100"], 10, 4, 64, path="cluster")


def test_the_documented_capacities_are_these():
    assert capacity_table() in (ROOT / "docs" / "cuda.md").read_text()


def test_the_choice_depends_on_steps_and_fitting_clusters():
    # docs/numerics.md: so the same call's last bits may.
    H100 = DEVICES["H100"]
    fewer = (*H100[:3], 60, 28, 12, 7)
    assert [choose(card, 100, 8, 512).blocks for card in (H100, fewer)] == [16, 8]
    assert [path_of("H100", T, 16, 1024) for T in (1, 100)] == ["step", "cluster"]


def test_the_step_path_waits_for_the_host():
    # A step takes a GEMM and a launch: 10 us of the host, at 1.755 GHz.
    for H in (16, 64, 512):
        assert choose(DEVICES["H100"], 100, 1, H, path="step").cycles == pytest.approx(100 * 17500)
