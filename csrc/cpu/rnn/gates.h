// The gate pass: the end of a step of a gated cell. Forward, it follows the products of some blocks
// of units, whose columns hold several gates; backward, it ends a tile, as any epilogue.
#pragma once

#include "cpu/cells/gru.h"
#include "cpu/cells/lstm.h"
#include "cpu/gemm/pack.h"
#include "cpu/rnn/epilogue.h"

namespace rnnext::RNNEXT_ISA {

// Calls f(Gates{}) with the code of a call's gated cell.
template <class F>
RNNEXT_INLINE auto with_gates(Cell cell, const F& f) {
  switch (cell) {
    case Cell::gru:
      return f(Gru{});
    case Cell::lstm:
      return f(Lstm{});
    case Cell::elman:
    case Cell::rate:
    case Cell::voltage:
    case Cell::blend:
      break;
  }
  __builtin_unreachable();
}

// Stores the values that a cell saves, each as it is made: kept until the end they would be
// spilled. The first vectors of a row go to `to`, a place in Recurrence::saved, or scratch, whose
// rows are row_stride and the saved values of a row `stride` apart; null: nothing is saved.
template <class S, int NV = 1>
struct SavedUnits {
  S* to;
  int64_t row_stride, stride, left;
  bool past_caches = false;
  template <int N>
  RNNEXT_INLINE void operator()(int k, const Several<Vec<Compute<S>>, N>& values) const {
    for (int i = 0; to && i < N; ++i) {
      const int64_t at = i % NV * kLanes<Compute<S>>;
      store_kept(to + i / NV * row_stride + k * stride + at, values.v[i], left - at, past_caches);
    }
  }
};

// A vector of units of each gate's pre-activations, `stride` apart; zeros where `left` have ended.
template <class C>
struct GateVectors {
  const C* first;
  int64_t stride, left = kLanes<C>;
  RNNEXT_INLINE Several<Vec<C>, 1> operator()(int k) const {
    return {keep_first<C>(load(first + k * stride), left)};
  }
};

// The forward pass of one vector of units: of a row's end and of a single step, out of line.
template <class Gates, class S, class C = Compute<S>, class V = Several<Vec<C>, 1>>
RNNEXT_NOINLINE V forward_vector(const GateVectors<C>& x, const GateVectors<C>& h, V& state,
                                 const SavedUnits<S>& save) {
  return Gates::template forward<S>(x, h, state, save);
}

// Makes the states and outputs of units j and up, NV vectors of each of R rows: two vectors are
// whole, one may be the rows' end. The columns of gate k begin at k * width of pre_ih and pre_hh.
template <class Gates, class S, int R, int NV, class Step, class C = Compute<S>>
RNNEXT_INLINE void forward_units(const Step& step, int64_t row, int64_t j, int64_t width,
                                 const Rows<const C>& pre_ih, const Rows<const C>& pre_hh) {
  constexpr int N = R * NV;
  using V = Several<Vec<C>, N>;
  const StateRows<C>& beside = step.state;
  const int64_t left = NV > 1 ? kPanel<C> : step.H - j;
  const int64_t next_left = NV > 1 ? kPanel<C> : step.next_end - j;
  const auto gates_of = [width, left](const Rows<const C>& pre) {
    return [pre, width, left](int k) {
      return V::of([&](int i) {
        const int64_t at = i % NV * kLanes<C>;
        return keep_first<C>(load(pre[i / NV] + k * width + at), left - at);
      });
    };
  };
  V state = V::of([&](int i) {
    const int64_t at = i % NV * kLanes<C>;
    return load_some(beside.before[row + i / NV] + j + at, left - at);
  });
  S* const saved = static_cast<S*>(beside.saved);
  const SavedUnits<S, NV> save{saved ? saved + row * beside.row_stride + j : nullptr,
                               beside.row_stride, step.H, left, step.past_caches};
  V out;
  if constexpr (N == 1) {
    out = forward_vector<Gates, S>(GateVectors<C>{pre_ih[0], width, left}, {pre_hh[0], width, left},
                                   state, save);
  } else {
    out = Gates::template forward<S>(gates_of(pre_ih), gates_of(pre_hh), state, save);
  }
  for (int i = 0; i < N; ++i) {
    const int64_t at = i % NV * kLanes<C>, r = row + i / NV;
    if (beside.carry) store(beside.carry[r] + j + at, state.v[i]);
    Operands<typename Step::F>::store_some(step.next[r], j + at, out.v[i], next_left - at);
    if (step.output) store_some(step.output[r] + j + at, out.v[i], left - at);
  }
}

// Makes the states and outputs of blocks [u0, u1) of units and R rows, from `row` on. The lines of
// as many rows from `next` on are prefetched, unless it is negative.
template <class Gates, class S, int R, class Step, class C>
RNNEXT_INLINE void forward_rows(const Step& step, int64_t row, int64_t next,
                                const Rows<const C>& pre_ih, const Rows<const C>& pre_hh,
                                int64_t u0, int64_t u1) {
  const GateColumns<C> order{step.H, Gates::kTraits.gates};
  for (int64_t u = u0; u < u1; ++u) {
    const int64_t begin = order.begin(u), j = u * kPanel<C>, width = order.width(u);
    const Rows<const C> x{pre_ih[row] + begin, pre_ih.stride};
    const Rows<const C> h{pre_hh[row] + begin, pre_hh.stride};
    if (step.far && next >= 0) step.prefetch(Extent<R, 2>{}, next, j, Gates::kTraits.saved);
    if (j + kPanel<C> <= step.H) {
      forward_units<Gates, S, R, 2>(step, row, j, width, x, h);
      continue;
    }
    for (int64_t i = 0; i < width; i += kLanes<C>)
      forward_units<Gates, S, R, 1, Step, C>(step, row, j + i, width, {x.first + i, x.stride},
                                             {h.first + i, h.stride});
  }
}

// The same of all rows, from rows of both products, whose columns are in the order of GateColumns.
// Two rows at once keep the processor's pipes full where one waits for its own results. `apart`:
// other threads write the rows before and after these, so the upper half is written downwards, then
// the lower half upwards: the processor prefetches lines ahead of stores, and so ends in the middle
// of these rows, not in another thread's.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_NOINLINE void forward_gates(const Step& step, const Rows<const C>& pre_ih,
                                   const Rows<const C>& pre_hh, int64_t rows, int64_t u0,
                                   int64_t u1, bool apart) {
  const Step own = step;  // a copy, which stores do not change
  if (rows % 2) forward_rows<Gates, S, 1>(own, rows - 1, -1, pre_ih, pre_hh, u0, u1);
  const int64_t pairs = rows / 2, upper = apart ? (pairs + 1) / 2 : 0;
  const auto pair = [&](int64_t i) { return i < upper ? pairs - 1 - i : i - upper; };
  for (int64_t i = 0; i < pairs; ++i)
    forward_rows<Gates, S, 2>(own, 2 * pair(i), i + 1 < pairs ? 2 * pair(i + 1) : -1, pre_ih,
                              pre_hh, u0, u1);
}

// Makes the gradients of units j and up of a row, N vectors, all whole if N > 1, from the
// sums of its tile. In a row of operands the gates are gate_width apart.
template <class Gates, class S, int N, class Step, class C = Compute<S>>
RNNEXT_INLINE void backward_units(const Step& step, const Vec<C>* sum, int64_t row, int64_t j) {
  using F = typename Step::F;
  using V = Several<Vec<C>, N>;
  constexpr CellTraits kTraits = Gates::kTraits;
  const int64_t H = step.H, left = N > 1 ? N * kLanes<C> : H - j;
  const S* const saved = static_cast<const S*>(step.state.saved) + row * step.state.row_stride;
  C* const carry = step.state.carry[row];
  const auto some = [&](const auto* from) {
    return V::of([&](int i) { return load_some(from + j + i * kLanes<C>, left - i * kLanes<C>); });
  };
  V kept[kTraits.saved], grads[kTraits.grads], before{};
  if (step.state.each_before)
    if (const auto* const from = static_cast<const S*>(step.state.each_before[row]))
      before = some(from);
  V carried = V::of([&](int i) { return load(carry + j + i * kLanes<C>); });
  for (int k = 0; k < kTraits.saved; ++k) kept[k] = some(saved + k * H);
  Gates::template backward<S>(V::of([&](int i) { return sum[i]; }), before, carried, kept, grads);
  for (int i = 0; i < N; ++i) {
    const int64_t at = i * kLanes<C>;
    store(carry + j + at, carried.v[i]);
    for (int k = 0; k < kTraits.grads; ++k) {
      store_kept(step.grad_pre[row] + k * H + j + at, grads[k].v[i], left - at, step.past_caches);
      if (step.next)
        Operands<F>::store_some(step.next[row], k * gate_width<F>(H) + j + at, grads[k].v[i],
                                left - at);
    }
  }
}

// The end of a tile in the backward pass: gradients of gates' pre-activations from the output's.
template <class Gates, class S, class Step, class C = Compute<S>>
RNNEXT_NOINLINE void backward_gates(const Step& step, const Vec<C>* x, int64_t stride, int rows,
                                    int vectors, int64_t row, int64_t column) {
  const Step own = step;  // a copy, which stores do not change
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < vectors;) {
      const Vec<C>* const sum = x + r * stride + i;
      const int64_t j = column + i * kLanes<C>;
      if (j >= own.H) break;
      if (i + 2 <= vectors && j + kPanel<C> <= own.H) {
        backward_units<Gates, S, 2>(own, sum, row + r, j);
        i += 2;
      } else {
        backward_units<Gates, S, 1>(own, sum, row + r, j);
        ++i;
      }
    }
}

}  // namespace rnnext::RNNEXT_ISA
