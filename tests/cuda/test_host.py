"""The host execution layer catches each planted fault, and finds nothing in its correction."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cuda_host.host import HERE, KernelError, Library, library

BLOCKS, THREADS = 4, 64


@pytest.fixture
def lib() -> Iterator[Library]:
    lib = library(HERE / "faults.cu")
    yield lib
    lib.set_device()
    lib.free_all()


def rotated(places: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.view(BLOCKS, THREADS).roll(-places, 1).flatten()


def next_block(x: Tensor) -> Tensor:
    return x.view(BLOCKS, THREADS).roll(-1, 0).flatten()


def same(x: Tensor) -> Tensor:
    return x


# What the kernel computes when it is correct, and what the error of the faulty one must say.
FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "missing_barrier": (rotated(1), "nothing wrote"),
    "race_on_a_double_buffer": (rotated(8), "race: this"),
    "missing_warp_barrier": (same, "race: this"),
    "missing_cluster_barrier": (next_block, "nothing wrote|race: this read"),
    "leaving_the_cluster_early": (next_block, "read out of bounds"),
    "store_after_arrival": (next_block, "nothing wrote|race: this"),
    "missing_flag": (next_block, "nothing wrote|race: this read"),
    "flag_before_the_data": (next_block, "nothing wrote|race: this read"),
    "no_transaction_wait": (next_block, "nothing wrote|race: this"),
    "too_few_transaction_bytes": (next_block, "nothing wrote|race: this|deadlock"),
    "too_many_transaction_bytes": (next_block, "deadlock: this thread spins|race: this"),
    "wait_for_an_old_phase": (next_block, "nothing wrote|race: this"),
    "plain_store_with_a_transaction": (next_block, "nothing wrote|race: this"),
    "store_to_a_block_that_has_not_begun": (next_block, "not initialised|race: this|nothing"),
    "transactions_of_one_buffer": (next_block, "nothing wrote|race: this|more arrivals|deadlock"),
    "leaving_before_a_store_lands": (same, "block, which is over|out of bounds|not initialised"),
    "torn_word": (next_block, r"__trap\(\)"),
    "tag_in_another_word": (next_block, r"__trap\(\)"),
    "tagged_words_of_one_buffer": (next_block, r"__trap\(\)|deadlock: this thread spins"),
    "no_look_at_the_tag": (next_block, r"__trap\(\)"),
    "race_between_blocks": (same, "race: this write .* the write by"),
    "missing_wait": (rotated(1), "nothing wrote"),
    "missing_barrier_after_wait": (rotated(1), "nothing wrote|race"),
    "wait_for_the_wrong_group": (rotated(1), "nothing wrote"),
    "copy_over_a_buffer_in_use": (rotated(1), "race: this|nothing wrote"),
    "shared_overrun": (rotated(1), "write out of bounds"),
    "global_overrun": (same, "read out of bounds"),
    "negative_index": (same, "read out of bounds"),
    "write_to_an_input": (same, "write to a constant buffer"),
    "register_overrun": (same, "array index out of bounds at .*faults.cu"),
    "misaligned_vector": (same, "misaligned .* at .*faults.cu"),
    "divergent_shuffle": (
        lambda x: x.view(-1, 32)[:, :1].expand(-1, 32).flatten(),
        "divergent warp",
    ),
    "barrier_that_some_miss": (same, "deadlock: .* wait at a named barrier"),
    "flag_that_nobody_sets": (same, "deadlock: this thread spins"),
}


def run(lib: Library, name: str, x: Tensor, size: int, faulty: bool, seed: int) -> Tensor:
    out = lib.empty(2 * size, name="out")
    flags = lib.tensor(torch.zeros(4096, dtype=torch.int32), writable=True, name="flags")
    lib.run(f"run_{name}", out, lib.tensor(x, name="in"), flags, faulty, seed=seed)
    return out[:size]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(lib, name):
    expected, message = FAULTS[name]
    x = torch.randn(BLOCKS * THREADS)
    written = 4 * 63 if name == "misaligned_vector" else x.numel()
    for seed in range(6):
        out = run(lib, name, x, x.numel(), False, seed)
        assert torch.equal(out[:written], expected(x)[:written])
        with pytest.raises(KernelError, match=message):
            run(lib, name, x, x.numel(), True, seed)


@pytest.mark.parametrize(
    ("name", "depth", "rounding"),
    [
        ("wrong_fragment_half", 16, torch.float16),
        ("wrong_fragment_bfloat16", 16, torch.bfloat16),
        ("wrong_fragment_tf32", 8, None),
    ],
)
def test_fragment_layouts(lib, name, depth, rounding):
    a, b = torch.randn(16, depth), torch.randn(depth, 8)
    if rounding is not None:
        a, b = a.to(rounding).float(), b.to(rounding).float()
    else:  # ten bits of mantissa
        a, b = (((m.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) for m in (a, b))
    x = torch.zeros(384)
    x[: a.numel()], x[256 : 256 + b.numel()] = a.flatten(), b.flatten()
    expected = (a.double() @ b.double()).float()
    assert torch.allclose(run(lib, name, x, 128, False, 0).view(16, 8), expected, atol=1e-5)
    assert not torch.allclose(run(lib, name, x, 128, True, 0).view(16, 8), expected, atol=0.1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1025, 0, 1, 0), "1 to 1024 threads"),
        ((0, 32, 0, 1, 0), "grid is empty"),
        ((4, 32, 228 * 1024, 1, 0), "shared memory"),
        ((6, 32, 0, 4, 0), "clusters"),
        ((32, 32, 0, 32, 0), "clusters"),
        ((132 * 2 + 1, 1024, 0, 1, 1), "does not fit"),
        ((133, 32, 200 * 1024, 1, 1), "does not fit"),
    ],
)
def test_a_launch_that_a_device_refuses(lib, shape, message):
    with pytest.raises(KernelError, match=message):
        lib.run("run_shape", *shape)


def test_the_device_can_be_chosen(lib):
    lib.run("run_shape", 16, 32, 100 * 1024, 16, 0)
    lib.set_device(sm=80, multiprocessors=108, shared_per_block=163 * 1024)
    lib.run("run_shape", 16, 32, 100 * 1024, 1, 1)
    with pytest.raises(KernelError, match="clusters"):
        lib.run("run_shape", 16, 32, 0, 2, 0)
    with pytest.raises(KernelError, match="shared memory"):
        lib.run("run_shape", 16, 32, 164 * 1024, 1, 0)


def test_a_launch_does_not_lower_what_a_kernel_may_have(lib):
    # Another thread may be about to launch the same kernel with more shared memory.
    limit = torch.zeros(1, dtype=torch.int64)
    for size in (100, 200, 60):
        lib.run("run_shape", 4, 32, size * 1024, 1, 0)
        lib.run("shape_limit", limit)
        assert limit.item() == 227 * 1024


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_of_16_bit_types(lib, dtype, tmp_path):
    source = tmp_path / "conversions.cu"
    source.write_text(CONVERSIONS)
    name = "half" if dtype == torch.float16 else "bfloat16"
    compiled = library(source)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    edges = every.view(dtype).float()
    halfway = torch.cat([(edges[:-1] + edges[1:]) / 2, edges, torch.randn(1000) * 100])
    x = torch.cat([halfway.nextafter(torch.tensor(s)) for s in (-torch.inf, torch.inf)] + [halfway])
    x = x[~x.isnan()]
    narrow = compiled.empty(x.numel(), dtype=dtype)
    wide = compiled.empty(x.numel())
    compiled.run(f"convert_{name}", compiled.tensor(x), narrow, wide, x.numel())
    assert torch.equal(narrow, x.to(dtype))
    assert torch.equal(wide, x.to(dtype).float())
    compiled.free_all()


CONVERSIONS = """
#include "cuda/device.h"
using namespace rnnext::cuda;
template <typename T>
__global__ void convert(const float* in, T* narrow, float* wide, int64_t n) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    narrow[i] = from_float<T>(in[i]);
    wide[i] = to_float(narrow[i]);
  }
}
template <typename T>
cudaError_t run(const float* in, void* narrow, float* wide, int64_t n) {
  return launch(convert<T>, LaunchShape{dim3(1), dim3(64)}, nullptr, in, static_cast<T*>(narrow),
                wide, n);
}
extern "C" cudaError_t convert_half(const float* in, void* narrow, float* wide, int64_t n) {
  return run<__half>(in, narrow, wide, n);
}
extern "C" cudaError_t convert_bfloat16(const float* in, void* narrow, float* wide, int64_t n) {
  return run<__nv_bfloat16>(in, narrow, wide, n);
}
"""
