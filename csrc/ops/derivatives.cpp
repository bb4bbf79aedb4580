// The derivatives of the recurrence in ATen operations. They run when the backward pass is
// differentiated, and can be differentiated themselves.
#include <ATen/ops/expm1.h>
#include <ATen/ops/stack.h>

#include "ops/padded_call.h"

namespace rnnext {
namespace {

// The derivative of a nonlinearity as a function of its output h.
struct Derivative {
  const Tensor& h;

  Tensor operator()(Fixed<Nonlinearity::tanh>) const { return 1 - h * h; }
  Tensor operator()(Fixed<Nonlinearity::relu>) const { return (h > 0).to(h.scalar_type()); }
  Tensor operator()(Fixed<Nonlinearity::sigmoid>) const { return h * (1 - h); }
  Tensor operator()(Fixed<Nonlinearity::softplus>) const {
    return at::where(h > 20, 1, -at::expm1(-h));  // torch's threshold: the identity from there on
  }
  Tensor operator()(Fixed<Nonlinearity::identity>) const { return at::ones_like(h); }
};

// The gradients of an Elman cell's call, from the output. The input and the biases need not be
// those of a forward pass: vmap's rule calls this without one.
RecurrenceGradients by_formulas(const BackwardInputs& r, const RecurrenceArguments& a,
                                const Wanted& wanted) {
  const PaddedCall call(kept(a));
  const KeptArguments& s = call.a;
  const int64_t T = call.steps();
  const Tensor output = call.pad(r.output), &active = call.active;
  Tensor grad_output;
  if (given(r.grad_output)) {
    grad_output = call.pad(*r.grad_output);
    if (active.defined()) grad_output = at::where(active, grad_output, 0);
  }
  const Tensor zeros = call.zeros();
  const Tensor x = s.weight_ih.empty() ? Tensor() : call.input();
  RecurrenceGradients g;
  variable_list grad_hx, grad_start, pre;
  for (int64_t d = 0; d < call.D; ++d) {
    const Tensor slope = with_nonlinearity(call.nonlinearity, Derivative{call.of(output, d)});
    const Tensor anew = call.restarts(d);
    Tensor carry = given(r.grad_h_n) ? (*r.grad_h_n)[d] : zeros;
    Tensor start = zeros;
    variable_list steps(T);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = s.reverse[d] ? i : T - 1 - i;
      Tensor grad = carry;
      if (grad_output.defined()) grad = grad + call.of(grad_output[t], d);
      grad = grad * slope[t];
      if (active.defined()) grad = grad * active[t];
      Tensor before = grad.matmul(s.weight_hh[d]);
      if (anew.defined()) {
        start = start + at::where(anew[t], before, 0);
        before = at::where(anew[t], 0, before);
      }
      carry = active.defined() ? at::where(active[t], before, carry) : before;
      steps[t] = grad;
    }
    const Tensor grad_pre = T > 0 ? at::stack(steps) : zeros.unsqueeze(0).narrow(0, 0, 0);
    const Tensor flat = grad_pre.flatten(0, 1).t();
    g.weight_hh.push_back(flat.matmul(call.output_before(output, d).flatten(0, 1)));
    g.bias_ih.push_back(flat.sum(1));
    g.bias_hh.push_back(g.bias_ih[d].clone());
    if (x.defined()) {
      g.weight_ih.push_back(flat.matmul(x.flatten(0, 1)));
      const Tensor part = grad_pre.matmul(s.weight_ih[d]);
      g.input = g.input.defined() ? g.input + part : part;
    }
    pre.push_back(grad_pre);
    grad_hx.push_back(carry);
    grad_start.push_back(start);
  }
  if (!x.defined()) g.input = at::cat(pre, -1);
  g.input = given(s.index)
                ? at::zeros_like(s.input).index_add(0, s.index->reshape(-1), g.input.flatten(0, 1))
                : call.drop(g.input);
  g.hx = at::stack(grad_hx);
  if (given(a.reset)) g.reset_state = at::stack(grad_start);
  each_gradient(
      [](const auto&, bool want, auto& gradient) {
        if (!want) gradient = std::decay_t<decltype(gradient)>();
      },
      s, wanted, g);
  return g;
}

// The gradients of a call of any cell, by autograd.
RecurrenceGradients through_loop(const BackwardInputs& r, const RecurrenceArguments& a,
                                 const Wanted& wanted) {
  const bool recorded = at::GradMode::is_enabled();
  const at::AutoGradMode enabled(true);
  KeptArguments s = kept(a);
  const PaddedCall call(s);
  const auto options = s.weight_hh[0].options();
  // A gradient may be wanted of an argument that is not given.
  const auto states = [&] {
    return at::zeros_symint({call.states * call.D, call.B, call.H}, options);
  };
  if ((wanted.bias_ih || wanted.bias_hh) && s.bias_ih.empty()) {
    s.bias_ih.assign(call.D, at::zeros_symint({s.weight_hh[0].sym_size(0)}, options));
    s.bias_hh = s.bias_ih;
  }
  if (wanted.hx && !given(s.hx)) s.hx = states();
  if (wanted.reset_state && given(s.reset) && !given(s.reset_state)) s.reset_state = states();
  Watched watched;
  each_gradient(
      [&](auto& argument, bool want) {
        for (Tensor& t : tensors_of(argument)) t = want ? watched(t) : t;
      },
      s, wanted);

  const auto [output, h_n, _] = recurrence_loop(s);
  const variable_list grads =
      gradients_of({output, h_n}, {r.grad_output.value_or(Tensor()), r.grad_h_n.value_or(Tensor())},
                   watched, recorded);
  RecurrenceGradients g;
  size_t next = 0;
  each_gradient(
      [&](auto& argument, bool want, auto& gradient) {
        const auto of = tensors_of(argument);
        if (!want || of.empty()) return;
        if constexpr (!std::is_same_v<decltype(gradient), Tensor&>) gradient.resize(of.size());
        for (Tensor& t : tensors_of(gradient)) {
          t = grads[next].defined() ? grads[next] : at::zeros_like(watched.tensors[next].detach());
          ++next;
        }
      },
      s, wanted, g);
  return g;
}

}  // namespace

Tensor Watched::operator()(const Tensor& t) {
  // A view, since one tensor may be derived from another. If a transform of torch.func that has
  // ended made the tensor, its view requires no gradient, though it does itself.
  Tensor own = t.view_as(t);
  if (own.requires_grad()) {
    recorded = true;
  } else {
    own = own + at::zeros({}, own.options()).set_requires_grad(true);
  }
  tensors.push_back(own);
  return own;
}

RecurrenceGradients backward_loop(const BackwardInputs& r, const RecurrenceArguments& a,
                                  const Wanted& wanted) {
  return parse_cell(a.cell) == Cell::elman ? by_formulas(r, a, wanted) : through_loop(r, a, wanted);
}

}  // namespace rnnext
