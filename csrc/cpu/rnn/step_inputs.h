// The rows that a step of the backward pass reads.
#pragma once

#include "cpu/rnn/backward_layout.h"

namespace rnnext::RNNEXT_ISA {

// The output's gradient and the results of f: in the tensors, if the tiles can read them there,
// else copied to a worker's scratch. And what a leak or gates read besides.
template <class S, class MK>
struct StepInputs : BackwardCall {
  using C = Compute<S>;
  const RecurrenceGrad& g;
  const BackwardLayout<S, MK>& at;
  int worker;

  struct Inputs {
    Rows<const C> grad, values;
    const C *grad_ahead = nullptr, *values_ahead = nullptr;
  };
  Inputs rows_of(const WorkItem& item, int64_t t, int64_t done, int64_t rows) const {
    const bool joins = g.grad_h_n && (p.ragged() || done == 0), copies = !kNative<S> || plan.sorts;
    const bool copies_grad = copies || joins || (p.ragged() && at.buffers.carries());
    const Rows<C> grad = at.inputs_of(worker, at.kGrad);
    const Rows<C> values = at.inputs_of(worker, at.kValues);
    const int64_t next = done + 1 < p.T ? p.before(item.d, t) : -1;
    for (int64_t row = 0; copies_grad && row < rows; ++row) {
      const int64_t b = item.sequence(row);
      if (plan.sorts) fetch(item, t, b, next);
      copy(item, p.inside(b, t) ? grad_row(item, t, b) : nullptr, grad[row]);
      if (copies && !is_gated(p.cell)) copy(item, values_row(item, t, b), values[row]);
      if (joins && p.ends(item.d, b, t)) add_grad_h_n(item, row, b, grad[row]);
    }
    Inputs in{grad, values};
    if constexpr (kNative<S>) {
      if (copies) return in;
      in.values = {values_row(item, t, item.b0), p.D * p.H};
      if (copies_grad) return in;
      in.grad = {grad_row(item, t, item.b0), p.D * p.H};
      // (The derivative of the identity reads no values: any rows will do.)
      if (p.nonlinearity == Nonlinearity::identity && !at.buffers.carries() && in.grad)
        in.values = in.grad;
      // The rows of the step before are in far memory, unless they are copied and thus in cache.
      if (next < 0) return in;
      in.grad_ahead = grad_row(item, next, item.b0);
      in.values_ahead = values_row(item, next, item.b0);
    }
    return in;
  }

  // Adds the rows that a leak, or gates, read besides these.
  void add_state_rows(StateRows<C>& state, const WorkItem& item, int64_t t, int64_t rows) const {
    const int saved = traits_of(p.cell).saved;
    const void** const before = at.states_before[worker];
    for (int64_t i = 0; before && i < rows; ++i)
      before[i] = state_before<S>(p, p.hx, p.reset_state, item.d, t, item.sequence(i));
    state.each_before = before;
    if (plan.sorts) {
      if (is_leaky(p.cell))
        state.output = gather(item, t, rows, p.output, at.kOutput, 1, at.step_stride);
      if (p.saved)
        state.saved = gather(item, t, rows, p.saved, at.kSaved, saved, at.saved_stride());
    } else {
      state.output = output_row<S>(p, p.output, item.d, t, item.b0);
      state.saved = p.saved ? saved_row<S>(p, item.d, t, item.b0) : nullptr;
    }
  }

 private:
  // Null: zeros.
  const S* grad_row(const WorkItem& item, int64_t t, int64_t b) const {
    const auto* const grad = static_cast<const S*>(g.grad_output);
    return grad ? grad + (p.row(t, b) * p.D + item.d) * p.H : nullptr;
  }
  // The results of f; of a GRU the states before the step, where the output has them, to prefetch.
  const S* values_row(const WorkItem& item, int64_t t, int64_t b) const {
    const int64_t earlier = p.before(item.d, t);
    if (p.cell == Cell::gru && earlier >= 0 && earlier < p.T) t = earlier;
    return output_row<S>(p, p.cell == Cell::rate ? p.saved : p.output, item.d, t, b);
  }
  template <class Body>
  void for_columns(const WorkItem& item, const Body& f) const {
    for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) f(j);
  }
  void copy(const WorkItem& item, const S* from, C* to) const {
    for_columns(item, [&](int64_t j) { store(to + j, load_state(from, j, p.H - j)); });
  }
  // Adds the gradients of the last states: past the output, if the state is kept beside it.
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
    for (const S* row : {grad_row(item, next, b), values_row(item, next, b)})
      for_columns(item, [&](int64_t j) {
        if (row) __builtin_prefetch(row + j);
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
