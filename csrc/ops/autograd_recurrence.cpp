// The Autograd key of the recurrence's ops. The backward pass is an op of its own, on the kernels;
// what differentiates that runs in ATen operations (derivatives.cpp).
#include "ops/autograd.h"

#include <ATen/ops/stack.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/ensemble.h"
#include "ops/signatures.h"

namespace rnnext {

// The tensors that a node saved; if a result was changed in place, an error that says what to do.
static variable_list saved_variables(AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string_view text = error.what_without_backtrace();
    const auto says = [&](std::string_view part) { return text.find(part) != text.npos; };
    if (!says("inplace operation") || !says(" of Recurrence")) throw;
    TORCH_CHECK(
        false,
        "the output of an rnnext layer was changed in place before backward(), which computes "
        "from it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (",
        text, ")");
  }
}

std::vector<Tensor> gradients_of(const std::vector<Tensor>& results,
                                 const std::vector<Tensor>& cotangents, const Watched& watched,
                                 bool enabled) {
  variable_list of, by;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!cotangents[i].defined() || !results[i].defined() || !results[i].requires_grad()) continue;
    of.push_back(results[i]);
    by.push_back(cotangents[i]);
  }
  if (of.empty() || watched.tensors.empty()) return variable_list(watched.tensors.size());
  const bool recorded =
      enabled && (watched.recorded || torch::autograd::any_variable_requires_grad(by));
  // (Modes written in Python call kernels with its lock held, with which the engine does not run.)
  std::optional<pybind11::gil_scoped_release> no_gil;
  if (PyGILState_Check()) no_gil.emplace();
  return torch::autograd::grad(of, watched.tensors, by, /*retain_graph=*/true, recorded,
                               /*allow_unused=*/true);
}

template <class Op>
constexpr bool kEnsemble = std::is_same_v<Op, EnsembleOp>;

template <class Op>
struct ForwardFunction {
  static constexpr const char* name =
      kEnsemble<Op> ? "RecurrenceEnsembleBackward" : "RecurrenceBackward";
  static constexpr bool is_traceable = false;

  // `whole` has the arguments with their tangents, if they have any. `save`: the caller, an inner
  // transform of torch.func, wants `saved` for its backward pass; no gradient goes through that.
  static typename Op::Results forward(const RecurrenceArguments& a,
                                      const RecurrenceArguments& whole, bool save) {
    const auto node = node_of<ForwardFunction>(flattened(a));
    const bool more = reads_saved(parse_cell(a.cell), std::ranges::any_of(a.alpha, needs_grad));
    auto [output, h_n, saved] = below_autograd([&] { return call_forward<Op>(a, save || more); });
    // Biases may be changed before the backward pass, as in torch, unless a loop must run again.
    RecurrenceArguments keep = whole;
    const std::vector<Tensor> unread(a.bias_ih.size());
    if (parse_cell(a.cell) == Cell::elman && !any_dual(whole)) keep.bias_ih = keep.bias_hh = unread;
    const BackwardInputs results{.output = output, .saved = saved};
    node->ctx_.saved_data["values"] = values_of(results, keep);
    record(node, {output, h_n}, flattened(results, keep));
    if (!save) saved.clear();
    return {std::move(output), std::move(h_n), std::move(saved)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    KeptBackwardInputs r;
    KeptArguments s;
    restore(saved_variables(ctx), ctx->saved_data["values"].toList(), r, s);
    Arguments<Slots> slots;
    size_t number = 0;  // of the next tensor, as autograd counts
    const auto ask = [&](const auto& field, Slot& slot) {
      slot.first = number;
      for (size_t n = slots_of(field); n > 0; --n) slot.needed |= ctx->needs_input_grad(number++);
    };
    zip(ask, s, slots);
    if (!grad[0].defined() && !grad[1].defined()) return variable_list(number);
    r.grad_output = grad[0];
    r.grad_h_n = grad[1];
    // The output was saved without its tangent.
    if (any_dual(s)) r.output = std::get<0>(call_forward<Op>(s));
    if (parse_cell(s.cell) == Cell::elman) s.bias_ih = s.bias_hh = {};  // they are not read
    Wanted wanted;
    each_gradient([](const Slot& slot, bool& want) { want = slot.needed; }, slots, wanted);
    RecurrenceGradients g = call_backward<typename Op::Backward>(r, s, wanted);

    variable_list grads(number);
    const auto put = [&](const Slot& slot, bool want, auto& gradient) {
      if (want) std::ranges::copy(tensors_of(gradient), grads.begin() + slot.first);
    };
    each_gradient(put, slots, wanted, g);
    return grads;
  }

 private:
  // The number of an argument's first tensor, and whether one of its tensors needs a gradient.
  struct Slot {
    size_t first = 0;
    bool needed = false;
  };
  template <class>
  using Slots = Slot;
};

// The derivative of the backward op: autograd's, of ATen operations that compute the op again.
struct BackwardFunction {
  static constexpr const char* name = "RecurrenceBackwardBackward";
  static constexpr bool is_traceable = false;

  static RecurrenceGradients forward(BackwardInputs r, const RecurrenceArguments& a,
                                     const Wanted& wanted) {
    const BackwardInputs whole = r;
    r.saved = {};  // it has no gradient
    const auto node = node_of<BackwardFunction>(flattened(r, a));
    RecurrenceGradients gradients =
        below_autograd([&] { return call_backward<RecurrenceBackwardOp>(whole, a, wanted); });
    node->ctx_.saved_data["values"] = values_of(r, a, wanted);
    record(node, flattened(gradients), flattened(r, a));
    return gradients;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    variable_list tensors = ctx->get_saved_variables();
    const bool recorded = at::GradMode::is_enabled();
    const at::AutoGradMode enabled(true);
    Watched watched;
    std::vector<size_t> places;  // of the watched tensors
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].defined() || !tensors[i].requires_grad()) continue;
      tensors[i] = watched(tensors[i]);
      places.push_back(i);
    }
    KeptBackwardInputs r;
    KeptArguments s;
    Wanted wanted;
    restore(tensors, ctx->saved_data["values"].toList(), r, s, wanted);
    const variable_list results = flattened(backward_loop(r, s, wanted));
    const variable_list found = gradients_of(results, cotangents, watched, recorded);
    variable_list grads(tensors.size());
    for (size_t i = 0; i < places.size(); ++i) grads[places[i]] = found[i];
    return grads;
  }
};

RecurrenceOp::Results layer_by_layer(const RecurrenceArguments& a, bool save) {
  check_stack<c10::SymInt>(a, save);
  const auto L = static_cast<int64_t>(a.weight_hh.size());
  OptionalTensor first = a.hx;
  if (given(a.hx)) {
    // (Each layer's call checks the number of sequences where these are packed.)
    const c10::SymInt states[] = {traits_of(parse_cell(a.cell)).states * L,
                                  (given(a.batch_sizes) ? *a.hx : a.input).sym_size(-2),
                                  a.weight_hh[0].sym_size(1)};
    check_like<c10::SymInt>(*a.hx, "hx", states, a.weight_hh[0]);
    first = a.hx->unflatten(0, {-1, L});
  }
  Tensor x = a.input;
  std::vector<Tensor> h_n;
  for (int64_t l = 0; l < L; ++l) {
    const OptionalTensor hx = given(first) ? OptionalTensor(first->select(1, l)) : first;
    auto [output, h, saved] = call_forward<RecurrenceOp>(layer_of(a, l, x, hx));
    x = std::move(output);
    h_n.push_back(std::move(h));
  }
  return {x, at::stack(h_n, 1).flatten(0, 1), {}};
}

namespace {

template <class Op>
typename Op::Results recurrence(const RecurrenceArguments& a, bool save) {
  const bool recorded = any_recorded(a), dual = any_dual(a);
  const auto primal_call = [&](const RecurrenceArguments& of) -> typename Op::Results {
    return recorded ? ForwardFunction<Op>::forward(of, a, save)
                    : below_autograd([&] { return call_forward<Op>(of, save); });
  };
  if (!dual) return primal_call(a);
  if constexpr (kEnsemble<Op>) {
    return ensemble_in_turn(a, save);
  } else {
    // The results are the kernels', and their tangents those of the loop's results.
    typename Op::Results results = primal_call(with_each(kept(a), primal));
    const typename Op::Results by_loop = recurrence_loop(a);
    set_tangent(std::get<0>(results), tangent(std::get<0>(by_loop)));
    set_tangent(std::get<1>(results), tangent(std::get<1>(by_loop)));
    return results;
  }
}

template <class Op>
RecurrenceGradients recurrence_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  const bool dual = any_dual(r, a);
  if (!dual && !any_recorded(r, a))
    return below_autograd([&] { return call_backward<typename Op::Backward>(r, a, wanted); });
  if constexpr (kEnsemble<Op>) return ensemble_backward_in_turn(r, a, wanted);
  if (!dual) return BackwardFunction::forward(r, a, wanted);
  check_backward(r, a, wanted);
  return backward_loop(r, a, wanted);
}

// A stack runs layer by layer where a gradient is wanted.
RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save) {
  if (any_recorded(a) || any_dual(a)) return layer_by_layer(a, save);
  return below_autograd([&] { return call_forward<RecurrenceStackOp>(a, save); });
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("recurrence", Recurrences::forward<recurrence<RecurrenceOp>>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward<RecurrenceOp>>);
  m.impl("recurrence_ensemble", Recurrences::forward<recurrence<EnsembleOp>>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<recurrence_backward<EnsembleOp>>);
  m.impl("recurrence_stack", Recurrences::forward<recurrence_stack>);
}

}  // namespace rnnext
