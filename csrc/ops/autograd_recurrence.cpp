// The Autograd key of the recurrence's ops. The backward pass is an op of its own, on the kernels;
// what differentiates that runs in ATen operations (derivatives.cpp).
#include "ops/autograd.h"

#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <string_view>

#include "ops/cell.h"
#include "ops/check.h"
#include "ops/ensemble.h"
#include "ops/signatures.h"

namespace rnnext {

using torch::autograd::AutogradContext;

// What a node saved, or an error that says what to do where a result was changed in place.
static variable_list saved_variables(AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string_view text = error.what_without_backtrace();
    const auto says = [&](std::string_view part) { return text.find(part) != text.npos; };
    if (!says("inplace operation") || !says(" of Recurrence")) throw;
    TORCH_CHECK(
        false,
        "the output of an rnnext RNN was changed in place before backward(), which computes "
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
  return torch::autograd::grad(of, watched.tensors, by, /*retain_graph=*/true, recorded,
                               /*allow_unused=*/true);
}

template <class Op>
constexpr bool kEnsemble = std::is_same_v<Op, EnsembleOp>;

// Whether the derivative of the backward pass needs a loop that runs forward again.
template <class Arguments>
bool runs_again(const Arguments& a) {
  return !a.alpha.empty() || any_dual(a);
}

template <class Op>
struct ForwardFunction {
  static constexpr const char* name =
      kEnsemble<Op> ? "RecurrenceEnsembleBackward" : "RecurrenceBackward";
  static constexpr bool is_traceable = false;

  // `whole` has the arguments with their tangents, if they have any. `save` says that the caller,
  // an inner transform of torch.func, wants what it will read in its own backward pass; no gradient
  // goes through that.
  static typename Op::Results forward(const RecurrenceArguments& a,
                                      const RecurrenceArguments& whole, bool save) {
    const auto node = node_of<ForwardFunction>(flattened(a));
    const bool reads_more = reads_saved(cell_of(a), std::ranges::any_of(a.alpha, needs_grad));
    auto [output, h_n, saved] = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_forward<Op>(a, save || reads_more);
    }();
    // Biases may change before the backward pass, as in torch, unless a loop must run again.
    RecurrenceArguments keep = whole;
    const std::vector<Tensor> unread(a.bias_ih.size());
    if (!runs_again(whole)) keep.bias_ih = keep.bias_hh = unread;
    const RecurrenceResults results{.output = output, .saved = saved};
    node->ctx_.saved_data["values"] = values_of(results, keep);
    record(node, {output, h_n}, flattened(results, keep));
    if (!save) saved.clear();
    return {std::move(output), std::move(h_n), std::move(saved)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    KeptResults r;
    KeptArguments s;
    restore(saved_variables(ctx), ctx->saved_data["values"].toList(), r, s);
    Arguments<Slots> slots;
    size_t number = 0;  // autograd's of a tensor
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
    if (s.alpha.empty()) s.bias_ih = s.bias_hh = {};  // they are not read
    Wanted wanted;
    each_gradient([](const Slot& slot, bool& want) { want = slot.needed; }, slots, wanted);
    wanted.bias |= slots.bias_hh.needed;
    RecurrenceGradients g = call_backward<typename Op::Backward>(r, s, wanted);

    variable_list grads(number);
    const auto put = [&](const Slot& slot, bool want, auto& gradient) {
      if (want) std::ranges::copy(tensors_of(gradient), grads.begin() + slot.first);
    };
    each_gradient(put, slots, wanted, g);
    // A tensor of its own, or work in place on one gradient would reach the other.
    if (slots.bias_ih.needed && slots.bias_hh.needed)
      for (Tensor& bias : g.bias) bias = bias.clone();
    if (wanted.bias) std::ranges::copy(g.bias, grads.begin() + slots.bias_hh.first);
    return grads;
  }

 private:
  // The numbers of an argument's tensors begin with the first; whether one needs a gradient.
  struct Slot {
    size_t first = 0;
    bool needed = false;
  };
  template <class>
  using Slots = Slot;
};

// The derivative of the backward op: it is computed again in ATen operations, and autograd goes
// through these.
struct BackwardFunction {
  static constexpr const char* name = "RecurrenceBackwardBackward";
  static constexpr bool is_traceable = false;

  static RecurrenceGradients forward(RecurrenceResults r, const RecurrenceArguments& a,
                                     const Wanted& wanted) {
    const RecurrenceResults whole = r;
    r.saved = {};  // which has no gradient
    const auto node = node_of<BackwardFunction>(flattened(r, a));
    RecurrenceGradients gradients = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_backward<RecurrenceBackwardOp>(whole, a, wanted);
    }();
    node->ctx_.saved_data["values"] = values_of(r, a, wanted);
    record(node, flattened(gradients), flattened(r, a));
    return gradients;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    variable_list tensors = ctx->get_saved_variables();
    const bool recorded = at::GradMode::is_enabled();
    const at::AutoGradMode enabled(true);
    Watched watched;
    std::vector<size_t> places;  // of what is watched
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i].defined() || !tensors[i].requires_grad()) continue;
      tensors[i] = watched(tensors[i]);
      places.push_back(i);
    }
    KeptResults r;
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
  TORCH_CHECK(!save, "recurrence_stack saves nothing: it has no backward op");
  Tensor x = a.input;
  std::vector<Tensor> h_n;
  for (size_t l = 0; l < a.weight_hh.size(); ++l) {
    const OptionalTensor hx =
        given(a.hx) ? OptionalTensor(a.hx->narrow(0, static_cast<int64_t>(l), 1)) : std::nullopt;
    auto [output, h, saved] = call_forward<RecurrenceOp>(layer_of(a, l, x, hx));
    x = std::move(output);
    h_n.push_back(std::move(h));
  }
  return {x, at::cat(h_n), {}};
}

namespace {

template <class Op>
typename Op::Results recurrence(const RecurrenceArguments& a, bool save) {
  const bool recorded = any_recorded(a), dual = any_dual(a);
  if (!recorded && !dual) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<Op>(a, save);
  }
  const auto primal_call = [&](const RecurrenceArguments& of) -> typename Op::Results {
    if (recorded) return ForwardFunction<Op>::forward(of, a, save);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<Op>(of, save);
  };
  if (!dual) return primal_call(a);
  if constexpr (kEnsemble<Op>) {
    return ensemble_in_turn(a, save);
  } else {
    // The results are the kernels', and their tangents those of the loop's results.
    const KeptArguments primals = with_each(kept(a), primal);
    typename Op::Results results = primal_call(primals);
    const typename Op::Results by_loop = recurrence_loop(a);
    set_tangent(std::get<0>(results), tangent(std::get<0>(by_loop)));
    set_tangent(std::get<1>(results), tangent(std::get<1>(by_loop)));
    return results;
  }
}

template <class Op>
RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  const bool dual = any_dual(r, a);
  if (!dual && !any_recorded(r, a)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward<typename Op::Backward>(r, a, wanted);
  }
  if constexpr (kEnsemble<Op>) return ensemble_backward_in_turn(r, a, wanted);
  return dual ? backward_loop(r, a, wanted) : BackwardFunction::forward(r, a, wanted);
}

// A stack runs layer by layer where a gradient is wanted.
RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save) {
  if (any_recorded(a) || any_dual(a)) return layer_by_layer(a, save);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward<RecurrenceStackOp>(a, save);
}

// One step as nn.RNNCell. It is one node of autograd: nodes for the views around the step would
// cost more than the step. Its backward pass is the recurrence's.
struct CellFunction {
  static constexpr const char* name = "RnnCellBackward";
  static constexpr bool is_traceable = false;

  static Tensor forward(const CellArguments& a) {
    const auto node = node_of<CellFunction>(flattened(a));
    Tensor output, h;
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      auto results = call_forward<RecurrenceOp>(CellStep(a).arguments());
      output = std::move(std::get<0>(results));
      h = from_step(std::get<1>(results), a.input);
    }
    node->ctx_.saved_data["nonlinearity"] = std::string(a.nonlinearity);
    // The output is kept rather than h, which may be changed in place before the backward pass:
    // nobody else has it. The biases are not read.
    record(node, {h, output}, {a.input, a.hx.value_or(Tensor()), a.weight_ih, a.weight_hh, output});
    return h;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    if (!grad[0].defined() && !grad[1].defined()) return variable_list(6);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& input = saved[0];
    const auto needs = [&](size_t i) { return ctx->needs_input_grad(i); };
    const Wanted wanted{.input = needs(0),
                        .hx = needs(1),
                        .weight_ih = needs(2),
                        .weight_hh = needs(3),
                        .bias = needs(4) || needs(5)};
    const OptionalTensor hx = saved[1];
    const OptionalTensor grad_output = grad[1], grad_h = grad[0], grad_h_n = as_step(grad_h);
    const CellArguments a{.input = input,
                          .hx = hx,
                          .weight_ih = saved[2],
                          .weight_hh = saved[3],
                          .nonlinearity = ctx->saved_data["nonlinearity"].toStringRef()};
    const CellStep step(a);
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(
        RecurrenceResults{.grad_output = grad_output, .grad_h_n = grad_h_n, .output = saved[4]},
        step.arguments(), wanted);
    variable_list grads(6);
    if (wanted.input) grads[0] = from_step(g.input, input);
    if (wanted.hx) grads[1] = from_step(g.hx, input);
    if (wanted.weight_ih) grads[2] = g.weight_ih[0];
    if (wanted.weight_hh) grads[3] = g.weight_hh[0];
    if (needs(4)) grads[4] = g.bias[0];
    if (needs(5)) grads[5] = needs(4) ? g.bias[0].clone() : g.bias[0];
    return grads;
  }
};

Tensor cell(const CellArguments& a) {
  if (any_dual(a)) return rnn_cell(a);
  if (any_recorded(a)) return CellFunction::forward(a);
  at::AutoDispatchBelowADInplaceOrView guard;
  return rnn_cell(a);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("recurrence", Recurrences::forward<recurrence<RecurrenceOp>>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward<RecurrenceOp>>);
  m.impl("recurrence_ensemble", Recurrences::forward<recurrence<EnsembleOp>>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<recurrence_backward<EnsembleOp>>);
  m.impl("recurrence_stack", Recurrences::forward<recurrence_stack>);
}
// Not Autograd: the composite op has a kernel for that, and these come before it.
TORCH_LIBRARY_IMPL(rnnext, AutogradCPU, m) { m.impl("rnn_cell", RnnCellOp::call<cell>); }
TORCH_LIBRARY_IMPL(rnnext, AutogradCUDA, m) { m.impl("rnn_cell", RnnCellOp::call<cell>); }

}  // namespace rnnext
