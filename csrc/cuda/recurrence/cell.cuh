// The cells, and how their inputs and outputs are read and written.
#pragma once

#include <math.h>

#include "cuda/device.h"
#include "cuda/recurrence/launch.h"

namespace rnnext::cuda {

// A cell is h = forward(pre-activation) and the derivative as a function of h, all that is saved.
struct Tanh {
  __device__ static float forward(float x) { return tanhf(x); }
  __device__ static double forward(double x) { return tanh(x); }
  template <typename A>
  __device__ static A backward(A h) {
    return A(1) - h * h;
  }
};

struct Relu {
  template <typename A>
  __device__ static A forward(A x) {
    return x < A(0) ? A(0) : x;  // NaN goes through
  }
  template <typename A>
  __device__ static A backward(A h) {
    return h > A(0) ? A(1) : A(0);
  }
};

// The elements that travel as one word of at least 4 bytes.
template <typename T>
struct alignas(sizeof(T) == 2 ? 4 : sizeof(T)) PairOf {
  static constexpr int kSize = sizeof(T) == 2 ? 2 : 1;
  T x[kSize];
};

// Starts a copy to shared memory. `second`: the pair's second element exists.
template <typename T>
__device__ __forceinline__ void copy_pair(PairOf<T>* to, const T* from, bool paired, bool second) {
  if constexpr (PairOf<T>::kSize == 1) {
    copy_async<sizeof(T)>(to, from);
  } else if (paired) {
    copy_async<4>(to, from);
  } else {
    to->x[0] = from[0];
    to->x[1] = second ? from[1] : from_float<T>(0.0f);
  }
}

template <typename T>
__device__ __forceinline__ void store_pair(T* to, const PairOf<T>& x, bool paired, bool second) {
  if constexpr (PairOf<T>::kSize == 1) {
    *to = x.x[0];
  } else if (paired) {
    *reinterpret_cast<PairOf<T>*>(to) = x;
  } else {
    to[0] = x.x[0];
    if (second) to[1] = x.x[1];
  }
}

__device__ __forceinline__ int sequence_length(const RecurrenceParams& p, int64_t b) {
  if (!p.lengths) return static_cast<int>(p.T);
  const int64_t length = p.lengths[b];
  return static_cast<int>(length < 0 ? 0 : length > p.T ? p.T : length);
}

// Where the input row of sequence b at step t begins; `row` numbers it as in RecurrenceParams.
__device__ __forceinline__ int64_t input_row(const RecurrenceParams& p, int64_t t, int64_t b,
                                             int64_t row) {
  if (p.index) return p.index[row] * p.input_stride_b;
  return p.step_row ? row * p.input_stride_b : t * p.input_stride_t + b * p.input_stride_b;
}

}  // namespace rnnext::cuda
