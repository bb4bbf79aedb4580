// Elements that travel together.
#pragma once

#include "cuda/device.h"

namespace rnnext::cuda {

// N neighbouring elements.
template <typename T, int N>
struct alignas(N * sizeof(T)) Word {
  T x[N];
};

// As many as fill a word of at least 4 bytes, the least that cp.async copies.
template <typename T>
constexpr int kWordSize = sizeof(T) == 2 ? 2 : 1;

// `paired`: two elements of 16 bits lie at a multiple of 4 bytes. `second`: there is a second one.
template <typename T, int N>
__device__ __forceinline__ void store_word(T* to, const Word<T, N>& x, bool paired, bool second) {
  if constexpr (N == 1) {
    *to = x.x[0];
  } else if (paired) {
    *reinterpret_cast<Word<T, N>*>(to) = x;
  } else {
    to[0] = x.x[0];
    if (second) to[1] = x.x[1];
  }
}

}  // namespace rnnext::cuda
