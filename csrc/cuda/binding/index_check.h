// Indices out of range, on the host's side (index_error.h says how the kernels report them).
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/embedding/kernel.h"

namespace rnnext::cuda {

// The device's record. Raises IndexError if an earlier call on the device met an index out of
// range; does not wait for calls that still run.
IndexErrorRecord* index_errors(c10::DeviceIndex device);

// What the kernels need to know of `indices`, contiguous int32 or int64 on a CUDA device. Raises
// what index_errors raises.
EmbeddingIndices checked_indices(const at::Tensor& indices, int64_t rows);

}  // namespace rnnext::cuda
