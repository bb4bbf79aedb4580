// The end of a step of a gated cell. Forward it follows the products of some panels of units, since
// their columns hold several gates; backward it ends a tile, as any epilogue.
#pragma once

#include "cpu/cells/gru.h"
#include "cpu/cells/lstm.h"
#include "cpu/gemm/pack.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

// f(Gates<S>{}) for the gated cell that a call has.
template <class S, class F>
RNNEXT_INLINE auto with_gates(Cell cell, const F& f) {
  if (cell == Cell::gru) return f(Gru<S>{});
  return f(Lstm<S>{});
}

// Makes the states and outputs of panels [u0, u1) of units from rows of both products, whose
// columns are in the order of GateColumns. `Step` (forward.h) has the other rows.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_TILE void forward_gates(const Step& step, const Rows<const C>& x, const Rows<const C>& h,
                               int64_t rows, int64_t u0, int64_t u1) {
  using F = typename Step::F;
  constexpr CellTraits kTraits = Gates::kTraits;
  const GateColumns<C> columns{step.H, kTraits.gates};
  const int64_t H = step.H, next_end = step.next_end;
  // Row by row, as ForwardEpilogue.
  for (int64_t row = 0; row < rows; ++row) {
    const C* const before = step.leak.before[row];
    C* const carry = step.leak.carry ? step.leak.carry[row] : nullptr;
    S* const saved =
        step.leak.saved ? static_cast<S*>(step.leak.saved) + row * step.leak.row_stride : nullptr;
    F* const next = step.next[row];
    C* const output = step.output ? step.output[row] : nullptr;
    for (int64_t u = u0; u < u1; ++u) {
      const int64_t width = columns.width(u);
      const C* from_x = x[row] + columns.begin(u);
      const C* from_h = h[row] + columns.begin(u);
      for (int64_t j = u * kPanel<C>, end = j + width; j < end;
           j += kLanes<C>, from_x += kLanes<C>, from_h += kLanes<C>) {
        const int64_t left = H - j;
        if (left <= 0) break;
        Vec<C> of_x[kTraits.gates], of_h[kTraits.gates], kept[kTraits.saved];
        for (int k = 0; k < kTraits.gates; ++k) {
          of_x[k] = load(from_x + k * width);
          of_h[k] = load(from_h + k * width);
        }
        Vec<C> state = load_some(before + j, left);
        const Vec<C> out = Gates::forward(of_x, of_h, state, kept);
        if (carry) store(carry + j, state);
        for (int k = 0; saved && k < kTraits.saved; ++k)
          store_some(saved + k * H + j, kept[k], left);
        Factors<F>::store_some(next, j, out, next_end - j);
        if (output) store_some(output + j, out, left);
      }
    }
  }
}

// The end of a tile in the backward pass: the gradients of the gates' pre-activations from that of
// the output. In a row of factors the gates are gate_width apart.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_TILE void backward_gates(const Step& step, Vec<C>* x, int rows, int vectors, int64_t row,
                                int64_t column) {
  using F = typename Step::F;
  constexpr CellTraits kTraits = Gates::kTraits;
  const int64_t H = step.H, width = gate_width<F>(H);
  for (int64_t r = row; r < row + rows; ++r) {
    const C* const values = step.values[r];
    const S* const saved = static_cast<const S*>(step.leak.saved) + r * step.leak.row_stride;
    C* const carry = step.leak.carry[r];
    C* const grad_pre = step.grad_pre[r];
    F* const next = step.next ? step.next[r] : nullptr;
    for (int64_t j = column, end = column + vectors * kLanes<C>; j < end; j += kLanes<C>, ++x) {
      const int64_t left = H - j;
      if (left <= 0) continue;
      Vec<C> kept[kTraits.saved], grads[kTraits.grads], carried = load(carry + j);
      for (int k = 0; k < kTraits.saved; ++k) kept[k] = load_some(saved + k * H + j, left);
      Gates::backward(*x, load_some(values + j, left), carried, kept, grads);
      store(carry + j, carried);
      for (int k = 0; k < kTraits.grads; ++k) {
        store_some(grad_pre + k * H + j, grads[k], left);
        if (next) Factors<F>::store_some(next, k * width + j, grads[k], left);
      }
    }
  }
}

}  // namespace rnnext::RNNEXT_ISA
