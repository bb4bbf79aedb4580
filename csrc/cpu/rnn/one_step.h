// A single step of few sequences, which reads the weights as they lie.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/gates.h"
#include "cpu/rnn/unpacked.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class MK>
struct OneStep {
  using F = typename MK::Operand;
  using C = Compute<S>;

  const Recurrence& p;
  Rows<F> x, h;  // the worker's own rows of operands: [B] features, [D][B] states
  size_t bytes;

  OneStep(const Recurrence& p, char* scratch)
      : p(p), x{nullptr, scratch_stride<F>(p.I)}, h{nullptr, scratch_stride<F>(p.H)} {
    Arena arena{scratch};
    x.first = arena.take<F>(p.B * x.stride);
    h.first = arena.take<F>(p.D * p.B * h.stride);
    bytes = arena.used;
  }

  void run(const Worker& worker) const {
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t i = 0; i < p.I; i += kLanes<C>)
        Operands<F>::store(x[b], i, load_some(input_row<S>(p, 0, b) + i, p.I - i));
    for (int64_t row = 0; p.hx && row < p.D * p.B; ++row)
      for (int64_t j = 0; j < p.H; j += kLanes<C>)
        Operands<F>::store(h[row], j,
                           load_some(static_cast<const S*>(p.hx) + row * p.H + j, p.H - j));
    const int64_t vectors = divide_up(p.H, kLanes<C>);
    const Range share = part(p.D * vectors, worker.rank, worker.size);
    for (int64_t v = share.begin; v < share.end; ++v)
      rows<kOneStepRows>(static_cast<int>(v / vectors), v % vectors * kLanes<C>);
  }
  template <int R>
  void rows(int d, int64_t j) const {
    if (p.B == R && is_gated(p.cell))
      return with_gates(p.cell, [&]<class Gates>(Gates) { gated_units<Gates, R>(d, j); });
    if (p.B == R) return units<R>(d, j);
    if constexpr (R > 1) rows<R - 1>(d, j);
  }

  template <int R>
  static RNNEXT_INLINE void add(Vec<C> (&sums)[R], const S* weight, int64_t columns, int64_t K,
                                const F* a, int64_t stride) {
    if constexpr (kTiled<F>) {
      add_unpacked_tiled<R>(sums, weight, columns, K, a, stride);
    } else {
      add_unpacked<R, MK>(sums, weight, columns, K, a, stride);
    }
  }

  // Computes the hidden units j and up that one vector holds, for all R sequences.
  template <int R>
  void units(int d, int64_t j) const {
    const int64_t left = p.H - j;
    Vec<C> acc[R];
    for (int64_t b = 0; b < R; ++b) {
      acc[b] = bias_of<S>(p, d, j);
      if (p.I == 0 && p.input.data) acc[b] += load_some(input_row<S>(p, 0, b) + d * p.H + j, left);
    }
    add(acc, static_cast<const S*>(p.weight_ih[d]) + j * p.I, left, p.I, x.first, x.stride);
    if (p.hx)
      add(acc, static_cast<const S*>(p.weight_hh[d]) + j * p.H, left, p.H, h[d * p.B], h.stride);
    for_name(p.nonlinearity, ForwardVectors<S>{acc, R});
    for (int64_t b = 0; b < R; ++b) {
      store_some(static_cast<S*>(p.output) + (b * p.D + d) * p.H + j, acc[b], left);
      store_some(static_cast<S*>(p.h_n) + (d * p.B + b) * p.H + j, acc[b], left);
    }
  }
  // The same of a gated cell.
  template <class Gates, int R>
  void gated_units(int d, int64_t j) const {
    using Gated = typename Gates::template Of<S>;
    using V = typename Gated::V;
    constexpr CellTraits kTraits = Gated::kTraits;
    const int64_t left = p.H - j;
    Vec<C> of_x[kTraits.gates][R], of_h[kTraits.gates][R];
    for (int k = 0; k < kTraits.gates; ++k) {
      const int64_t first = k * p.H + j;  // row of the weights
      for (int64_t b = 0; b < R; ++b) {
        of_x[k][b] = of_h[k][b] = Vec<C>{};
        if (p.bias_ih[0]) of_x[k][b] = load_some(static_cast<const S*>(p.bias_ih[d]) + first, left);
        if (p.bias_hh[0]) of_h[k][b] = load_some(static_cast<const S*>(p.bias_hh[d]) + first, left);
        if (p.I == 0 && p.input.data)
          of_x[k][b] += load_some(input_row<S>(p, 0, b) + d * kTraits.gates * p.H + first, left);
      }
      add(of_x[k], static_cast<const S*>(p.weight_ih[d]) + first * p.I, left, p.I, x.first,
          x.stride);
      if (p.hx)
        add(of_h[k], static_cast<const S*>(p.weight_hh[d]) + first * p.H, left, p.H, h[d * p.B],
            h.stride);
    }
    for (int64_t b = 0; b < R; ++b) {
      V x_of_row[kTraits.gates], h_of_row[kTraits.gates], saved[kTraits.saved];
      for (int k = 0; k < kTraits.gates; ++k)
        x_of_row[k] = {of_x[k][b]}, h_of_row[k] = {of_h[k][b]};
      V state{load_state(state_row<S>(p, p.hx, d, b, kTraits.states - 1), j, left)};
      const Vec<C> out = Gated::forward(x_of_row, h_of_row, state, saved).v[0];
      store_some(static_cast<S*>(p.output) + (b * p.D + d) * p.H + j, out, left);
      S* const h_n = const_cast<S*>(state_row<S>(p, p.h_n, d, b));
      store_some(h_n + j, out, left);
      if (kTraits.states > 1) store_some(h_n + p.state_size() + j, state.v[0], left);
      for (int k = 0; p.saved && k < kTraits.saved; ++k)
        store_some(saved_row<S>(p, d, 0, b) + k * p.H + j, saved[k].v[0], left);
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
