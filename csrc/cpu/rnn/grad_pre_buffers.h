// Where grad_pre, the pre-activations' gradient, lies: a step writes it, the one before reads it.
#pragma once

#include "cpu/rnn/work_items.h"

namespace rnnext::RNNEXT_ISA {

// grad_pre as the rows of operands that W_hh^T multiplies. With Home::rows they are those that are
// written anyway. In scratch two buffers take turns. Two more keep what W_hh^T multiplies after all
// steps: grad_pre of the sequences' first steps, for hx's gradient, and the sums over resets.
template <class S, class MK>
struct GradPreBuffers : BackwardCall {
  using F = typename MK::Operand;
  using C = Compute<S>;
  RowBuffers<F> operands;
  enum Buffer { kEven, kOdd, kFirstSteps, kResets, kBuffers };
  // The buffers of state_grads. The first four have the gradient that reaches the state before a
  // step without passing W_hh: that of the current step, that of the sequences' first steps, and
  // its sum over resets, with what the sum lost. kMixed is the gradient of what the leak mixes.
  enum StateGrad { kCarry, kFirst, kResetCarry, kResetLost, kMixed, kCount };
  RowBuffers<C> state_grads;
  // The gradients of the pre-activations, summed over resets, and what the sums lost.
  RowBuffers<C> reset_pre;
  int parts;      // of a row: how many gradients a hidden unit's pre-activations have
  int64_t width;  // of a part in a row of operands

  GradPreBuffers(const BackwardCall& call, Arena& arena)
      : BackwardCall(call),
        operands(plan, traits_of(p.cell).grads * gate_width<F>(p.H), kBuffers, arena,
                 MK::kRowBlock),
        state_grads(plan, p.H, carries() ? kCount : 0, arena),
        reset_pre(plan, traits_of(p.cell).grads * padded(), out.reset_state ? 2 : 0, arena),
        parts(traits_of(p.cell).grads),
        width(gate_width<F>(p.H)) {}

  int64_t padded() const { return panels_in<C>(p.H) * kPanel<C>; }
  // Whether a part of the state's gradient does not come through W_hh.
  bool carries() const { return p.cell != Cell::elman; }
  // The part of a row of operands that W_hh^T multiplies: all, but of a GRU's n only the state's.
  Rows<const F> times_hh(const Rows<const F>& rows) const {
    return {rows.first + operands_in<F>((parts - p.gates()) * width), rows.stride};
  }

  // The rows that the work item's last steps read: zeros. With Home::rows they are not read.
  Rows<const F> initial(const WorkItem& item) const {
    const int64_t end = item.last ? width : item.u1 * kPanel<C>;
    for (int64_t i = 0; i < item.size; ++i) {
      for (int k = 0; k < parts; ++k)
        for (int64_t j = item.u0 * kPanel<C>; j < end; j += kLanes<C>)
          for (int buffer = 0; plan.grad_pre_home != Home::rows && buffer < kBuffers; ++buffer)
            store_part(operands.row(item, buffer, i), k, j, Vec<C>{}, width);
      for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) {
        for (int sum = 0; sum < state_grads.count; ++sum)
          store(state_grads.row(item, sum, i) + j, Vec<C>{});
        for (int sum = 0; sum < reset_pre.count; ++sum)
          for (int k = 0; k < parts; ++k)
            store(reset_pre.row(item, sum, i) + k * padded() + j, Vec<C>{});
      }
    }
    return operands.all(item, kFirstSteps);
  }

  // Where the step after `done` others writes grad_pre as operands; null: its rows serve as such.
  Rows<F> next_buffer(const WorkItem& item, int64_t done) const {
    if (plan.grad_pre_home == Home::rows) return {};
    return operands.all(item, done % 2 == 0 ? kOdd : kEven);
  }

  // Turns what a step wrote into what the next one reads.
  Rows<const F> finish_step(const WorkItem& item, int64_t t, int64_t rows, const Rows<F>& next,
                            const Rows<C>& grad_pre) const {
    if (plan.grad_pre_home == Home::rows)
      return {reinterpret_cast<const F*>(grad_pre.first), grad_pre.stride};
    if (item.last && parts == 1) clear_row_ends(next.first, rows, next.stride, p.H);
    if (p.ragged()) mask_ragged_rows(item, t, rows, next, grad_pre);
    return next;
  }

  // Stops the gradient where a sequence, or an episode of it, begins with step t: it goes to hx or
  // reset_state, and not to the step before. alpha_grad: StateRows::alpha_grad.
  void stop_at_starts(const WorkItem& item, int64_t t, int64_t rows, const Rows<F>& next,
                      const Rows<C>& grad_pre, C* alpha_grad) const {
    if (!p.reset && !carries()) return;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = item.sequence(i);
      const bool anew = p.restarts(item.d, b, t);
      if (!anew && !p.starts(item.d, b, t)) continue;
      for_parts(item, [&](int k, int64_t j) {
        const int64_t at = k * padded() + j;
        if (anew && out.reset_state)
          add_to(reset_pre.row(item, 0, i) + at, reset_pre.row(item, 1, i) + at,
                 load_some(grad_pre[i] + k * p.H + j, p.H - j));
        // Without lengths grad_pre of the first step stays: the gradient of hx reads it.
        if (next && (anew || p.ragged())) store_part(next[i], k, j, Vec<C>{}, p.H);
      });
      if (!carries()) continue;
      const S* const before = state_row<S>(p, anew ? p.reset_state : p.hx, item.d, b);
      for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) {
        C* const carry = state_grads.row(item, kCarry, i) + j;
        C* const mixed = state_grads.row(item, kMixed, i) + j;
        add_to(state_grads.row(item, anew ? kResetCarry : kFirst, i) + j,
               state_grads.row(item, kResetLost, i) + j, load(carry));  // (kFirst loses nothing)
        if (alpha_grad && before && p.cell == Cell::rate && p.inside(b, t))
          add_to(alpha_grad + j, alpha_grad + padded() + j,
                 -load(mixed) * load_some(before + j, p.H - j));
        store(carry, Vec<C>{});
        store(mixed, Vec<C>{});
      }
    }
  }

  // The sums over resets: those of the pre-activations' gradient, as rows of operands.
  Rows<const F> reset_sums(const WorkItem& item) const {
    for (int64_t i = 0; i < item.size; ++i) {
      for_parts(item, [&](int k, int64_t j) {
        const int64_t at = k * padded() + j;
        store_part(operands.row(item, kResets, i), k, j,
                   total_of(reset_pre.row(item, 0, i) + at, reset_pre.row(item, 1, i) + at), p.H);
      });
      for (int64_t j = item.u0 * kPanel<C>; carries() && j < item.u1 * kPanel<C>; j += kLanes<C>) {
        C* const sum = state_grads.row(item, kResetCarry, i) + j;
        store(sum, total_of(sum, state_grads.row(item, kResetLost, i) + j));
      }
    }
    return operands.all(item, kResets);
  }

  // A copy of grad_pre whose rows are about to be overwritten.
  Rows<const F> copied(const WorkItem& item, const Rows<const F>& grad_pre) const {
    if (plan.grad_pre_home == Home::scratch) return grad_pre;
    for (int64_t i = 0; i < item.size; ++i) copy(item, grad_pre[i], operands.row(item, kEven, i));
    return operands.all(item, kEven);
  }

  // grad_pre of the sequences' first steps, of which the one taken last left `grad_pre`.
  Rows<const F> first_steps(const WorkItem& item, const Rows<const F>& grad_pre) const {
    return p.ragged() ? operands.all(item, kFirstSteps) : grad_pre;
  }

 private:
  // f(part, column in it) for each vector of the work item's own columns.
  template <class Body>
  void for_parts(const WorkItem& item, const Body& f) const {
    for (int k = 0; k < parts; ++k)
      for (int64_t j = item.u0 * kPanel<C>; j < min_of(item.u1 * kPanel<C>, p.H); j += kLanes<C>)
        f(k, j);
  }
  // Stores a vector of a part in a row of operands, where the part ends at `end`.
  void store_part(F* row, int k, int64_t j, Vec<C> x, int64_t end) const {
    Operands<F>::store_some(row, k * width + j, x, end - j);
  }
  // Copies the work item's own columns of a row of operands.
  void copy(const WorkItem& item, const F* from, F* to) const {
    for (int k = 0; k < parts; ++k) {
      const int64_t at = operands_in<F>(k * width + item.u0 * kPanel<C>);
      const int64_t end = operands_in<F>(k * width + min_of(item.u1 * kPanel<C>, width));
      __builtin_memcpy(to + at, from + at, (end - at) * sizeof(F));
    }
  }
  // Clears the gradient of rows past their sequence's end, and keeps that of a first step.
  void mask_ragged_rows(const WorkItem& item, int64_t t, int64_t rows, const Rows<F>& next,
                        const Rows<C>& grad_pre) const {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = item.sequence(row);
      if (!p.inside(b, t)) {
        for_parts(item, [&](int k, int64_t j) {
          store_part(next[row], k, j, Vec<C>{}, p.H);
          store_some(grad_pre[row] + k * p.H + j, Vec<C>{}, p.H - j);
        });
      } else if (p.starts(item.d, b, t) && !p.restarts(item.d, b, t)) {
        copy(item, next[row], operands.row(item, kFirstSteps, row));
      }
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
