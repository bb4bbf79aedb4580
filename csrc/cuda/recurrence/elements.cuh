// Kernels of one thread an element.
#pragma once

#include "cuda/device.h"
#include "cuda/recurrence/choice.h"

namespace rnnext::cuda {

constexpr int kElementThreads = 256;

// Of n elements in each of D directions: blockIdx.y is the direction.
inline LaunchShape elements(int64_t n, int D = 1) {
  return {.grid = dim3(static_cast<unsigned>((n + kElementThreads - 1) / kElementThreads), D),
          .block = dim3(kElementThreads)};
}
__device__ __forceinline__ int64_t element() {
  return int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
}

// Calls f(T{}) for the element type.
template <class F>
cudaError_t with_type(Compute compute, F f) {
  switch (compute) {
    case Compute::f64:
      return f(double{});
    case Compute::f16:
      return f(__half{});
    case Compute::bf16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

}  // namespace rnnext::cuda
