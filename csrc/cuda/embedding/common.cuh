// What the embedding's kernels share.
#pragma once

#include "cuda/device.h"
#include "cuda/embedding/kernel.h"

namespace rnnext::cuda {

constexpr int kEmbeddingThreads = 256;

// Lanes along a row of `vectors` items: the power of two that covers it, up to a limit.
inline unsigned lanes_for(int64_t vectors, unsigned limit) {
  unsigned lanes = 1;
  while (lanes < vectors && lanes < limit) lanes *= 2;
  return lanes;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Indices out of range are reported (IndexErrorRecord) and skipped.
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
