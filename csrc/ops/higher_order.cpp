#include "ops/higher_order.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <utility>
#include <vector>

#include "ops/parse.h"

namespace rnnext {
namespace {

using torch::autograd::variable_list;

// The derivative of a nonlinearity as a function of its output h.
template <Nonlinearity>
Tensor derivative(const Tensor& h) = delete;
template <>
Tensor derivative<Nonlinearity::tanh>(const Tensor& h) {
  return 1 - h * h;
}
template <>
Tensor derivative<Nonlinearity::relu>(const Tensor& h) {
  return (h > 0).to(h.scalar_type());
}
template <>
Tensor derivative<Nonlinearity::sigmoid>(const Tensor& h) {
  return h * (1 - h);
}
template <>
Tensor derivative<Nonlinearity::softplus>(const Tensor& h) {
  return at::where(h > 20, 1, -at::expm1(-h));  // torch's threshold: the identity from there on
}
template <>
Tensor derivative<Nonlinearity::identity>(const Tensor& h) {
  return at::ones_like(h);
}

// Between the rows of a packed sequence [N, ...] and [T, B, ...] with zeros where there is no row.
struct Padding {
  Tensor position;  // [N]: t * B + b of each row
  int64_t T = 0, B = 0;

  explicit Padding(const Tensor& batch_sizes, at::Device device) {
    const Tensor sizes = batch_sizes.contiguous();
    const int64_t* n = sizes.const_data_ptr<int64_t>();
    T = sizes.numel();
    B = T > 0 ? n[0] : 0;
    std::vector<int64_t> at;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < n[t]; ++b) at.push_back(t * B + b);
    position = at::tensor(at, at::kLong).to(device);
  }
  Tensor add(const Tensor& rows) const {
    std::vector<int64_t> shape = rows.sizes().vec();
    shape[0] = T * B;
    const Tensor flat = at::zeros(shape, rows.options()).index_copy(0, position, rows);
    shape[0] = B;
    shape.insert(shape.begin(), T);
    return flat.view(shape);
  }
  Tensor drop(const Tensor& padded) const { return padded.flatten(0, 1).index_select(0, position); }
  Tensor lengths() const { return add(at::ones_like(position)).sum(0); }
};

}  // namespace

RecurrenceGradients differentiable_backward(KeptArguments s, Tensor output, Tensor grad_output,
                                            const Tensor& grad_h_n) {
  std::optional<Padding> padding;
  if (given(s.batch_sizes)) {
    padding.emplace(*s.batch_sizes, output.device());
    output = padding->add(output);
    if (grad_output.defined()) grad_output = padding->add(grad_output);
    if (given(s.index)) {
      s.index = padding->add(*s.index);
    } else {
      s.input = padding->add(s.input);
    }
    s.lengths = padding->lengths();
  }
  const int64_t D = static_cast<int64_t>(s.weight_hh.size()), H = s.weight_hh[0].size(0);
  const int64_t T = output.size(0), B = output.size(1);
  const auto options = s.weight_hh[0].options();
  const Tensor step = at::arange(T, options.dtype(at::kLong)).view({T, 1, 1});
  Tensor active;  // [T, B, 1]
  if (given(s.lengths)) {
    active = step < s.lengths->view({1, B, 1});
    // Whatever lies past a sequence's end, NaN too, has no part in the gradients.
    if (!s.weight_ih.empty()) s.input = at::where(active, s.input, 0);
    if (grad_output.defined()) grad_output = at::where(active, grad_output, 0);
  }

  const Nonlinearity nonlinearity = parse_nonlinearity(s.nonlinearity);
  Tensor grad_input;
  variable_list grad_hx, grad_weight_ih, grad_weight_hh, grad_bias, pre;
  for (int64_t d = 0; d < D; ++d) {
    const bool reverse = s.reverse[d];
    const Tensor& W = s.weight_hh[d];
    const Tensor h = output.narrow(-1, d * H, H);
    const Tensor slope = with_nonlinearity(
        nonlinearity, [&](auto name) { return derivative<decltype(name)::value>(h); });
    Tensor carry = grad_h_n.defined() ? grad_h_n[d] : at::zeros({B, H}, options);
    variable_list steps(T);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = reverse ? i : T - 1 - i;
      Tensor grad = carry;
      if (grad_output.defined()) grad = grad + grad_output[t].narrow(-1, d * H, H);
      grad = grad * slope[t];
      if (active.defined()) grad = grad * active[t];
      const Tensor before = grad.matmul(W);
      carry = active.defined() ? at::where(active[t], before, carry) : before;
      steps[t] = grad;
    }
    const Tensor grad_pre = T > 0 ? at::stack(steps) : at::zeros({0, B, H}, options);
    Tensor start = given(s.hx) ? (*s.hx)[d] : at::zeros({B, H}, options);
    Tensor h_before;
    if (T == 0) {
      h_before = h;
    } else if (!reverse) {
      h_before = at::cat({start.unsqueeze(0), h.narrow(0, 0, T - 1)});
    } else {
      h_before = at::cat({h.narrow(0, 1, T - 1), start.unsqueeze(0)});
      if (given(s.lengths))
        h_before = at::where(step == s.lengths->view({1, B, 1}) - 1, start.unsqueeze(0), h_before);
    }
    const Tensor flat = grad_pre.flatten(0, 1);
    grad_weight_hh.push_back(flat.t().matmul(h_before.flatten(0, 1)));
    grad_bias.push_back(flat.sum(0));
    if (!s.weight_ih.empty()) {
      grad_weight_ih.push_back(flat.t().matmul(s.input.flatten(0, 1)));
      const Tensor part = grad_pre.matmul(s.weight_ih[d]);
      grad_input = grad_input.defined() ? grad_input + part : part;
    }
    pre.push_back(grad_pre);
    grad_hx.push_back(carry);
  }
  if (s.weight_ih.empty()) grad_input = at::cat(pre, -1);
  if (given(s.index)) {
    grad_input = at::zeros_like(s.input).index_add(0, s.index->flatten(), grad_input.flatten(0, 1));
  } else if (padding) {
    grad_input = padding->drop(grad_input);
  }
  return {grad_input, at::stack(grad_hx), grad_weight_ih, grad_weight_hh, grad_bias, {}, {}};
}

namespace {

template <Nonlinearity>
Tensor activation(const Tensor& x) = delete;
template <>
Tensor activation<Nonlinearity::tanh>(const Tensor& x) {
  return at::tanh(x);
}
template <>
Tensor activation<Nonlinearity::relu>(const Tensor& x) {
  return at::relu(x);
}
template <>
Tensor activation<Nonlinearity::sigmoid>(const Tensor& x) {
  return at::sigmoid(x);
}
template <>
Tensor activation<Nonlinearity::softplus>(const Tensor& x) {
  return at::softplus(x);
}
template <>
Tensor activation<Nonlinearity::identity>(const Tensor& x) {
  return x;
}

// Direction d of a call over padded sequences, a step at a time: output [T,B,H] and h_n [B,H].
// x [T,B,H]: what the pre-activations start from. active [T,B,1]: which steps there are; or
// undefined, all.
std::pair<Tensor, Tensor> loop(const KeptArguments& s, int64_t d, const Tensor& x,
                               const Tensor& active) {
  const Nonlinearity nonlinearity = parse_nonlinearity(s.nonlinearity);
  const Form form = s.alpha.empty() ? Form::none : parse_form(s.form);
  const auto f = [&](const Tensor& at) {
    return with_nonlinearity(nonlinearity,
                             [&](auto name) { return activation<decltype(name)::value>(at); });
  };
  const int64_t T = x.size(0);
  const Tensor W = s.weight_hh[d].t();
  const Tensor a = form == Form::none ? Tensor() : s.alpha[d];
  Tensor state = given(s.hx) ? (*s.hx)[d] : at::zeros_like(x.size(0) ? x[0] : x.sum(0));
  variable_list outputs(T);
  for (int64_t i = 0; i < T; ++i) {
    const int64_t t = s.reverse[d] ? T - 1 - i : i, mark = s.reverse[d] ? t + 1 : t;
    if (given(s.reset) && mark < T) {
      Tensor anew = (*s.reset)[mark].unsqueeze(1);
      if (active.defined()) anew = anew.logical_and(active[mark]);
      const Tensor start = given(s.reset_state) ? (*s.reset_state)[d] : at::zeros_like(state);
      state = at::where(anew, start, state);
    }
    const Tensor pre = x[t] + (form == Form::voltage ? f(state) : state).matmul(W);
    Tensor next;
    switch (form) {
      case Form::none:
        next = f(pre);
        break;
      case Form::rate:
        next = (1 - a) * state + a * f(pre);
        break;
      case Form::voltage:
        next = (1 - a) * state + a * pre;
        break;
      case Form::blend:
        next = f((1 - a) * state + a * pre);
        break;
    }
    state = active.defined() ? at::where(active[t], next, state) : next;
    outputs[t] = form == Form::voltage ? f(next) : next;
    if (active.defined()) outputs[t] = at::where(active[t], outputs[t], 0);
  }
  return {T > 0 ? at::stack(outputs) : x, state};
}

}  // namespace

RecurrenceGradients gradients_of_loop(KeptArguments s, const Tensor& grad_output,
                                      const Tensor& grad_h_n) {
  std::vector<Tensor> biases(s.bias_ih.size());
  for (size_t d = 0; d < biases.size(); ++d) biases[d] = s.bias_ih[d] + s.bias_hh[d];
  // Views of their own: one of the arguments may have come from another.
  variable_list wanted;
  const auto want = [&](Tensor& t) {
    if (!t.defined() || !t.requires_grad()) return;
    t = t.view_as(t);
    wanted.push_back(t);
  };
  const auto want_all = [&](std::vector<Tensor>& list) {
    for (Tensor& t : list) want(t);
  };
  want(s.input);
  if (given(s.hx)) want(*s.hx);
  want_all(s.weight_ih);
  want_all(s.weight_hh);
  want_all(biases);
  if (given(s.reset_state)) want(*s.reset_state);
  want_all(s.alpha);

  KeptArguments padded = s;
  std::optional<Padding> padding;
  if (given(s.batch_sizes)) {
    padding.emplace(*s.batch_sizes, s.weight_hh[0].device());
    if (given(s.index)) {
      padded.index = padding->add(*s.index);
    } else {
      padded.input = padding->add(s.input);
    }
    padded.lengths = padding->lengths();
  }
  const Tensor& rows = given(s.index) ? *padded.index : padded.input;
  const int64_t T = rows.size(0), B = rows.size(1), H = s.weight_hh[0].size(0);
  Tensor active;
  if (given(padded.lengths))
    active =
        at::arange(T, padded.lengths->options()).view({T, 1, 1}) < padded.lengths->view({1, B, 1});
  Tensor input = padded.input;
  if (given(s.index))
    input = s.input.index_select(0, padded.index->flatten()).view({T, B, s.input.size(1)});
  if (active.defined()) input = at::where(active, input, 0);
  variable_list outputs, last;
  for (size_t d = 0; d < s.weight_hh.size(); ++d) {
    Tensor x = s.weight_ih.empty() ? input.narrow(-1, static_cast<int64_t>(d) * H, H)
                                   : input.matmul(s.weight_ih[d].t());
    if (!biases.empty()) x = x + biases[d];
    auto [output, h_n] = loop(padded, static_cast<int64_t>(d), x, active);
    outputs.push_back(output);
    last.push_back(h_n);
  }
  Tensor output = at::cat(outputs, -1);
  if (padding) output = padding->drop(output);
  const Tensor h_n = at::stack(last);
  variable_list results, given_grads;
  for (const auto& [result, grad] : {std::pair(output, grad_output), std::pair(h_n, grad_h_n)}) {
    if (!grad.defined() || !result.requires_grad()) continue;
    results.push_back(result);
    given_grads.push_back(grad);
  }
  variable_list grads(wanted.size());
  if (!results.empty())
    grads = torch::autograd::grad(results, wanted, given_grads, /*retain_graph=*/true,
                                  /*create_graph=*/true, /*allow_unused=*/true);
  auto next = grads.begin();
  const auto take = [&](const Tensor& t) {
    return t.defined() && t.requires_grad() ? *next++ : Tensor();
  };
  const auto take_all = [&](const std::vector<Tensor>& list) {
    std::vector<Tensor> taken;
    for (const Tensor& t : list) taken.push_back(take(t));
    return taken;
  };
  RecurrenceGradients g;
  g.input = take(s.input);
  g.hx = take(s.hx.value_or(Tensor()));
  g.weight_ih = take_all(s.weight_ih);
  g.weight_hh = take_all(s.weight_hh);
  g.bias = take_all(biases);
  g.reset_state = take(s.reset_state.value_or(Tensor()));
  g.alpha = take_all(s.alpha);
  return g;
}

}  // namespace rnnext
