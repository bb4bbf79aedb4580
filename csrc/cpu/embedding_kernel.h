// The gather's gradient: rows of `grad` that picked the same table row are summed.
#pragma once

namespace rnnext::RNNEXT_ISA {

// out[D] = scale * sum of grad[order[i]] for i in [0, n), in the order given, in the compute type.
template <class S>
void sum_rows(const void* grad, int64_t D, const int64_t* order, int64_t n, double scale,
              void* out) {
  using C = Compute<S>;
  constexpr int kVectors = 8;  // columns held in registers
  const S* from = static_cast<const S*>(grad);
  for (int64_t j0 = 0; j0 < D; j0 += kVectors * kLanes<C>) {
    Vec<C> sum[kVectors] = {};
    for (int64_t i = 0; i < n; ++i) {
      const S* row = from + order[i] * D + j0;
      for (int v = 0; v < kVectors; ++v)
        sum[v] += load_some(row + v * kLanes<C>, D - j0 - v * kLanes<C>);
    }
    for (int v = 0; v < kVectors; ++v)
      store_some(static_cast<S*>(out) + j0 + v * kLanes<C>, sum[v] * static_cast<C>(scale),
                 D - j0 - v * kLanes<C>);
  }
}

}  // namespace rnnext::RNNEXT_ISA
