// The results of the recurrence's ops without data, for meta tensors and for tracing: arguments are
// checked as the kernels check them, and results are made by torch's ops, which a tracer sees.
#pragma once

#include "ops/check.h"
#include "ops/signatures.h"

namespace rnnext::fake {

// `batch`: how many sequences begin a packed batch, which no shape tells.
inline Sizes<c10::SymInt> sizes_of_call(const RecurrenceArguments& a, const c10::SymInt& batch) {
  Sizes<c10::SymInt> s;
  check_recurrence(a, s, [&](const char*) { return batch; });
  return s;
}

inline RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save,
                                        const c10::SymInt& batch) {
  const auto make = [&](const auto& shape) { return a.weight_hh[0].new_empty_symint(shape); };
  return sizes_of_call(a, batch).results(save, make);
}

inline RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save,
                                              const c10::SymInt& batch) {
  check_stack<c10::SymInt>(a, save);
  auto [output, h_n, _] = recurrence(layer_of(a, 0, a.input), save, batch);
  const c10::SymInt states[] = {h_n.sym_size(0) * static_cast<int64_t>(a.weight_hh.size()),
                                h_n.sym_size(1), h_n.sym_size(2)};
  if (given(a.hx)) check_like<c10::SymInt>(*a.hx, "hx", states, a.weight_hh[0]);
  return {output, h_n.new_empty_symint(states), {}};
}

inline RecurrenceGradients recurrence_backward(const BackwardInputs& r,
                                               const RecurrenceArguments& a, const Wanted& wanted,
                                               const c10::SymInt& batch) {
  const Sizes<c10::SymInt> s = sizes_of_call(a, batch);
  check_backward_inputs(r, a, s, wanted);
  const Tensor& like = a.weight_hh[0];
  const auto state = [&](bool wanted) {
    return wanted ? like.new_empty_symint(s.states_shape()) : Tensor();
  };
  const auto each = [&](TensorList list, bool wanted, int64_t dims) {
    std::vector<Tensor> gradients;
    for (const Tensor& t : list)
      if (wanted) gradients.push_back(like.new_empty_symint(t.sym_sizes().slice(0, dims)));
    return gradients;
  };
  return {.input = wanted.input ? like.new_empty_symint(a.input.sym_sizes()) : Tensor(),
          .hx = state(wanted.hx),
          .weight_ih = each(a.weight_ih, wanted.weight_ih, 2),
          .weight_hh = each(a.weight_hh, wanted.weight_hh, 2),
          .bias_ih = each(a.weight_hh, wanted.bias_ih, 1),
          .bias_hh = each(a.weight_hh, wanted.bias_hh, 1),
          .reset_state = state(wanted.reset_state && given(a.reset)),
          .alpha = each(a.alpha, wanted.alpha, 1)};
}

// The first member's part of an ensemble's arguments or results.
template <class Struct>
typename Struct::AsKept first_of(const Struct& whole, const c10::SymInt& M) {
  return with_each(kept(whole), [&](const Tensor& t) {
    check_member(t, M);
    return t.select(0, 0);
  });
}
// The results of M members if `one` is the first one's.
template <class Struct>
Struct of_members(Struct one, const c10::SymInt& M) {
  return with_each(std::move(one), [&](const Tensor& t) {
    if (!t.defined()) return t;
    c10::SmallVector<c10::SymInt, 5> shape(t.sym_sizes().begin(), t.sym_sizes().end());
    shape.insert(shape.begin(), M);
    return t.new_empty_symint(shape);
  });
}

inline RecurrenceOp::Results recurrence_ensemble(const RecurrenceArguments& a, bool save,
                                                 const c10::SymInt& batch) {
  const auto M = check_members<c10::SymInt>(a);
  return of_members(recurrence(first_of(a, M), save, batch), M);
}
inline RecurrenceGradients recurrence_ensemble_backward(const BackwardInputs& r,
                                                        const RecurrenceArguments& a,
                                                        const Wanted& wanted,
                                                        const c10::SymInt& batch) {
  const auto M = check_members<c10::SymInt>(a);
  return of_members(recurrence_backward(first_of(r, M), first_of(a, M), wanted, batch), M);
}

}  // namespace rnnext::fake
