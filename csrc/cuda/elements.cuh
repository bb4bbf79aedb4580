// What kernels with one thread an element share: launch shapes, element types, checked indices.
#pragma once

#include "cuda/device.h"
#include "cuda/indices.h"

namespace rnnext::cuda {

constexpr int kElementThreads = 256;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The launch for n elements in each of D directions: blockIdx.y is the direction.
inline LaunchShape elements(int64_t n, int D = 1) {
  return {.grid = dim3(static_cast<unsigned>(divide_up(n, kElementThreads)), D),
          .block = dim3(kElementThreads)};
}
__device__ __forceinline__ int64_t element() {
  return int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
}

// Calls f(T{}) for the element type that a DType or a Compute names.
template <class Kind, class F>
cudaError_t with_type(Kind kind, F f) {
  if (kind == Kind::f64) return f(double{});
  if (kind == Kind::f16) return f(__half{});
  if (kind == Kind::bf16) return f(__nv_bfloat16{});
  return f(float{});
}

// Reports an index out of range (IndexErrorRecord), which is then skipped.
__device__ __forceinline__ void report(const TableIndices& indices, int64_t i, int64_t value) {
  IndexErrorRecord* error = indices.error;
  if (error == nullptr || atomicCAS(&error->claimed, 0u, 1u) != 0u) return;
  error->position = i;
  error->value = value;
  error->bound = indices.rows;
  __threadfence_system();
  *static_cast<volatile unsigned*>(&error->ready) = 1;
}

// Index i, or -1 where it is out of range.
__device__ __forceinline__ int64_t checked_index(const TableIndices& indices, int64_t i) {
  int64_t index = indices.is_int64 ? __ldg(static_cast<const long long*>(indices.data) + i)
                                   : __ldg(static_cast<const int*>(indices.data) + i);
  if (index >= 0 && index < indices.rows) return index;
  report(indices, i, index);
  return -1;
}

}  // namespace rnnext::cuda
