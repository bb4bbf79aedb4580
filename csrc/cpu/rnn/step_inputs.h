// The rows that a step of the backward pass reads.
#pragma once

#include "cpu/rnn/backward_layout.h"

namespace rnnext::RNNEXT_ISA {

// The output's gradient and what f gave: in the tensors, if the tiles can read them there, else
// copied to a worker's scratch. And what a leak or gates read besides.
template <class S, class MK>
struct StepInputs : BackwardCall {
  using C = Compute<S>;
  const RecurrenceGrad& g;
  const BackwardLayout<S, MK>& at;
  int worker;

  struct Inputs {
    Rows<const C> grad, values;
    bool both_in_tensors = false;
  };
  // The rows of the step before lie `ahead` of this one's.
  Inputs rows_of(const WorkItem& item, int64_t t, int64_t done, int64_t rows, int64_t ahead) const {
    const bool joins = g.grad_h_n && (p.ragged() || done == 0);
    if constexpr (kNative<S>)
      if (!plan.sorts && !joins && !(p.ragged() && at.buffers.carries()))
        return in_tensors(item, t);
    const Rows<C> grad = at.inputs_of(worker, at.kGrad);
    const Rows<C> values = at.inputs_of(worker, at.kValues);
    const bool copies_values = !kNative<S> || plan.sorts;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = item.sequence(row), place = (p.row(t, b) * p.D + item.d) * p.H;
      if (plan.sorts) fetch(item, t, b, ahead ? place + ahead : -1);
      copy_grad(item, g.grad_output && p.inside(b, t) ? place : -1, grad[row]);
      if (copies_values) copy(item, all_values() + place, values[row]);
      if (joins && p.ends(item.d, b, t)) add_grad_h_n(item, row, b, grad[row]);
    }
    if constexpr (kNative<S>)
      if (!copies_values) return {grad, in_tensors(item, t).values};
    return {grad, values};
  }

  // Adds the rows that a leak, or gates, read besides these.
  void add_state_rows(StateRows<C>& state, const WorkItem& item, int64_t t, int64_t rows) const {
    const int saved = traits_of(p.cell).saved;
    if (plan.sorts) {
      state.output = gather(item, t, rows, p.output, at.kOutput, 1, at.step_stride);
      if (p.saved)
        state.saved = gather(item, t, rows, p.saved, at.kSaved, saved, at.saved_stride());
    } else {
      state.output = output_row<S>(p, p.output, item.d, t, item.b0);
      state.saved = p.saved ? saved_row<S>(p, item.d, t, item.b0) : nullptr;
    }
  }

 private:
  // The values of f in all steps: the output, but for rate what is saved.
  const S* all_values() const {
    return static_cast<const S*>(p.cell == Cell::rate ? p.saved : p.output);
  }
  Inputs in_tensors(const WorkItem& item, int64_t t) const {
    const int64_t width = p.D * p.H, first = (p.row(t, item.b0) * p.D + item.d) * p.H;
    Inputs in{{nullptr, width}, {all_values() + first, width}, true};
    if (g.grad_output) in.grad.first = static_cast<const S*>(g.grad_output) + first;
    // (The derivative of the identity reads no values: any rows will do.)
    if (p.nonlinearity == Nonlinearity::identity && !at.buffers.carries() && in.grad)
      in.values.first = in.grad.first;
    return in;
  }
  template <class Body>
  void for_columns(const WorkItem& item, const Body& f) const {
    for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) f(j);
  }
  void copy(const WorkItem& item, const S* from, C* to) const {
    for_columns(item, [&](int64_t j) { store(to + j, load_some(from + j, p.H - j)); });
  }
  // The output's gradient at `place`; -1: zeros.
  void copy_grad(const WorkItem& item, int64_t place, C* to) const {
    if (place >= 0) return copy(item, static_cast<const S*>(g.grad_output) + place, to);
    for_columns(item, [&](int64_t j) { store(to + j, Vec<C>{}); });
  }
  // Adds the gradients of the last states. The gradient of a state that is kept beside the output
  // does not pass through the output.
  void add_grad_h_n(const WorkItem& item, int64_t row, int64_t b, C* grad) const {
    const auto add = [&](C* to, int which) {
      const S* const from = state_row<S>(p, g.grad_h_n, item.d, b, which);
      for_columns(item,
                  [&](int64_t j) { store(to + j, load(to + j) + load_some(from + j, p.H - j)); });
    };
    if (p.cell != Cell::voltage) add(grad, 0);
    if (traits_of(p.cell).keeps_beside)
      add(at.buffers.state_grads.row(item, at.buffers.kCarry, row), traits_of(p.cell).states - 1);
  }
  // Prefetches what the step before and the sums of the weights' gradients will read of a sequence.
  void fetch(const WorkItem& item, int64_t t, int64_t b, int64_t next) const {
    for (int64_t j = 0; p.input.data && j < p.I; j += 64 / static_cast<int64_t>(sizeof(S)))
      __builtin_prefetch(input_row<S>(p, t, b) + j);
    if (next < 0) return;
    for_columns(item, [&](int64_t j) {
      if (g.grad_output) __builtin_prefetch(static_cast<const S*>(g.grad_output) + next + j);
      __builtin_prefetch(all_values() + next + j);
    });
  }
  // Copies rows of step t to scratch. Each is `parts` times as wide as the output's.
  S* gather(const WorkItem& item, int64_t t, int64_t rows, void* from,
            typename BackwardLayout<S, MK>::StepArray which, int parts, int64_t stride) const {
    S* const to = reinterpret_cast<S*>(at.inputs_of(worker, which).first);
    for (int64_t i = 0; i < rows; ++i)
      __builtin_memcpy(to + i * stride, output_row<S>(p, from, item.d, t, item.sequence(i), parts),
                       parts * p.H * sizeof(S));
    return to;
  }
};

}  // namespace rnnext::RNNEXT_ISA
