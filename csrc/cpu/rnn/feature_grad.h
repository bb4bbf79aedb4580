// The gradient of the features: rows of that of the pre-activations times W_ih, over directions.
#pragma once

#include "cpu/rnn/unpacked.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class MK>
struct FeatureGradients : BackwardCall {  // one worker's
  using F = typename MK::Operand;
  using C = Compute<S>;

  F* packed;    // W_ih of all directions, or some panels, if it is streamed
  F* operands;  // [block_rows][stride], if rows of grad_pre are no rows of operands
  int64_t stride;
  C* product;  // [rows][I], if they are converted, or sequences are sorted
  size_t bytes;

  // `shared`: the W_ih that all workers pack together, or null.
  FeatureGradients(const BackwardCall& call, F* shared, char* scratch)
      : BackwardCall(call), stride(operands_in<F>(weight(p, 0).K) + kLanes<F>) {
    Arena arena{scratch};
    const bool streamed = plan.features == FeatureGradient::streamed;
    packed = plan.features == FeatureGradient::shared
                 ? shared
                 : arena.take<F>(streamed ? streamed_size(weight(p, 0)) : packed_size(p));
    operands = arena.take<F>(kKPack<F> > 1 ? block_rows() * stride : 0);
    const int64_t most = kNative<S> ? 0 : max_of(block_rows(), plan.group_rows);
    product = arena.take<C>(max_of(most, plan.sorts ? plan.group_rows : 0) * p.I);
    bytes = arena.used;
  }

  static Matrix<S, F> weight(const Recurrence& p, int d) {
    return backward_weight<S, F>(p, p.weight_ih[d], p.I, gate_of(p, 0).ih);
  }
  static int64_t packed_size(const Recurrence& p) { return p.D * weight(p, 0).packed_size(); }
  // Packs share i of n of the panels of direction d.
  void pack(int d, int64_t i, int64_t n) const {
    const Matrix<S, F> weight = this->weight(p, d);
    const Range share = share_of(weight.panels(), i, n);
    weight.pack(packed_of(d), share.begin, share.end);
  }

  // Writes the work item's rows of step t, from as many rows of operands of its direction.
  void write(const WorkItem& item, int64_t t, int64_t rows, const Rows<const F>& from) const {
    const int d = item.d;
    S* const to = static_cast<S*>(out.input) + p.row(t, item.b0) * p.I;
    if (!plan.sorts) {
      multiply(d, rows, from, sums_for(to, rows), t % 2);
      return write_sums(to, rows);
    }
    const auto place = [&](int64_t i) {
      return static_cast<S*>(out.input) + p.row(t, item.sequence(i)) * p.I;
    };
    if (d == 0) __builtin_memset(to, 0, item.size * p.I * sizeof(S));
    for (int64_t i = 0; d > 0 && i < rows; ++i) copy(place(i), product + i * p.I, p.I);
    multiply(d, rows, from, product, t % 2);
    for (int64_t i = 0; i < rows; ++i) copy(product + i * p.I, place(i), p.I);
  }
  // Writes share i of n of the features, of all rows, from the whole grad_pre.
  void stream(const C* grad_pre, int64_t i, int64_t n) const {
    C* const to = static_cast<C*>(out.input);
    for (int d = 0; d < p.D; ++d) {
      const Matrix<S, F> weight = this->weight(p, d);
      const Range share = share_of(weight.panels(), i, n);
      RNNEXT_ISA::stream(product_of(d, nullptr, rows_of(grad_pre, d, p.rows()), to), weight, packed,
                         p.rows(), share.begin, share.end);
    }
  }
  // Writes rows [begin, end) from the whole grad_pre.
  void write_all(const C* grad_pre, int64_t begin, int64_t end) const {
    const int64_t width = p.D * grad_width();
    for (int64_t n = begin; n < end; n += block_rows()) {
      const int64_t rows = min_of(block_rows(), end - n);
      S* const to = static_cast<S*>(out.input) + n * p.I;
      C* const sums = sums_for(to, rows);
      for (int d = 0; d < p.D; ++d)
        multiply(d, rows, rows_of(grad_pre + n * width, d, rows), sums, n / block_rows() % 2);
      write_sums(to, rows);
    }
  }

 private:
  F* packed_of(int d) const { return packed + d * weight(p, d).packed_size(); }
  // Rows of operands times W_ih of direction d, added to `to`; the first direction begins the sums.
  PlainProduct<MK> product_of(int d, const F* packed, const Rows<const F>& from, C* to) const {
    return {packed, from, {d > 0 ? to : nullptr, p.I}, {to, p.I}, p.I};
  }
  void multiply(int d, int64_t rows, const Rows<const F>& from, C* to, bool back) const {
    macro_kernel(product_of(d, packed_of(d), from, to), rows, 0, panels_in<F>(p.I), p.I,
                 operands_in<F>(weight(p, d).K), {back, plan.fetches, plan.pair_bytes});
  }
  // Where the products for the rows at `to` are summed. Their lines are prefetched: see kFarBytes.
  C* sums_for(S* to, int64_t rows) const {
    for (int64_t i = 0; i < rows * p.I; i += 64 / static_cast<int64_t>(sizeof(S)))
      __builtin_prefetch(to + i, 1, 3);
    if constexpr (kNative<S>) return to;
    return product;
  }
  void write_sums(S* to, int64_t rows) const {
    if constexpr (!kNative<S>) copy(product, to, rows * p.I);
  }
  // The width of a direction in a row of grad_pre, which begins with what W_ih multiplies.
  int64_t grad_width() const { return traits_of(p.cell).grads * p.H; }
  int64_t block_rows() const { return feature_block(p, kShape<S, MK>); }
  // Rows of grad_pre of direction d, as operands.
  Rows<const F> rows_of(const C* grad_pre, int d, int64_t rows) const {
    const C* const from = grad_pre + d * grad_width();
    if constexpr (kKPack<F> == 1) {
      return {from, p.D * grad_width()};
    } else {
      return {as_operands(from, rows), stride};
    }
  }
  // A vector may reach into the row that follows, which is written after it.
  const F* as_operands(const C* from, int64_t rows) const {
    F* to = operands;
    const int64_t width = gate_width<F>(p.H);
    for (int64_t row = 0; row < rows; ++row, from += p.D * grad_width(), to += stride)
      for (int k = 0; k < p.gates(); ++k)
        if constexpr (kTiled<F>) {
          for (int64_t j = 0; j < width; j += kLanes<C>)
            Operands<F>::store(to, k * width + j, load_some(from + k * p.H + j, p.H - j));
        } else {
          for (int64_t j = 0; j < p.H; j += kLanes<F> * kKPack<F>)
            store(to + (k * width + j) / kKPack<F>,
                  Operands<F>::along(from + k * p.H + j, p.H - j));
        }
    return operands;
  }
};

}  // namespace rnnext::RNNEXT_ISA
