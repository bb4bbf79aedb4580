// The gather's gradient: rows of `grad` that picked the same table row are summed.
#pragma once

#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

// NV vectors of columns from j on, held in registers.
template <int NV, class S>
RNNEXT_INLINE void sum_columns(const S* grad, int64_t D, int64_t j, const int64_t* order, int64_t n,
                               double scale, S* out) {
  using C = Compute<S>;
  Vec<C> sum[NV];
  for (int v = 0; v < NV; ++v) sum[v] = Vec<C>{};
  for (int64_t i = 0; i < n; ++i) {
    const S* row = grad + order[i] * D + j;
    for (int v = 0; v < NV; ++v) sum[v] += load_some(row + v * kLanes<C>, D - j - v * kLanes<C>);
  }
  for (int v = 0; v < NV; ++v)
    store_some(out + j + v * kLanes<C>, sum[v] * static_cast<C>(scale), D - j - v * kLanes<C>);
}

// out[D] = scale * sum of grad[order[i]] for i in [0, n), in the order given, in the compute type.
template <class S>
void sum_rows(const void* grad, int64_t D, const int64_t* order, int64_t n, double scale,
              void* out) {
  constexpr int64_t kVector = kLanes<Compute<S>>;
  const S* from = static_cast<const S*>(grad);
  S* to = static_cast<S*>(out);
  int64_t j = 0;
  for (; D - j >= 8 * kVector; j += 8 * kVector) sum_columns<8>(from, D, j, order, n, scale, to);
  for (; D - j >= 2 * kVector; j += 2 * kVector) sum_columns<2>(from, D, j, order, n, scale, to);
  for (; j < D; j += kVector) sum_columns<1>(from, D, j, order, n, scale, to);
}

}  // namespace rnnext::RNNEXT_ISA
