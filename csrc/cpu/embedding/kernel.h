// The gather's gradient: rows of `grad` that picked the same table row are summed.
#pragma once

#include "cpu/embedding/runs.h"
#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

// out[D] = scale * sum of the rows grad[order[i]], i in [0, n), in that order and in the compute
// type, from column j on: as many columns at once as NV registers hold, then the rest.
template <int NV, class S>
RNNEXT_INLINE void sum_columns(const S* grad, int64_t D, int64_t j, const int64_t* order, int64_t n,
                               Compute<S> scale, S* out) {
  using C = Compute<S>;
  constexpr int64_t kColumns = NV * kLanes<C>;
  for (; NV == 1 ? j < D : D - j >= kColumns; j += kColumns) {
    Vec<C> sum[NV];
    for (int v = 0; v < NV; ++v) sum[v] = Vec<C>{};
    for (int64_t i = 0; i < n; ++i) {
      const S* row = grad + order[i] * D + j;
      for (int v = 0; v < NV; ++v)
        sum[v] += NV > 1 ? load(row + v * kLanes<C>) : load_some(row, D - j);
    }
    for (int v = 0; v < NV; ++v)
      store_some(out + j + v * kLanes<C>, sum[v] * scale, D - j - v * kLanes<C>);
  }
  if constexpr (NV > 1) sum_columns<NV / 2>(grad, D, j, order, n, scale, out);
}

// Sums the runs [first, last), each into a row of `out`: the next, or, if `scatter`, the run's own.
template <class S>
void sum_runs(const Runs& runs, int64_t first, int64_t last, const void* grad, int64_t D,
              bool by_frequency, bool scatter, void* out) {
  const S* const from = static_cast<const S*>(grad);
  for (int64_t u = first; u < last; ++u) {
    const int64_t begin = runs.begin[u], end = runs.begin[u + 1];
    for (int64_t i = begin + kGatherAhead; i < end + kGatherAhead && i < runs.length; ++i)
      prefetch_row(from + runs.order[i] * D, D * static_cast<int64_t>(sizeof(S)));
    const auto scale =
        static_cast<Compute<S>>(by_frequency ? 1.0 / static_cast<double>(end - begin) : 1.0);
    S* const to = static_cast<S*>(out) + (scatter ? runs.row[u] : u) * D;
    sum_columns<8>(from, D, 0, runs.order + begin, end - begin, scale, to);
  }
}

}  // namespace rnnext::RNNEXT_ISA
