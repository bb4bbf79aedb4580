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

// The two Functions are named by torch's errors and by its profiler; hence neither they nor what
// they are made of is in an anonymous namespace.

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node saved, or an error that says what to do where a result was changed in place.
static variable_list saved_variables(AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string_view text = error.what_without_backtrace();
    const auto says = [&](std::string_view part) { return text.find(part) != text.npos; };
    if (!says("inplace operation") ||
        !(says("RecurrenceFunction") || says("RecurrenceEnsembleFunction")))
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
  flat(g.input);
  flat(g.hx);
  for (const auto* list : {&g.weight_ih, &g.weight_hh, &g.bias}) flat(*list);
  flat(g.reset_state);
  flat(g.alpha);
  return std::move(flat.tensors);
}
// And from these again, the lists as long as those of `like`.
static RecurrenceGradients unflattened(const variable_list& flat, const RecurrenceGradients& like) {
  RecurrenceGradients g;
  auto next = flat.begin();
  const auto take_list = [&](std::vector<Tensor>& list, const std::vector<Tensor>& as) {
    list.assign(next, next + static_cast<int64_t>(as.size()));
    next += static_cast<int64_t>(as.size());
  };
  g.input = *next++;
  g.hx = *next++;
  take_list(g.weight_ih, like.weight_ih);
  take_list(g.weight_hh, like.weight_hh);
  take_list(g.bias, like.bias);
  g.reset_state = *next++;
  take_list(g.alpha, like.alpha);
  return g;
}

template <class Self, class Op>
class ForwardFunction : public torch::autograd::Function<Self> {
 public:
  // whole: the arguments with their tangents, if they have any.
  template <class... T>
  static variable_list forward(AutogradContext* ctx, Transforms* transforms,
                               const RecurrenceArguments* whole, const T&... arguments) {
    transforms->show();
    const at::AutoGradMode recorded_outside(true);
    at::AutoDispatchBelowADInplaceOrView guard;
    const RecurrenceArguments a{arguments...};
    const bool reads_more =
        !a.alpha.empty() && (saves_more(parse_form(a.form)) || needs_grad(a.alpha));
    auto [output, h_n, saved] = call_forward<Op>(a, reads_more);
    ctx->set_materialize_grads(false);
    RecurrenceArguments keep = *whole;
    // Biases may change before the backward pass, as in torch, unless a loop must run again.
    if (!runs_again(*whole)) keep.bias_ih = keep.bias_hh = {};
    Saver save;
    save(output);
    save(saved);
    spread(keep, [&](const auto&... each) { (save(each), ...); });
    save.values.emplace_back(static_cast<int64_t>(a.bias_ih.size()));
    ctx->save_for_backward(std::move(save.tensors));
    ctx->saved_data["values"] = std::move(save.values);
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list saved = saved_variables(ctx);
    const std::vector<c10::IValue> values = ctx->saved_data["values"].toListRef().vec();
    Tensor output;
    std::vector<Tensor> of_leak;
    KeptArguments s;
    Restorer restore{saved.begin(), values.data()};
    restore(output);
    restore(of_leak);
    spread(s, [&](auto&... each) { (restore(each), ...); });
    const size_t biases = restore.value->toInt();

    // Which gradients are wanted. Autograd numbers the tensors in the order of the arguments; those
    // that were not given have no number.
    size_t number = 0;
    const auto wanted = [&](size_t count) {
      bool any = false;
      for (; count > 0; --count) any |= ctx->needs_input_grad(number++);
      return any;
    };
    const size_t features = s.weight_ih.size(), D = s.weight_hh.size();
    const bool want_input = wanted(1), want_hx = given(s.hx) && wanted(1);
    const bool want_weights = wanted(features + D);
    const size_t first_bias = number;
    const bool want_bias = wanted(2 * biases);
    wanted(given(s.index) + given(s.lengths) + given(s.batch_sizes) + given(s.reset));
    const bool want_reset_state = given(s.reset_state) && wanted(1);
    const bool want_alpha = wanted(s.alpha.size());

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
    flat.tensors.resize(2);  // transforms, whole
    spread(grads, [&](const auto&... each) { (flat(each), ...); });
    return flat.tensors;
  }
};

class RecurrenceFunction : public ForwardFunction<RecurrenceFunction, RecurrenceOp> {};
class RecurrenceEnsembleFunction : public ForwardFunction<RecurrenceEnsembleFunction, EnsembleOp> {
};

// The backward op, differentiated: its gradients are ATen operations, through which autograd goes.
template <class Self, class Op>
class BackwardFunction : public torch::autograd::Function<Self> {
 public:
  template <class... T>
  static variable_list forward(AutogradContext* ctx, Transforms* transforms,
                               const RecurrenceResults* results, RecurrenceGradients* gradients,
                               const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const Tensor& output, const T&... arguments) {
    transforms->show();
    const at::AutoGradMode recorded_outside(true);
    at::AutoDispatchBelowADInplaceOrView guard;
    const RecurrenceArguments a{arguments...};
    *gradients = call_backward<typename Op::Backward>(*results, a);
    ctx->set_materialize_grads(false);
    Saver save;
    save(grad_output);
    save(grad_h_n);
    save(output);
    spread(a, [&](const auto&... each) { (save(each), ...); });
    c10::List<bool> mask;
    for (const bool wanted : results->output_mask) mask.push_back(wanted);
    save(mask);
    ctx->save_for_backward(std::move(save.tensors));
    ctx->saved_data["values"] = std::move(save.values);
    return flattened(*gradients);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& cotangents) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<c10::IValue> values = ctx->saved_data["values"].toListRef().vec();
    OptionalTensor grad_output, grad_h_n;
    Tensor output;
    KeptArguments s;
    Restorer restore{saved.begin(), values.data()};
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
    flat.tensors.resize(3);  // transforms, results, gradients
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

class RecurrenceBackwardFunction
    : public BackwardFunction<RecurrenceBackwardFunction, RecurrenceOp> {};
class RecurrenceEnsembleBackwardFunction
    : public BackwardFunction<RecurrenceEnsembleBackwardFunction, EnsembleOp> {};

namespace {

template <class Op>
typename Op::Results recurrence(const RecurrenceArguments& a, bool save) {
  const bool recorded = spread(a, [](const auto&... each) { return records(each...); });
  const bool dual = spread(a, [](const auto&... each) { return any_dual(each...); });
  if (!recorded && !dual) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<Op>(a, save);
  }
  using Function =
      std::conditional_t<kEnsemble<Op>, RecurrenceEnsembleFunction, RecurrenceFunction>;
  const auto primal_call = [&](const RecurrenceArguments& of) -> typename Op::Results {
    if (!recorded) {
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_forward<Op>(of);
    }
    const variable_list out =
        spread(of, [&](const auto&... each) { return record<Function>(&a, each...); });
    return {out[0], out[1], {}};
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
  using Function = std::conditional_t<kEnsemble<Op>, RecurrenceEnsembleBackwardFunction,
                                      RecurrenceBackwardFunction>;
  RecurrenceGradients gradients;
  const RecurrenceResults* results = &r;
  const variable_list flat = spread(a, [&](const auto&... each) {
    return record<Function>(results, &gradients, r.grad_output, r.grad_h_n, r.output, each...);
  });
  return unflattened(flat, gradients);
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
