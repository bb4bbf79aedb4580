// One step of many sequences from zeros: a product of their rows with W_ih, and f. No row waits for
// another, so a block of them at a time stays in cache while all panels pass.
#pragma once

#include "cpu/rnn/cell.h"
#include "cpu/rnn/feature_rows.h"
#include "cpu/rnn/state_store.h"

namespace rnnext::RNNEXT_ISA {

// Work whose results will be written to these rows: another core may have the lines, so each tile
// asks for its own when it begins.
template <class Work, class S>
struct Fetching {
  using Engine = typename Work::Engine;
  using F = typename Work::F;
  const Work& work;
  S* rows;
  int64_t stride;
  const F* packed = work.packed;

  template <class Extent>
  RNNEXT_INLINE void tile(Extent extent, int64_t row, int64_t column, const F* panels,
                          int64_t K) const {
    extent.template prefetch<true>(rows + row * stride + column, stride);
    work.tile(extent, row, column, panels, K);
  }
};

template <class S, class E>
struct FromZeros {
  using F = typename E::Factor;
  using C = Compute<S>;

  const Recurrence& p;
  int64_t columns, stride;
  F *packed, *features;  // the worker's own: packing takes as long as the products of a few rows
  C *bias, *sums;
  size_t bytes;

  FromZeros(const Recurrence& p, char* scratch)
      : p(p), columns(panels_in<C>(p.H) * kPanel<C>), stride(scratch_stride<C>(p.H)) {
    Arena arena{scratch};
    packed = arena.take<F>(p.D * weight(0).packed_size());
    features = arena.take<F>(kFromZerosRows * scratch_stride<F>(p.I));
    bias = arena.take<C>(p.D * columns);
    sums = arena.take<C>(kFromZerosRows * stride);
    arena.take<char>(kApart);
    bytes = arena.used;
  }

  Matrix<S, F> weight(int d) const {
    return {static_cast<const S*>(p.weight_ih[d]), p.I, p.H, true};
  }

  void run(const Worker& worker) const {
    for (int d = 0; d < p.D; ++d) {
      const Matrix<S, F> weight = this->weight(d);
      F* const to = packed + d * weight.packed_size();
      for (int64_t q = 0; q < weight.panels(); ++q) weight.pack(q, to + q * weight.panel_size());
      for (int64_t j = 0; j < columns; j += kLanes<C>)
        store(bias + d * columns + j, bias_of<S>(p, d, j));
    }
    const Range share = part(p.B, worker.rank, worker.size);
    for (int64_t b = share.begin; b < share.end; b += kFromZerosRows) {
      const int64_t rows = min_of(kFromZerosRows, share.end - b);
      Unit unit{};
      unit.b0 = b, unit.size = rows;
      const Rows<F> x = feature_rows<S, E>(p, unit, {0, 1, rows}, features);
      for (int d = 0; d < p.D; ++d) {
        const Projection<E> project{
            packed + d * weight(d).packed_size(), x, bias + d * columns, 0, sums, stride, columns};
        const Fetching<Projection<E>, S> output{project, output_row<S>(p, p.output, d, 0, b),
                                                p.D * p.H};
        S* const h_n = static_cast<S*>(p.h_n) + (d * p.B + b) * p.H;
        sweep(Fetching<Fetching<Projection<E>, S>, S>{output, h_n, p.H}, rows, 0, panels_in<C>(p.H),
              p.H, factors_in<F>(p.I));
        for (int64_t row = 0; row < rows; ++row) finish(d, b + row, sums + row * stride);
      }
    }
  }

  void finish(int d, int64_t b, const C* from) const {
    constexpr int kVectors = 8;  // at a time
    S* const output = static_cast<S*>(p.output) + (b * p.D + d) * p.H;
    S* const h_n = static_cast<S*>(p.h_n) + (d * p.B + b) * p.H;
    for (int64_t j = 0; j < p.H;) {
      Vec<C> h[kVectors];
      int n = 0;
      for (; n < kVectors && j + n * kLanes<C> < p.H; ++n) h[n] = load(from + j + n * kLanes<C>);
      for_name(p.nonlinearity, ForwardVectors<S>{h, n});
      for (int i = 0; i < n; ++i, j += kLanes<C>) {
        store_some(output + j, h[i], p.H - j);
        store_some(h_n + j, h[i], p.H - j);
      }
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
