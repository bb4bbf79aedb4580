// The end of a step of a gated cell. In the forward pass it runs after the products of some panels
// of units, whose columns hold several gates; in the backward pass it ends a tile, as any epilogue.
#pragma once

#include "cpu/cells/gru.h"
#include "cpu/cells/lstm.h"
#include "cpu/gemm/pack.h"
#include "cpu/rnn/epilogue.h"

namespace rnnext::RNNEXT_ISA {

// A cell's code as a type: `Gates::Of<S, N>` is the code for N vectors of units, stored as S.
struct GruGates {
  template <class S, int N = 1>
  using Of = Gru<S, N>;
};
struct LstmGates {
  template <class S, int N = 1>
  using Of = Lstm<S, N>;
};
// Calls f(Gates{}) for a call's gated cell.
template <class F>
RNNEXT_INLINE auto with_gates(Cell cell, const F& f) {
  switch (cell) {
    case Cell::gru:
      return f(GruGates{});
    case Cell::lstm:
      return f(LstmGates{});
    case Cell::elman:
    case Cell::rate:
    case Cell::voltage:
    case Cell::blend:
      break;
  }
  __builtin_unreachable();
}

// The forward pass of one vector of units: of a row's end and of a single step, out of line.
template <class Gates, class S, class Gated = typename Gates::template Of<S>,
          class V = typename Gated::V>
RNNEXT_NOINLINE V forward_vector(const V (&x)[Gated::kTraits.gates],
                                 const V (&h)[Gated::kTraits.gates], V& state,
                                 V (&saved)[Gated::kTraits.saved]) {
  return Gated::forward(x, h, state, saved);
}

// Makes the states and outputs of units j and up, N vectors, of a row. The columns of gate k begin
// at k * width of pre_ih and pre_hh. `Step` (forward.h) has the other rows.
template <class Gates, class S, int N, class Step, class C = Compute<S>>
RNNEXT_INLINE void forward_units(const Step& step, int64_t row, int64_t j, int64_t width,
                                 const C* pre_ih, const C* pre_hh) {
  using F = typename Step::F;
  using Gated = typename Gates::template Of<S, N>;
  using V = typename Gated::V;
  constexpr CellTraits kTraits = Gated::kTraits;
  const StateRows<C>& beside = step.state;
  const int64_t left = step.H - j;
  const auto all = [](const C* from) {
    return V::of([&](int i) { return load(from + i * kLanes<C>); });
  };
  V x[kTraits.gates], h[kTraits.gates], kept[kTraits.saved];
  for (int k = 0; k < kTraits.gates; ++k) {
    x[k] = all(pre_ih + k * width);
    h[k] = all(pre_hh + k * width);
  }
  V state = V::of([&](int i) {
    return load_some(beside.before[row] + j + i * kLanes<C>, left - i * kLanes<C>);
  });
  V out;
  if constexpr (N == 1) {
    out = forward_vector<Gates, S>(x, h, state, kept);
  } else {
    out = Gated::forward(x, h, state, kept);
  }
  S* const saved =
      beside.saved ? static_cast<S*>(beside.saved) + row * beside.row_stride + j : nullptr;
  for (int i = 0; i < N; ++i) {
    const int64_t at = i * kLanes<C>;
    if (beside.carry) store(beside.carry[row] + j + at, state.v[i]);
    for (int k = 0; saved && k < kTraits.saved; ++k)
      store_some(saved + k * step.H + at, kept[k].v[i], left - at);
    Operands<F>::store_some(step.next[row], j + at, out.v[i], step.next_end - j - at);
    if (step.output) store_some(step.output[row] + j + at, out.v[i], left - at);
  }
}

// The same of panels [u0, u1) of units, from rows of both products, whose columns are in the order
// of GateColumns; row by row, as ForwardEpilogue.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_NOINLINE void forward_gates(const Step& step, const Rows<const C>& pre_ih,
                                   const Rows<const C>& pre_hh, int64_t rows, int64_t u0,
                                   int64_t u1) {
  const Step own = step;  // a copy, which stores do not change
  const GateColumns<C> order{own.H, Gates::template Of<S>::kTraits.gates};
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t u = u0; u < u1; ++u) {
      const int64_t j = u * kPanel<C>, width = order.width(u);
      const C* const x = pre_ih[row] + order.begin(u);
      const C* const h = pre_hh[row] + order.begin(u);
      if (width == kPanel<C>) {
        forward_units<Gates, S, 2>(own, row, j, width, x, h);
      } else {
        forward_units<Gates, S, 1>(own, row, j, width, x, h);
      }
    }
}

// The end of a tile in the backward pass: the gradients of the gates' pre-activations from that of
// the output. In a row of operands the gates are gate_width apart.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_NOINLINE void backward_gates(const Step& step, const Vec<C>* x, int64_t stride, int rows,
                                    int vectors, int64_t row, int64_t column) {
  using F = typename Step::F;
  using Gated = typename Gates::template Of<S>;
  using V = typename Gated::V;
  constexpr CellTraits kTraits = Gated::kTraits;
  const int64_t H = step.H, width = gate_width<F>(H);
  for (int64_t r = row; r < row + rows; ++r) {
    const Vec<C>* sum = x + (r - row) * stride;
    const C* const values = step.values[r];
    const S* const saved = static_cast<const S*>(step.state.saved) + r * step.state.row_stride;
    C* const carry = step.state.carry[r];
    C* const grad_pre = step.grad_pre[r];
    F* const next = step.next ? step.next[r] : nullptr;
    for (int64_t j = column, end = column + vectors * kLanes<C>; j < end; j += kLanes<C>, ++sum) {
      const int64_t left = H - j;
      if (left <= 0) continue;
      V kept[kTraits.saved], grads[kTraits.grads], carried{load(carry + j)};
      for (int k = 0; k < kTraits.saved; ++k) kept[k] = {load_some(saved + k * H + j, left)};
      Gated::backward(V{*sum}, V{load_some(values + j, left)}, carried, kept, grads);
      store(carry + j, carried.v[0]);
      for (int k = 0; k < kTraits.grads; ++k) {
        store_some(grad_pre + k * H + j, grads[k].v[0], left);
        if (next) Operands<F>::store_some(next, k * width + j, grads[k].v[0], left);
      }
    }
  }
}

}  // namespace rnnext::RNNEXT_ISA
