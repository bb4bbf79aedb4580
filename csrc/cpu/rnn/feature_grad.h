// The gradient of the features: rows of the gradient of the pre-activations times W_ih.
#pragma once

#include "cpu/rnn/units.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class E>
struct FeatureGradients {  // one worker's
  using F = typename E::Factor;
  using C = Compute<S>;

  const Recurrence& p;
  const RecurrenceGradOut& out;
  const BackwardPlan& plan;
  F* packed;   // W_ih of all directions: panels of [D][H]
  F* factors;  // [block_rows][stride], where rows of grad_pre are no rows of factors
  int64_t stride;
  C* product;  // [most rows][I], where these are converted, or of sorted sequences
  size_t bytes;

  // shared: where all pack W_ih for all, unless each packs it for itself.
  FeatureGradients(const Recurrence& p, const RecurrenceGradOut& out, const BackwardPlan& plan,
                   F* shared, char* scratch)
      : p(p), out(out), plan(plan), stride(p.D * factors_in<F>(p.H) + kLanes<F>) {
    Arena arena{scratch};
    packed = plan.own_weights ? arena.take<F>(packed_size(p)) : shared;
    factors = arena.take<F>(kDepth<F> > 1 ? block_rows() * stride : 0);
    const int64_t most = kNative<S> ? 0 : max_of(block_rows(), plan.unit_rows);
    product = arena.take<C>(max_of(most, plan.sorts ? plan.unit_rows : 0) * p.I);
    arena.take<char>(kApart);
    bytes = arena.used;
  }

  static Matrix<S, F> weight(const Recurrence& p, int d) {
    return {static_cast<const S*>(p.weight_ih[d]), p.H, p.I, false};
  }
  static int64_t packed_size(const Recurrence& p) { return p.D * weight(p, 0).packed_size(); }
  // Share i of n of the panels.
  void pack(int64_t i, int64_t n) const {
    for (int d = 0; d < p.D; ++d) {
      const Matrix<S, F> weight = this->weight(p, d);
      const Range share = part(weight.panels(), i, n);
      for (int64_t q = share.begin; q < share.end; ++q)
        weight.pack(q, packed + (q * p.D + d) * weight.panel_size());
    }
  }

  // Rows n and up, from as many rows of factors.
  void write(int64_t n, int64_t rows, const Rows<F>& from) const {
    S* const to = static_cast<S*>(out.input) + n * p.I;
    C* result = product;
    if constexpr (kNative<S>) result = to;
    fetch(to, rows * p.I);
    multiply(rows, from, result);
    if constexpr (!kNative<S>) copy(product, to, rows * p.I);
  }
  // The unit's rows of step t.
  void write(const Unit& unit, int64_t t, int64_t rows, const Rows<F>& from) const {
    if (!plan.sorts) return write(p.row(t, unit.b0), rows, from);
    S* const to = static_cast<S*>(out.input);
    __builtin_memset(to + p.row(t, unit.b0) * p.I, 0, unit.size * p.I * sizeof(S));
    multiply(rows, from, product);
    for (int64_t i = 0; i < rows; ++i)
      copy(product + i * p.I, to + p.row(t, unit.sequence(i)) * p.I, p.I);
  }
  // Rows [begin, end) of the whole grad_pre.
  void write_all(const C* grad_pre, int64_t begin, int64_t end) const {
    const int64_t width = p.D * p.H;
    for (int64_t n = begin; n < end; n += block_rows()) {
      const int64_t rows = min_of(block_rows(), end - n);
      if constexpr (kDepth<F> == 1) {
        write(n, rows, {grad_pre + n * width, width});
      } else {
        write(n, rows, {as_factors(grad_pre + n * width, rows), stride});
      }
    }
  }

 private:
  void multiply(int64_t rows, const Rows<F>& from, C* to) const {
    const Projection<E> project{packed, from, nullptr, 0, to, p.I, p.I};
    sweep(project, rows, 0, panels_in<F>(p.I), p.I, p.D * factors_in<F>(p.H));
  }
  // Ahead of the stores: see kFarBytes.
  static void fetch(S* to, int64_t n) {
    for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(S)))
      __builtin_prefetch(to + i, 1, 3);
  }
  static void copy(const C* from, S* to, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<C>)
      store_some(to + i, load_some(from + i, n - i), n - i);
  }
  int64_t block_rows() const {
    const int64_t row_bytes = max_of(p.D * p.H, p.I) * static_cast<int64_t>(sizeof(C));
    return max_of(1, kFeatureBlockBytes / (row_bytes * E::kTileRows)) * E::kTileRows;
  }
  // Each direction a row of factors. A vector may reach into what follows, which is written after
  // it.
  const F* as_factors(const C* from, int64_t rows) const {
    const int64_t K = factors_in<F>(p.H);
    for (int64_t row = 0; row < rows; ++row)
      for (int d = 0; d < p.D; ++d, from += p.H) {
        F* const to = factors + row * stride + d * K;
        if constexpr (kTiled<F>) {
          for (int64_t j = 0; j < K * kDepth<F>; j += kLanes<C>)
            Factors<F>::store(to, j, load_some(from + j, p.H - j));
        } else {
          for (int64_t j = 0; j < p.H; j += kLanes<F> * kDepth<F>)
            store(to + j / kDepth<F>, Factors<F>::along(from + j, p.H - j));
        }
      }
    return factors;
  }
};

}  // namespace rnnext::RNNEXT_ISA
