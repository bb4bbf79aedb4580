// The Autograd key of the recurrence's ops. First order runs on the backward op; when the backward
// pass itself is recorded (create_graph=True) it is ATen operations (higher_order.h).
#include "ops/autograd.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string_view>

#include "ops/higher_order.h"
#include "ops/parse.h"

namespace rnnext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Puts the arguments that the backward pass needs into an autograd node, and takes them out.
struct Saver {
  variable_list tensors;
  c10::impl::GenericList values{c10::AnyType::get()};  // which compiled autograd can look into

  Saver() {
    tensors.reserve(12);
    values.reserve(8);
  }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(TensorList list) {
    values.emplace_back(static_cast<int64_t>(list.size()));
    tensors.insert(tensors.end(), list.begin(), list.end());
  }
  void operator()(const std::vector<Tensor>& list) { (*this)(TensorList(list)); }
  void operator()(std::string_view text) { values.emplace_back(std::string(text)); }
  void operator()(const c10::List<bool>& list) { values.emplace_back(list); }
};
struct Restorer {
  variable_list::const_iterator tensor;
  const c10::IValue* value;

  void operator()(Tensor& t) { t = *tensor++; }
  void operator()(OptionalTensor& t) { t = *tensor++; }
  void operator()(std::vector<Tensor>& list) {
    const int64_t n = (value++)->toInt();
    list.assign(tensor, tensor + n);
    tensor += n;
  }
  void operator()(std::string& text) { text = (value++)->toStringRef(); }
  void operator()(c10::List<bool>& list) { list = (value++)->toBoolList(); }
};

// What a node saved, or an error that says what to do where a result was changed in place.
variable_list saved_variables(AutogradContext* ctx) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string_view text = error.what_without_backtrace();
    if (text.find("inplace operation") == text.npos || text.find("RecurrenceFunction") == text.npos)
      throw;
    TORCH_CHECK(
        false,
        "the output of an rnnext RNN was changed in place before backward(), which computes "
        "from it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (",
        text, ")");
  }
}

// Gradients of the arguments, one a tensor, as autograd numbers them.
struct Flattener {
  variable_list tensors;

  Flattener() { tensors.reserve(16); }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(const std::vector<Tensor>& list) {
    tensors.insert(tensors.end(), list.begin(), list.end());
  }
  void operator()(const std::string&) { tensors.emplace_back(); }
  void operator()(const c10::List<bool>&) { tensors.emplace_back(); }
};

}  // namespace

// Named by torch's errors and by its profiler, hence in no anonymous namespace.
class RecurrenceFunction : public torch::autograd::Function<RecurrenceFunction> {
 public:
  template <class... T>
  static variable_list forward(AutogradContext* ctx, const T&... arguments) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const RecurrenceArguments a{arguments...};
    const bool reads_more =
        !a.alpha.empty() && (saves_more(parse_form(a.form)) || needs_grad(a.alpha));
    auto [output, h_n, saved] = call_forward<RecurrenceOp>(a, reads_more);
    ctx->set_materialize_grads(false);
    RecurrenceArguments kept = a;
    // Biases may change before the backward pass, as in torch, unless a loop must run again.
    if (!loops(a)) kept.bias_ih = kept.bias_hh = {};
    Saver save;
    save(output);
    save(saved);
    spread(kept, [&](const auto&... each) { (save(each), ...); });
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

    RecurrenceGradients results;
    const size_t alphas = s.alpha.size();
    if (at::GradMode::is_enabled()) {
      results = loops(s) ? gradients_of_loop(std::move(s), grad[0], grad[1])
                         : differentiable_backward(std::move(s), output, grad[0], grad[1]);
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;  // past torch's boxed fallback for autograd
      s.bias_ih = s.bias_hh = {};
      const Recurrences::Mask mask{want_input, want_hx,          want_weights,
                                   want_bias,  want_reset_state, want_alpha};
      spread(s, [&](const auto&... each) {
        auto [input, hx, weight_ih, weight_hh, bias, reset_state, alpha] =
            call_op<RecurrenceBackwardOp>(OptionalTensor(grad[0]), OptionalTensor(grad[1]), output,
                                          TensorList(of_leak), each..., mask);
        results = {input,           hx,          std::move(weight_ih), std::move(weight_hh),
                   std::move(bias), reset_state, std::move(alpha)};
      });
    }
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

namespace {

RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save) {
  if (!spread(a, [](const auto&... each) { return records(each...); })) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward<RecurrenceOp>(a, save);
  }
  const variable_list out =
      spread(a, [](const auto&... each) { return RecurrenceFunction::apply(each...); });
  return {out[0], out[1], {}};
}

RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save) {
  TORCH_CHECK_NOT_IMPLEMENTED(!spread(a, [](const auto&... each) { return records(each...); }),
                              "recurrence_stack has no gradient: call recurrence for each layer");
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward<RecurrenceStackOp>(a, save);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("recurrence", Recurrences::forward<recurrence>);
  m.impl("recurrence_stack", Recurrences::forward<recurrence_stack>);
}

}  // namespace rnnext
