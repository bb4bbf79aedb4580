// The features of some steps of a unit, as rows of factors.
#pragma once

#include "cpu/rnn/units.h"

namespace rnnext::RNNEXT_ISA {

// Rows of features of a chunk, in memory's order: where they lie, or copied to scratch.
template <class S, class E, class F = typename E::Factor>
Rows<F> feature_rows(const Recurrence& p, const Unit& unit, const Chunk& chunk, F* scratch) {
  const bool sorted = unit.order != nullptr;
  int64_t apart = 0;
  if (kStoredAsFactors<S, F> && !sorted &&
      p.input.direct(p, chunk.n, unit.b0, unit.b0 + unit.size, &apart) && p.I % kGrain<F> == 0 &&
      apart % kDepth<F> == 0 && chunk.rows % E::kRowBlock == 0)
    return {reinterpret_cast<const F*>(input_row<S>(p, chunk.t, unit.b0)), apart / kDepth<F>};
  const Rows<F> rows{scratch, scratch_stride<F>(p.I)};
  // Rows of sequences that are sorted lie here and there.
  const int64_t ahead = sorted && !p.input.index ? p.input.stride_t : 0;
  for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t) {
    const int64_t later = p.reverse[unit.d] ? t - chunk.n : t + chunk.n;
    const bool fetches = ahead && later >= 0 && later < p.T;
    for (int64_t i = 0, n = sequences(p, unit, t); i < n; ++i, scratch += rows.stride) {
      const S* const row = input_row<S>(p, t, unit.sequence(i));
      const S* const next = row + (later - t) * ahead;
      for (int64_t j = 0; j < factors_in<F>(p.I) * kDepth<F>; j += kLanes<Compute<S>>) {
        if (fetches) __builtin_prefetch(next + j);
        Factors<F>::store(scratch, j, load_some(row + j, p.I - j));
      }
    }
  }
  return rows;
}

}  // namespace rnnext::RNNEXT_ISA
