// Indices out of range, on the device's side: reported (index_error.h) and skipped.
#pragma once

#include "cuda/device.h"
#include "cuda/embedding/kernel.h"

namespace rnnext::cuda {

__device__ __forceinline__ void report(const EmbeddingIndices& indices, int64_t i, int64_t value) {
  IndexErrorRecord* error = indices.error;
  if (error == nullptr || atomicCAS(&error->claimed, 0u, 1u) != 0u) return;
  error->position = i;
  error->value = value;
  error->bound = indices.rows;
  __threadfence_system();
  *static_cast<volatile unsigned*>(&error->ready) = 1;
}

// Index i, or -1 where it is out of range.
__device__ __forceinline__ int64_t checked_index(const EmbeddingIndices& indices, int64_t i) {
  int64_t index = indices.is_int64 ? __ldg(static_cast<const long long*>(indices.data) + i)
                                   : __ldg(static_cast<const int*>(indices.data) + i);
  if (index >= 0 && index < indices.rows) return index;
  report(indices, i, index);
  return -1;
}

}  // namespace rnnext::cuda
