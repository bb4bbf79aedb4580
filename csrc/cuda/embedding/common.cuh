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

// Of a pointer, or bytes modulo 16.
inline __device__ unsigned past_16(const void* p) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p) % 16);
}

}  // namespace rnnext::cuda
