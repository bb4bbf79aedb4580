// The Autograd key of the recurrence's ops. The backward pass is an op of its own, on the kernels;
// what differentiates that runs in ATen operations (higher_order.h).
#include "ops/autograd.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <string_view>

#include "ops/ensemble.h"
#include "ops/forward_mode.h"
#include "ops/higher_order.h"
#include "ops/parse.h"
#include "ops/saved.h"
#include "ops/stack.h"

namespace rnnext {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node saved, or an error that says what to do where a result was changed in place.
static variable_list saved_variables(AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string_view text = error.what_without_backtrace();
    const auto says = [&](std::string_view part) { return text.find(part) != text.npos; };
    // It names nodes without "Backward".
    if (!says("inplace operation") || !(says(" of Recurrence,") || says(" of RecurrenceEnsemble,")))
      throw;
    TORCH_CHECK(
        false,
        "the output of an rnnext RNN was changed in place before backward(), which computes "
        "from it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (",
        text, ")");
  }
}

template <class Op>
constexpr bool kEnsemble = std::is_same_v<Op, EnsembleOp>;

// Whether the loop must run forward again to differentiate the backward pass.
template <class Arguments>
bool runs_again(const Arguments& a) {
  return !a.alpha.empty() || spread(a, [](const auto&... each) { return any_dual(each...); });
}

// The gradients of a call of the backward op, one a tensor.
static variable_list flattened(const RecurrenceGradients& g) {
  Flattener flat;
  spread_gradients(g, [&](const auto&... each) { (flat(each), ...); });
  return std::move(flat.tensors);
}

template <class Op>
struct ForwardFunction {
  static constexpr const char* name =
      kEnsemble<Op> ? "RecurrenceEnsembleBackward" : "RecurrenceBackward";
  static constexpr bool is_traceable = false;

  // whole: the arguments with their tangents, if they have any.
  static typename Op::Results forward(const RecurrenceArguments& a,
                                      const RecurrenceArguments& whole) {
    Flattener edges;
    spread(a, [&](const auto&... each) { (edges(each), ...); });
    const auto node = node_of<ForwardFunction>(edges.tensors);
    const bool reads_more = reads_saved(form_of(a), needs_grad(a.alpha));
    auto [output, h_n, saved] = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_forward<Op>(a, reads_more);
    }();
    RecurrenceArguments keep = whole;
    // Biases may change before the backward pass, as in torch, unless a loop must run again.
    if (!runs_again(whole)) keep.bias_ih = keep.bias_hh = {};
    Saver save;
    save(output);
    save(saved);
    spread(keep, [&](const auto&... each) { (save(each), ...); });
    save.values.emplace_back(static_cast<int64_t>(a.bias_ih.size()));
    node->ctx_.saved_data["values"] = std::move(save.values);
    record(node, {output, h_n}, std::move(save.tensors));
    return {std::move(output), std::move(h_n), {}};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    Tensor output;
    std::vector<Tensor> of_leak;
    KeptArguments s;
    Restorer restore{saved_variables(ctx), ctx->saved_data["values"].toListRef()};
    restore(output);
    restore(of_leak);
    spread(s, [&](auto&... each) { (restore(each), ...); });
    const size_t biases = restore.value->toInt();

    // Which gradients are wanted. Autograd numbers the tensors in the order of the arguments.
    size_t number = 0;
    const auto wanted = [&](size_t count) {
      bool any = false;
      for (; count > 0; --count) any |= ctx->needs_input_grad(number++);
      return any;
    };
    const size_t features = s.weight_ih.size(), D = s.weight_hh.size();
    const bool want_input = wanted(1), want_hx = wanted(1);
    const bool want_weights = wanted(features + D);
    const size_t first_bias = number;
    const bool want_bias = wanted(2 * biases);
    wanted(4);  // index, lengths, batch_sizes, reset
    const bool want_reset_state = wanted(1);
    const bool want_alpha = wanted(s.alpha.size());
    if (!grad[0].defined() && !grad[1].defined()) return variable_list(number);

    const size_t alphas = s.alpha.size();
    // The output was saved without its tangent.
    if (spread(s, [](const auto&... each) { return any_dual(each...); }))
      output = std::get<0>(call_forward<Op>(s));
    if (alphas == 0) s.bias_ih = s.bias_hh = {};
    const OptionalTensor grad_output = grad[0], grad_h_n = grad[1];
    const Recurrences::Mask mask{want_input, want_hx,          want_weights,
                                 want_bias,  want_reset_state, want_alpha};
    RecurrenceGradients results =
        call_backward<typename Op::Backward>({grad_output, grad_h_n, output, of_leak, mask}, s);
    const std::vector<Tensor>& bias = results.bias;

    KeptArguments grads;
    if (want_input) grads.input = results.input;
    if (want_hx) grads.hx = results.hx;
    if (want_reset_state) grads.reset_state = results.reset_state;
    grads.weight_ih = std::move(results.weight_ih);
    grads.weight_hh = std::move(results.weight_hh);
    grads.alpha = std::move(results.alpha);
    grads.weight_ih.resize(features);
    grads.weight_hh.resize(D);
    grads.alpha.resize(alphas);
    grads.bias_ih.resize(biases);
    grads.bias_hh.resize(biases);
    for (size_t d = 0; d < biases; ++d) {
      const bool want_ih = ctx->needs_input_grad(first_bias + d);
      const bool want_hh = ctx->needs_input_grad(first_bias + biases + d);
      if (want_ih) grads.bias_ih[d] = bias[d];
      // A tensor of its own, or work in place on one gradient would reach the other.
      if (want_hh) grads.bias_hh[d] = want_ih ? bias[d].clone() : bias[d];
    }
    Flattener flat;
    spread(grads, [&](const auto&... each) { (flat(each), ...); });
    return flat.tensors;
  }
};

// The backward op, differentiated: its gradients are ATen operations, through which autograd goes.
template <class Op>
struct BackwardFunction {
  static constexpr const char* name =
      kEnsemble<Op> ? "RecurrenceEnsembleBackwardBackward" : "RecurrenceBackwardBackward";
  static constexpr bool is_traceable = false;

  static RecurrenceGradients forward(const RecurrenceResults& r, const RecurrenceArguments& a) {
    Flattener edges;
    const auto each_of_both = [&](auto& f) {
      f(r.grad_output);
      f(r.grad_h_n);
      f(r.output);
      spread(a, [&](const auto&... each) { (f(each), ...); });
    };
    each_of_both(edges);
    const auto node = node_of<BackwardFunction>(edges.tensors);
    RecurrenceGradients gradients = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_backward<typename Op::Backward>(r, a);
    }();
    Saver save;
    each_of_both(save);
    c10::List<bool> mask;
    for (const bool wanted : r.output_mask) mask.push_back(wanted);
    save(mask);
    node->ctx_.saved_data["values"] = std::move(save.values);
    record(node, flattened(gradients), std::move(save.tensors));
    return gradients;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    OptionalTensor grad_output, grad_h_n;
    Tensor output;
    KeptArguments s;
    Restorer restore{ctx->get_saved_variables(), ctx->saved_data["values"].toListRef()};
    restore(grad_output);
    restore(grad_h_n);
    restore(output);
    spread(s, [&](auto&... each) { (restore(each), ...); });
    const c10::List<bool> mask = restore.value->toBoolList();
    Recurrences::Mask output_mask;
    std::copy(mask.begin(), mask.end(), output_mask.begin());

    const bool recorded = at::GradMode::is_enabled();
    const at::AutoGradMode enabled(true);
    Watched watched;
    std::vector<bool> is_watched;
    const auto own = [&](const Tensor& t) {
      is_watched.push_back(t.defined() && t.requires_grad());
      return is_watched.back() ? watched(t) : t;
    };
    if (given(grad_output)) grad_output = own(*grad_output);
    if (given(grad_h_n)) grad_h_n = own(*grad_h_n);
    output = own(output);
    s = with_each(std::move(s), own);
    const variable_list results =
        flattened(differentiable({grad_output, grad_h_n, output, {}, output_mask}, passed(s)));
    variable_list of, by;
    for (size_t i = 0; i < results.size(); ++i) {
      if (!cotangents[i].defined() || !results[i].requires_grad()) continue;
      of.push_back(results[i]);
      by.push_back(cotangents[i]);
    }
    variable_list grads(watched.tensors.size());
    if (!of.empty())
      grads = torch::autograd::grad(
          of, watched.tensors, by, /*retain_graph=*/true,
          recorded && (watched.recorded || torch::autograd::any_variable_requires_grad(by)),
          /*allow_unused=*/true);
    auto next = grads.begin();
    auto was_watched = is_watched.begin();
    const auto take = [&](const Tensor&) { return *was_watched++ ? *next++ : Tensor(); };
    Flattener flat;
    flat(given(grad_output) ? take(*grad_output) : Tensor());
    flat(given(grad_h_n) ? take(*grad_h_n) : Tensor());
    flat(take(output));
    s = with_each(std::move(s), take);
    if (given(s.batch_sizes)) s.batch_sizes = Tensor();
    spread(s, [&](const auto&... each) { (flat(each), ...); });
    return flat.tensors;
  }

 private:
  static RecurrenceGradients differentiable(const RecurrenceResults& r,
                                            const RecurrenceArguments& a) {
    if constexpr (kEnsemble<Op>) {
      return member_by_member(r, a, backward_loop);
    } else {
      return backward_loop(r, a);
    }
  }
};

namespace {

template <class Op>
typename Op::Results recurrence(const RecurrenceArguments& a, bool save) {
  const bool recorded = spread(a, [](const auto&... each) { return records(each...); });
  const bool dual = spread(a, [](const auto&... each) { return any_dual(each...); });
  if (!recorded && !dual) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<Op>(a, save);
  }
  const auto primal_call = [&](const RecurrenceArguments& of) -> typename Op::Results {
    if (recorded) return ForwardFunction<Op>::forward(of, a);
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<Op>(of);
  };
  if (!dual) return primal_call(a);
  if constexpr (kEnsemble<Op>) {
    return member_by_member(
        a, [](const RecurrenceArguments& one) { return call_forward<RecurrenceOp>(one); });
  } else {
    if (!a.alpha.empty()) return recurrence_loop(a);
    const KeptArguments primals = with_each(kept(a), primal);
    typename Op::Results results = primal_call(passed(primals));
    set_tangents(a, std::get<0>(results), std::get<1>(results));
    return results;
  }
}

template <class Op>
RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a) {
  const auto any = [&](const auto& of) {
    return spread(
        a, [&](const auto&... each) { return of(r.grad_output, r.grad_h_n, r.output, each...); });
  };
  if (any([](const auto&... each) { return any_dual(each...); })) {
    if constexpr (kEnsemble<Op>) {
      return member_by_member(r, a, call_backward<RecurrenceBackwardOp, RecurrenceArguments>);
    } else {
      return backward_loop(r, a);
    }
  }
  if (!any([](const auto&... each) { return records(each...); })) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward<typename Op::Backward>(r, a);
  }
  return BackwardFunction<Op>::forward(r, a);
}

// Layer by layer where a gradient is wanted.
RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save) {
  if (spread(a, [](const auto&... each) { return records(each...) || any_dual(each...); }))
    return layer_by_layer(a, save);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward<RecurrenceStackOp>(a, save);
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
