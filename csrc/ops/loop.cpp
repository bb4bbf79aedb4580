// The recurrence as a loop of ATen operations, differentiable to any order and in either mode.
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>

#include "ops/padded_call.h"

namespace rnnext {
namespace {

// The nonlinearities in ATen operations; a missing one does not compile.
struct AtenActivation {
  const Tensor& x;

  Tensor operator()(Fixed<Nonlinearity::tanh>) const { return at::tanh(x); }
  Tensor operator()(Fixed<Nonlinearity::relu>) const { return at::relu(x); }
  Tensor operator()(Fixed<Nonlinearity::sigmoid>) const { return at::sigmoid(x); }
  Tensor operator()(Fixed<Nonlinearity::softplus>) const { return at::softplus(x); }
  Tensor operator()(Fixed<Nonlinearity::identity>) const { return x; }
};

// The results of a step: the next states, the output, and what a gated cell saves.
struct Step {
  variable_list states;
  Tensor output, saved;
};

// A step of direction d. x: W_ih x and the biases that are added to it; W: W_hh^T.
Step cell_step(const PaddedCall& call, int64_t d, const Tensor& x, const variable_list& states,
               const Tensor& W) {
  const KeptArguments& s = call.a;
  const Tensor& h = states[0];
  const auto f = [&](const Tensor& pre) {
    return with_nonlinearity(call.nonlinearity, AtenActivation{pre});
  };
  Tensor product = (call.cell == Cell::voltage ? f(h) : h).matmul(W);
  if (is_gated(call.cell) && !s.bias_hh.empty()) product = product + s.bias_hh[d];
  const Tensor a = is_leaky(call.cell) ? s.alpha[d] : Tensor();
  const auto same = [](const Tensor& next) -> Step { return {{next}, next, {}}; };
  switch (call.cell) {
    case Cell::elman:
      return same(f(x + product));
    case Cell::rate:
      return same((1 - a) * h + a * f(x + product));
    case Cell::voltage: {
      const Tensor next = (1 - a) * h + a * (x + product);
      return {{next}, f(next), {}};
    }
    case Cell::blend:
      return same(f((1 - a) * h + a * (x + product)));
    case Cell::gru: {
      const auto of_x = x.chunk(3, -1), of_h = product.chunk(3, -1);
      const Tensor r = at::sigmoid(of_x[0] + of_h[0]), z = at::sigmoid(of_x[1] + of_h[1]);
      const Tensor n = at::tanh(of_x[2] + r * of_h[2]), next = n + z * (h - n);
      return {{next}, next, at::stack({r, z, of_h[2], n}, 1)};
    }
    case Cell::lstm: {
      const auto pre = (x + product).chunk(4, -1);
      const Tensor i = at::sigmoid(pre[0]), f = at::sigmoid(pre[1]), g = at::tanh(pre[2]),
                   o = at::sigmoid(pre[3]), e = f * states[1], c = i * g + e;
      const Tensor next = o * at::tanh(c);
      return {{next, c}, next, at::stack({i, f, g, o, e}, 1)};
    }
  }
  __builtin_unreachable();
}

// Direction d, a step at a time: output [T,B,H], the last states [B,H], and, if `save`, what the
// cell saves, [T,B,K*H]. x [T,B,G*H]: what the pre-activations start from.
Step direction_loop(const PaddedCall& call, int64_t d, const Tensor& x, bool save) {
  const KeptArguments& s = call.a;
  const Tensor W = s.weight_hh[d].t(), anew = call.restarts(d), &active = call.active;
  const int64_t T = call.steps();
  const variable_list start = call.each_state(s.reset_state, d);
  variable_list states = call.each_state(s.hx, d), outputs(T), saved(T);
  for (int64_t i = 0; i < T; ++i) {
    const int64_t t = s.reverse[d] ? T - 1 - i : i;
    if (anew.defined())
      for (int k = 0; k < call.states; ++k) states[k] = at::where(anew[t], start[k], states[k]);
    Step step = cell_step(call, d, x[t], states, W);
    for (int k = 0; k < call.states; ++k)
      states[k] =
          active.defined() ? at::where(active[t], step.states[k], states[k]) : step.states[k];
    outputs[t] = active.defined() ? at::where(active[t], step.output, 0) : step.output;
    if (save) saved[t] = step.saved.flatten(1);
  }
  // Without steps, the results are rows of x, of which there are none.
  const Tensor none = x.narrow_symint(-1, 0, call.H);
  return {states, T > 0 ? at::stack(outputs) : none,
          !save   ? Tensor()
          : T > 0 ? at::stack(saved)
                  : none.repeat({1, 1, traits_of(call.cell).saved})};
}

}  // namespace

RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a, bool save) {
  static_assert(kArgumentCount == 17);
  const PaddedCall call(kept(a));
  save = save && is_gated(call.cell);
  const Tensor input = call.input(), noise = call.noise();
  variable_list outputs, saved, last(call.states * call.D);
  for (int64_t d = 0; d < call.D; ++d) {
    Tensor x = a.weight_ih.empty() ? call.of(input, d) : input.matmul(a.weight_ih[d].t());
    if (!a.bias_ih.empty()) x = x + a.bias_ih[d];
    // A gated cell's b_hh belongs to the product with the state.
    if (!a.bias_hh.empty() && !is_gated(call.cell)) x = x + a.bias_hh[d];
    if (noise.defined()) x = x + call.of(noise, d);
    Step all = direction_loop(call, d, x, save);
    outputs.push_back(std::move(all.output));
    saved.push_back(std::move(all.saved));
    for (int k = 0; k < call.states; ++k) last[k * call.D + d] = all.states[k];
  }
  const auto rows = [&](const variable_list& each) { return call.drop(at::cat(each, -1)); };
  RecurrenceOp::Results results{rows(outputs), at::stack(last), {}};
  if (save) std::get<2>(results).push_back(rows(saved));
  return results;
}

RecurrenceGradients backward_loop_as_kernel(const BackwardInputs& r, const RecurrenceArguments& a,
                                            const Wanted& wanted) {
  // Autograd must see the loop's operations, and autocast must leave them alone.
  const auto now = c10::impl::tls_local_dispatch_key_set();
  const c10::impl::ForceDispatchKeyGuard above_autograd(
      now.included_, (now.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView) |
                         c10::autocast_dispatch_keyset);
  const at::NoGradGuard unrecorded;
  check_backward(r, a, wanted);
  return backward_loop(r, a, wanted);
}

}  // namespace rnnext
