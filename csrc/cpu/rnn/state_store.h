// Where the state of a step lives: read by the next step, written by this one, and made right where
// a sequence does not take part in it. The plan chooses the home (plan.h); whatever depends on it,
// or on sequences of different lengths, is here.
#pragma once

#include "cpu/rnn/units.h"

namespace rnnext::RNNEXT_ISA {

// Buffers of rows of factors for the states of each unit.
template <class E>
struct StateBuffers {
  using F = typename E::Factor;
  int64_t stride, rows;  // of a unit
  int count;
  F* first = nullptr;

  StateBuffers(const Recurrence& p, const Plan& plan, int count, Arena& arena)
      : stride(scratch_stride<F>(p.H)), rows(plan.unit_rows), count(count) {
    first = arena.take<F>(plan.units * unit_size());
  }
  int64_t unit_size() const { return count * rows * stride + kApart / sizeof(F); }
  F* row(const Unit& unit, int buffer, int64_t b) const {
    return first + unit.group * unit_size() + (buffer * rows + b - unit.b0) * stride;
  }
  Rows<F> all(const Unit& unit, int buffer) const { return {row(unit, buffer, unit.b0), stride}; }
};

// The states of the forward pass. Home::rows: the output. In scratch two buffers take turns, in the
// storage type's precision: a sequence cut into several calls gives the same bits.
template <class S, class E>
struct ForwardStates {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  StateBuffers<E> buffers;

  ForwardStates(const Recurrence& p, const ForwardPlan& plan, Arena& arena)
      : p(p), plan(plan), buffers(p, plan, 2, arena) {}

  // What the unit's first step reads: hx, or zeros. Both buffers start from it, since a sequence
  // that begins late finds it in either; one that never does ends with it.
  Rows<F> begin(const Unit& unit) const {
    if (plan.from_hx) {
      const S* first = static_cast<const S*>(p.hx) + (unit.d * p.B + unit.b0) * p.H;
      return {reinterpret_cast<const F*>(first), p.H / kDepth<F>};
    }
    for (int64_t b = unit.b0; b < unit.b1; ++b) {
      const S* hx = p.hx ? static_cast<const S*>(p.hx) + (unit.d * p.B + b) * p.H : nullptr;
      S* h_n = static_cast<S*>(p.h_n) + (unit.d * p.B + b) * p.H;
      const bool empty = p.length(b) == 0;
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        const Vec<C> h = hx ? load_some(hx + j, p.H - j) : Vec<C>{};
        for (int buffer = 0; buffer < 2; ++buffer)
          Factors<F>::store(buffers.row(unit, buffer, b), j, h);
        if (empty) store_some(h_n + j, h, p.H - j);
      }
    }
    return buffers.all(unit, 0);
  }

  // Where the step after `done` others writes, whose output begins at `output`.
  template <class Step>
  void open(Step& step, const Unit& unit, int64_t done, S* output) const {
    if (plan.state == Home::rows) {
      step.next = reinterpret_cast<F*>(output);
      step.next_stride = p.D * p.H / kDepth<F>;
      step.next_end = p.H;
    } else {
      step.next = buffers.row(unit, ~done & 1, unit.b0);
      step.next_stride = buffers.stride;
      step.next_end = panels_in<C>(p.H) * kPanel<C>;
      if constexpr (kNative<S>) step.output = output;
    }
  }

  // Makes of what the step wrote the state that the next one reads, and writes h_n of the sequences
  // that end here.
  template <class Step>
  void seal(Step& step, const Unit& unit, int64_t t, int64_t done, int64_t rows, S* output) const {
    if (plan.state == Home::scratch) {
      if (unit.last) clear_half_pairs(step.next, rows, buffers.stride, p.H);
      if (!kNative<S> || p.ragged()) mend(unit, t, rows, step.state.first, step.next, output);
    }
    if (p.ragged() || done + 1 == p.T) end(unit, t, rows, output);
    step.state = {step.next, step.next_stride};
  }

 private:
  // Rows past their sequence's end keep the state; 16-bit rows go to the output, rounded.
  void mend(const Unit& unit, int64_t t, int64_t rows, const F* state, F* next, S* output) const {
    const int64_t from = unit.p0 * kPanel<C>, to = min_of(unit.p1 * kPanel<C>, p.H);
    for (int64_t row = 0; row < rows;
         ++row, state += buffers.stride, next += buffers.stride, output += p.D * p.H) {
      const bool past = !p.inside(unit.b0 + row, t);
      for (int64_t j = from; j < to; j += kLanes<C>) {
        if (past) {
          copy_factors(next, state, j);
          store_some(output + j, Vec<C>{}, p.H - j);
        } else if constexpr (!kNative<S> && kStoredAsFactors<S, F>) {
          __builtin_memcpy(output + j, next + j / kDepth<F>,
                           min_of(kLanes<C>, p.H - j) * sizeof(S));
        } else if constexpr (!kNative<S>) {
          store_some(output + j, load(next + j), p.H - j);
          store(next + j, load_some(output + j, p.H - j));  // as a later call would read it
        }
      }
    }
  }
  void end(const Unit& unit, int64_t t, int64_t rows, const S* output) const {
    const int64_t from = unit.p0 * kPanel<C>, to = min_of(unit.p1 * kPanel<C>, p.H);
    for (int64_t row = 0; row < rows; ++row, output += p.D * p.H) {
      const int64_t b = unit.b0 + row;
      if (!p.ends(unit.d, b, t) || !p.inside(b, t)) continue;
      __builtin_memcpy(static_cast<S*>(p.h_n) + (unit.d * p.B + b) * p.H + from, output + from,
                       (to - from) * sizeof(S));
    }
  }
};

// The states of the backward pass: gradients of pre-activations. Home::rows: the rows of grad_pre.
// In scratch buffers 0 and 1 take turns; buffer 2 keeps those of the sequences' first steps, whose
// product with W_hh is the gradient of hx.
template <class S, class E>
struct BackwardStates {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const BackwardPlan& plan;
  StateBuffers<E> buffers;

  BackwardStates(const Recurrence& p, const BackwardPlan& plan, Arena& arena)
      : p(p), plan(plan), buffers(p, plan, 3, arena) {}

  // Zeros, which the unit's last steps read.
  Rows<F> begin(const Unit& unit) const {
    for (int64_t b = unit.b0; b < unit.b1; ++b)
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>)
        for (int buffer = 0; buffer < 3; ++buffer)
          Factors<F>::store(buffers.row(unit, buffer, b), j, Vec<C>{});
    return buffers.all(unit, 2);
  }

  // Where the step after `done` others writes its state beside grad_pre; null: nowhere.
  F* next(const Unit& unit, int64_t done) const {
    return plan.state == Home::rows ? nullptr : buffers.row(unit, ~done & 1, unit.b0);
  }

  // Makes of what a step wrote the state that the next one reads.
  Rows<F> seal(const Unit& unit, int64_t t, int64_t rows, F* next, C* grad_pre,
               int64_t stride) const {
    if (plan.state == Home::rows) return {reinterpret_cast<const F*>(grad_pre), stride};
    if (unit.last) clear_half_pairs(next, rows, buffers.stride, p.H);
    if (p.ragged()) mend(unit, t, rows, next, grad_pre, stride);
    return {next, buffers.stride};
  }

  // A state whose rows are about to be overwritten, in a place of its own.
  Rows<F> keep(const Unit& unit, const Rows<F>& state) const {
    if (plan.state == Home::scratch) return state;
    for (int64_t b = unit.b0; b < unit.b1; ++b)
      for (int64_t j = 0; j < p.H; j += kLanes<C>)
        copy_factors(buffers.row(unit, 0, b), state.first + (b - unit.b0) * state.stride, j);
    return buffers.all(unit, 0);
  }

  // The states of the sequences' first steps, when the last step left `state`.
  Rows<F> first(const Unit& unit, const Rows<F>& state) const {
    return p.ragged() ? buffers.all(unit, 2) : state;
  }

 private:
  // Rows past their sequence's end have no gradient; a first step's is kept.
  void mend(const Unit& unit, int64_t t, int64_t rows, F* next, C* grad_pre, int64_t stride) const {
    for (int64_t row = 0; row < rows; ++row, next += buffers.stride, grad_pre += stride) {
      const int64_t b = unit.b0 + row;
      const bool past = !p.inside(b, t), starts = p.starts(unit.d, b, t);
      if (!past && !starts) continue;
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        if (past) {
          Factors<F>::store(next, j, Vec<C>{});
          store_some(grad_pre + j, Vec<C>{}, p.H - j);
        } else {
          copy_factors(buffers.row(unit, 2, b), next, j);
        }
      }
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
