// Epilogues: what happens to the sums of a step, forward and backward.
//
// A tile of R rows times NV vectors ends with the activation and the stores. Tiles inline Elman's
// relu and, backward or where numbers are stored as they are computed, tanh. Every other epilogue
// is a function of its own, which reads the tile's sums from memory: tiles take most of the
// compiler's time, so a micro-kernel has one set of them for all f, leaks and storage types.
#pragma once

#include "cpu/cells/leaky.h"
#include "cpu/gemm/tile.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

// Replaces n vectors at x by f of them.
template <class S>
struct ForwardVectors {
  Vec<Compute<S>>* x;
  int n;
  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Fixed<name>) const {
    for (int i = 0; i < n; ++i) x[i] = Activation<S, name>::forward(x[i]);
  }
};
// Calls f(Fixed<name>{}).
template <class Body>
RNNEXT_NOINLINE void for_nonlinearity(Nonlinearity name, const Body& f) {
  RNNEXT_RETURN_FOR(name);
}

// The output that belongs to a state, which W_hh multiplies.
template <class S>
Vec<Compute<S>> output_of(const Recurrence& p, Vec<Compute<S>> state) {
  if (p.cell != Cell::voltage) return state;
  for_nonlinearity(p.nonlinearity, ForwardVectors<S>{&state, 1});
  return as_stored<S>(state);
}

// Calls f(Fixed<n>{}) for tanh or relu, the nonlinearities that tiles inline.
template <class F>
RNNEXT_INLINE void for_inlined(Nonlinearity name, const F& f) {
  switch (name) {
    case Nonlinearity::tanh:
      return f(Fixed<Nonlinearity::tanh>{});
    case Nonlinearity::relu:
      return f(Fixed<Nonlinearity::relu>{});
    case Nonlinearity::sigmoid:
    case Nonlinearity::softplus:
    case Nonlinearity::identity:
      break;
  }
  __builtin_unreachable();
}

// How the tiles of a step end. They call `out_of_line`, if any, with rows `stride` vectors apart.
template <class Step, class C>
struct Epilogue {
  Nonlinearity nonlinearity;
  Cell cell;
  void (*out_of_line)(const Step&, const Vec<C>* sums, int64_t stride, int rows, int vectors,
                      int64_t row, int64_t column) = nullptr;

  template <int R, int NV>
  RNNEXT_INLINE void call(const Step& step, const Vec<C> (&sums)[R][NV], int64_t row,
                          int64_t column) const {
    Vec<C> memory[R][NV];
    copy_block(memory, sums);
    out_of_line(step, &memory[0][0], NV, R, NV, row, column);
  }
};

// The rows that the state needs beside the sums, with a leak or gates (recurrence/cell.h).
template <class C>
struct StateRows {
  const C* alpha = nullptr;  // [H] and more, to whole panels
  // Forward, `before` is the state before, and `carry`, if not null, the same rows, to which the
  // new state is written. Backward, `carry`, read and then written, is the gradient of the state
  // before without what comes through W_hh, and `mixed`, for rate, that of what the leak mixes.
  Rows<const C> before;
  Rows<C> carry, mixed;
  // The step's rows of Recurrence::saved, as stored, or null; and, backward, those of the output.
  void* saved = nullptr;
  const void* output = nullptr;
  int64_t row_stride = 0;
  const void* const* each_before = nullptr;  // a GRU's states before, backward; null: zeros
  // Sums of alpha's gradient, [H] in whole panels, then what rounding took of each; null: unwanted.
  C* alpha_grad = nullptr;
};

// Calls end.run<Act, cell>() for the cell of a call. (Gated cells have ends of their own: gates.h.)
template <class Act, class End>
RNNEXT_INLINE void run_cell(const End& end, Cell cell) {
  switch (cell) {
    case Cell::elman:
      return end.template run<Act, Cell::elman>();
    case Cell::rate:
      return end.template run<Act, Cell::rate>();
    case Cell::voltage:
      return end.template run<Act, Cell::voltage>();
    case Cell::blend:
      return end.template run<Act, Cell::blend>();
    case Cell::gru:
    case Cell::lstm:
      break;
  }
  __builtin_unreachable();
}

// The end of a tile: its sums x, and where in the step it lies. `Step` (forward.h) has the rows.
// (Loops copy what they use of it to locals where that is faster: stores might change it.)
template <class S, class Step>
struct ForwardEpilogue {
  using C = Compute<S>;
  using F = typename Step::F;
  const Step& step;
  const Vec<C>* x;
  int64_t stride;
  int rows, vectors;
  int64_t row, column;

  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Fixed<name>) const {
    run_cell<Activation<S, name>>(*this, step.epilogue.cell);
  }
  template <class Act, Cell cell>
  RNNEXT_INLINE void run() const {
    const StateRows<C>& beside = step.state;
    const int64_t H = step.H, next_end = step.next_end;
    const int64_t stride = this->stride, end = column + vectors * kLanes<C>;
    const int64_t both = H < next_end ? H : next_end, whole = end < both ? end : both;
    const int rows = this->rows;
    if constexpr (cell == Cell::elman && kTiled<F> && kParts<F> == 1) {
      for (int r = 0; whole == end && vectors % 2 == 0 && r < rows; ++r)
        for (int v = 0; v < vectors; v += 2) {  // a block of operands
          const Vec<C> low = Act::forward(x[r * stride + v]);
          const Vec<C> high = Act::forward(x[r * stride + v + 1]);
          const int64_t j = column + v * kLanes<C>;
          store(Operands<F>::block(step.next[row + r], j, 0), Operands<Pair>::rounded(low, high));
          if (!step.output) continue;
          store(step.output[row + r] + j, low);
          store(step.output[row + r] + j + kLanes<C>, high);
        }
      if (whole == end && vectors % 2 == 0) return;
    }
    // Row by row: down a column, the processor would prefetch into another thread's rows.
    for (int64_t r = row; r < row + rows; ++r) {
      const C* const before = beside.before[r];
      C* const carry = beside.carry ? beside.carry[r] : nullptr;
      S* const saved =
          beside.saved ? static_cast<S*>(beside.saved) + r * beside.row_stride : nullptr;
      F* const next = step.next[r];
      C* const output = step.output ? step.output[r] : nullptr;
      const auto one = [&](int64_t j, Vec<C> pre, int64_t left, int64_t next_left) {
        Vec<C> state, out, kept;
        if constexpr (cell == Cell::elman) {
          out = Act::forward(pre);
        } else {
          out = Leaky<S, Act, cell>::forward(pre, load(beside.alpha + j),
                                             load_some(before + j, left), state, kept);
          if (carry) store(carry + j, state);
          if (saved) store_some(saved + j, kept, left);
        }
        Operands<F>::store_some(next, j, out, next_left);
        if (output) store_some(output + j, out, left);
      };
      const Vec<C>* at = x + (r - row) * stride;
      int64_t j = column;
      if constexpr (kTiled<F>)  // whose stores would make a mask for each vector
        for (; j + kLanes<C> <= whole; j += kLanes<C>) one(j, *at++, kLanes<C>, kLanes<C>);
      for (; j < end; j += kLanes<C>) one(j, *at++, H - j, next_end - j);
    }
  }
};

// With q the gradient of what the leak mixes, s' the state before and c what is mixed with it, the
// gradient of alpha is the sum of q (c - s'). For voltage and blend the forward pass saved c - s'.
// For rate a step adds its own q c and subtracts q s' of the next step, whose s' is its own result.
template <class S, class Step>
struct BackwardEpilogue {
  using C = Compute<S>;
  using F = typename Step::F;
  const Step& step;
  const Vec<C>* x;
  int64_t stride;
  int rows, vectors;
  int64_t row, column;

  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Fixed<name>) const {
    run_cell<Activation<C, name>>(*this, step.epilogue.cell);
  }
  template <class Act, Cell cell>
  RNNEXT_INLINE void run() const {
    const StateRows<C>& beside = step.state;
    const Rows<const C> values = step.values;
    const Rows<C> grad_pre = step.grad_pre, carry = beside.carry, mixed = beside.mixed;
    const Rows<F> next = step.next;
    const Rows<const S> saved{static_cast<const S*>(beside.saved), beside.row_stride};
    const Rows<const S> output{static_cast<const S*>(beside.output), beside.row_stride};
    const int64_t stride = this->stride;
    const int rows = this->rows, vectors = this->vectors;
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = column + v * kLanes<C>, left = step.H - j;
      const Vec<C>* at = x + v;
      C* const alpha_grad = beside.alpha_grad ? beside.alpha_grad + j : nullptr;
      const Vec<C> a = cell == Cell::elman ? Vec<C>{} : load(beside.alpha + j), rest = 1 - a;
      Vec<C> sum = {};
      for (int64_t r = row; r < row + rows; ++r, at += stride) {
        const Vec<C> h = load_some(values[r] + j, left), grad = *at;
        Vec<C> q, pre;
        if constexpr (cell == Cell::elman) {
          pre = Act::backward(grad, h);
        } else {
          pre = Leaky<S, Act, cell>::backward(grad, h, a, load(carry[r] + j), q);
          store(carry[r] + j, rest * q);
        }
        store_some(grad_pre[r] + j, pre, left);
        if (next) Operands<F>::store(next[r], j, pre);
        if (cell == Cell::elman || !alpha_grad) continue;
        if constexpr (cell == Cell::rate) {
          sum += q * h;
          sum -= load(mixed[r] + j) * load_some(output[r] + j, left);
          store(mixed[r] + j, q);
        } else {
          sum += q * load_some(saved[r] + j, left);
        }
      }
      if (alpha_grad) add_to(alpha_grad, alpha_grad + panels_in<C>(step.H) * kPanel<C>, sum);
    }
  }
};

template <template <class, class> class End, class S, class Step>
void run_epilogue(const Step& step, const Vec<typename Step::C>* x, int64_t stride, int rows,
                  int vectors, int64_t row, int64_t column) {
  for_nonlinearity(step.epilogue.nonlinearity,
                   End<S, Step>{step, x, stride, rows, vectors, row, column});
}

// How tiles end in a call with results stored as S: with `End`, or with f inline.
template <template <class, class> class End, class S, class Step>
Epilogue<Step, Compute<S>> epilogue_of(const Recurrence& p, bool inlines_tanh) {
  const bool inlined = p.nonlinearity == Nonlinearity::relu ||
                       (p.nonlinearity == Nonlinearity::tanh && inlines_tanh);
  return {p.nonlinearity, p.cell,
          p.cell == Cell::elman && inlined ? nullptr : run_epilogue<End, S, Step>};
}

}  // namespace rnnext::RNNEXT_ISA
