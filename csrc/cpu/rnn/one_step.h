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
    const Range share = share_of(p.D * vectors, worker.rank, worker.size);
    const Product product = product_of<kOneStepRows>(p.B);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t v = p.first_step % 2 ? share.begin + share.end - 1 - i : i;
      const int d = static_cast<int>(v / vectors);
      const int64_t j = v % vectors * kLanes<C>;
      if (is_gated(p.cell)) {
        with_gates(p.cell, [&]<class Gates>(Gates) { gated_units<Gates>(product, d, j); });
      } else {
        units(product, d, j);
      }
    }
  }

  // Adds the product of each row of `a` with rows of a weight, one in each lane, to its sums.
  using Product = void (*)(Vec<C>* sums, const S* weight, int64_t columns, int64_t K, const F* a,
                           int64_t stride);
  template <int R>
  static Product product_of(int64_t rows) {
    if constexpr (R > 1)
      if (rows < R) return product_of<R - 1>(rows);
    return
        [](Vec<C>* sums, const S* weight, int64_t columns, int64_t K, const F* a, int64_t stride) {
          auto& of_rows = *reinterpret_cast<Vec<C>(*)[R]>(sums);
          if constexpr (kTiled<F>) {
            add_unpacked_tiled<R>(of_rows, weight, columns, K, a, stride);
          } else {
            add_unpacked<R, MK>(of_rows, weight, columns, K, a, stride);
          }
        };
  }
  // Adds the input's part of row `row` of the pre-activations and those that follow it, `left` of
  // which exist: W_ih x, or what is given in its place; and the state's part, W_hh h.
  void add_input(const Product& product, Vec<C>* sums, int d, int64_t row, int64_t left) const {
    for (int64_t b = 0; b < p.B && p.I == 0 && p.input.data; ++b)
      sums[b] += load_some(input_row<S>(p, 0, b) + d * p.gates() * p.H + row, left);
    product(sums, static_cast<const S*>(p.weight_ih[d]) + row * p.I, left, p.I, x.first, x.stride);
  }
  void add_state(const Product& product, Vec<C>* sums, int d, int64_t row, int64_t left) const {
    if (p.hx)
      product(sums, static_cast<const S*>(p.weight_hh[d]) + row * p.H, left, p.H, h[d * p.B],
              h.stride);
  }

  // Computes the hidden units j and up that one vector holds, for all sequences.
  void units(const Product& product, int d, int64_t j) const {
    const int64_t left = p.H - j;
    Vec<C> acc[kOneStepRows];
    for (int64_t b = 0; b < p.B; ++b) acc[b] = bias_of<S>(p, d, j);
    add_input(product, acc, d, j, left);
    add_state(product, acc, d, j, left);
    for_nonlinearity(p.nonlinearity, ForwardVectors<S>{acc, static_cast<int>(p.B)});
    for (int64_t b = 0; b < p.B; ++b) {
      store_some(static_cast<S*>(p.output) + (b * p.D + d) * p.H + j, acc[b], left);
      store_some(static_cast<S*>(p.h_n) + (d * p.B + b) * p.H + j, acc[b], left);
    }
  }
  // The same of a gated cell.
  template <class Gates>
  void gated_units(const Product& product, int d, int64_t j) const {
    using V = Several<Vec<C>, 1>;
    constexpr CellTraits kTraits = Gates::kTraits;
    const int64_t left = p.H - j;
    Vec<C> of_x[kTraits.gates][kOneStepRows], of_h[kTraits.gates][kOneStepRows];
#pragma GCC unroll 1
    for (int k = 0; k < kTraits.gates; ++k) {
      const int64_t first = k * p.H + j;
      for (int64_t b = 0; b < p.B; ++b) {
        of_x[k][b] = of_h[k][b] = Vec<C>{};
        if (p.bias_ih[0]) of_x[k][b] = load_some(static_cast<const S*>(p.bias_ih[d]) + first, left);
        if (p.bias_hh[0]) of_h[k][b] = load_some(static_cast<const S*>(p.bias_hh[d]) + first, left);
      }
      add_input(product, of_x[k], d, first, left);
      add_state(product, of_h[k], d, first, left);
    }
    const auto gates_of = [](const Vec<C>(&of)[kTraits.gates][kOneStepRows], int64_t b) {
      return GateVectors<C>{reinterpret_cast<const C*>(&of[0][b]), kOneStepRows * kLanes<C>};
    };
    for (int64_t b = 0; b < p.B; ++b) {
      V state{load_state(state_row<S>(p, p.hx, d, b, kTraits.states - 1), j, left)};
      const SavedUnits<S> save{p.saved ? saved_row<S>(p, d, 0, b) + j : nullptr, 0, p.H, left};
      const V out = forward_vector<Gates, S>(gates_of(of_x, b), gates_of(of_h, b), state, save);
      store_some(static_cast<S*>(p.output) + (b * p.D + d) * p.H + j, out.v[0], left);
      S* const h_n = const_cast<S*>(state_row<S>(p, p.h_n, d, b));
      store_some(h_n + j, out.v[0], left);
      if (kTraits.states > 1) store_some(h_n + p.state_size() + j, state.v[0], left);
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
