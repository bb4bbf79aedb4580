// The call of the recurrence as a loop of ATen operations, which can be differentiated to any
// order, in either mode.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <utility>
#include <vector>

#include "ops/autograd.h"
#include "ops/check.h"

namespace rnnext {

namespace {

// A nonlinearity, and its derivative as a function of its output h, by name: one that lacks either
// does not compile.
struct Activation {
  const Tensor& x;

  Tensor operator()(Named<Nonlinearity::tanh>) const { return at::tanh(x); }
  Tensor operator()(Named<Nonlinearity::relu>) const { return at::relu(x); }
  Tensor operator()(Named<Nonlinearity::sigmoid>) const { return at::sigmoid(x); }
  Tensor operator()(Named<Nonlinearity::softplus>) const { return at::softplus(x); }
  Tensor operator()(Named<Nonlinearity::identity>) const { return x; }
};
struct Derivative {
  const Tensor& h;

  Tensor operator()(Named<Nonlinearity::tanh>) const { return 1 - h * h; }
  Tensor operator()(Named<Nonlinearity::relu>) const { return (h > 0).to(h.scalar_type()); }
  Tensor operator()(Named<Nonlinearity::sigmoid>) const { return h * (1 - h); }
  Tensor operator()(Named<Nonlinearity::softplus>) const {
    return at::where(h > 20, 1, -at::expm1(-h));  // torch's threshold: the identity from there on
  }
  Tensor operator()(Named<Nonlinearity::identity>) const { return at::ones_like(h); }
};

// Where the rows of a packed sequence [N, ...] lie in a rectangle.
struct Padding {
  Tensor position;  // [N]: t * B + b of each row
  int64_t T = 0, B = 0;

  // Operations do this, since a transform of torch.func may have wrapped the sizes.
  Padding(const Tensor& batch_sizes, at::Device device) {
    T = batch_sizes.size(0);
    B = T > 0 ? batch_sizes[0].item<int64_t>() : 0;
    const Tensor present = at::arange(B, at::kLong) < batch_sizes.unsqueeze(1);
    position = present.reshape(-1).nonzero().squeeze(1).to(device);
  }
  // Zeros where there is no row.
  Tensor add(const Tensor& rows) const {
    std::vector<int64_t> shape = rows.sizes().vec();
    shape[0] = T * B;
    const Tensor flat = at::zeros(shape, rows.options()).index_copy(0, position, rows);
    shape[0] = B;
    shape.insert(shape.begin(), T);
    return flat.view(shape);
  }
  Tensor drop(const Tensor& padded) const {
    return padded.reshape({T * B, -1}).index_select(0, position);
  }
  Tensor lengths() const { return add(at::ones_like(position)).sum(0); }
};

// A call over whole rectangles [T, B, ...]: packed rows are padded, and what each step has before
// it is known.
struct Rectangle {
  KeptArguments a;  // lengths in the place of batch_sizes
  int64_t D;
  c10::SymInt H, T, B;
  Nonlinearity nonlinearity;
  Cell cell;
  int states;
  Tensor active;  // [T,B,1] which steps exist; undefined: all
  std::optional<Padding> padding;

  explicit Rectangle(KeptArguments arguments) : a(std::move(arguments)) {
    D = static_cast<int64_t>(a.weight_hh.size());
    H = a.weight_hh[0].sym_size(1);
    nonlinearity = parse_nonlinearity(a.nonlinearity);
    cell = parse_cell(a.cell);
    states = traits_of(cell).states;
    if (given(a.batch_sizes)) {
      padding.emplace(*a.batch_sizes, a.weight_hh[0].device());
      if (given(a.index)) {
        a.index = pad(*a.index);
      } else {
        a.input = pad(a.input);
      }
      a.lengths = padding->lengths();
      a.batch_sizes.reset();
    }
    const Tensor& rows = given(a.index) ? *a.index : a.input;
    T = rows.sym_size(0);
    B = rows.sym_size(1);
    if (given(a.lengths)) active = step() < a.lengths->view({1, -1, 1});
  }
  // Pads the rows of a packed call, and drops the padding again.
  Tensor pad(const Tensor& rows) const { return padding ? padding->add(rows) : rows; }
  Tensor drop(const Tensor& rows) const { return padding ? padding->drop(rows) : rows; }

  // [T,1,1] the number of each step.
  Tensor step() const {
    return at::arange(T, a.weight_hh[0].options().dtype(at::kLong)).view({-1, 1, 1});
  }
  // How many there are; a trace keeps the number that it had when it was traced.
  int64_t steps() const { return T.guard_int(__FILE__, __LINE__); }
  // The input's rows, [T,B,I] or [T,B,D*G*H]. Values past a sequence's end, NaN included, must not
  // reach any derivative, so they are zeros.
  Tensor input() const {
    Tensor x = a.input;
    if (given(a.index))
      x = x.index_select(0, a.index->reshape(-1)).view_symint({T, B, x.sym_size(1)});
    return active.defined() ? at::where(active, x, 0) : x;
  }
  // [T,B,D*H] the noise that is added to the pre-activations; undefined: none.
  Tensor noise() const {
    if (a.noise.empty()) return Tensor();
    const Tensor scale = at::cat(a.noise);
    return call_op<NoiseOp>(*a.noise_key, T, B, D, H).to(scale.scalar_type()) * scale;
  }
  // The columns of direction d, in rows of D parts.
  Tensor of(const Tensor& rows, int64_t d) const { return rows.chunk(D, -1)[d]; }
  Tensor zeros() const { return at::zeros_symint({B, H}, a.weight_hh[0].options()); }
  // [B,H] of direction d's states hx or reset_state, the first or another one.
  Tensor state(const OptionalTensor& all, int64_t d, int64_t which = 0) const {
    return given(all) ? (*all)[which * D + d] : zeros();
  }
  variable_list each_state(const OptionalTensor& all, int64_t d) const {
    variable_list own;
    for (int64_t s = 0; s < states; ++s) own.push_back(state(all, d, s));
    return own;
  }
  // [T,B,1] the steps before which direction d drops the state; undefined: none.
  Tensor restarts(int64_t d) const {
    if (!given(a.reset)) return Tensor();
    Tensor marks = a.reset->unsqueeze(2);
    if (active.defined()) marks = marks.logical_and(active);
    if (!a.reverse[d] || T == 0) return marks;
    return at::cat({marks.narrow_symint(0, 1, T - 1), at::zeros_like(marks.narrow(0, 0, 1))});
  }
  Tensor output_before(const Tensor& output, int64_t d) const {
    const Tensor h = of(output, d);
    if (T == 0) return h;
    const Tensor start = state(a.hx, d).unsqueeze(0);
    Tensor before;
    if (!a.reverse[d]) {
      before = at::cat({start, h.narrow_symint(0, 0, T - 1)});
    } else {
      before = at::cat({h.narrow_symint(0, 1, T - 1), start});
      if (given(a.lengths))
        before = at::where(step() == a.lengths->view({1, -1, 1}) - 1, start, before);
    }
    const Tensor anew = restarts(d);
    return anew.defined() ? at::where(anew, state(a.reset_state, d), before) : before;
  }
};

// [T,B,n] -> [T*B,n]
Tensor all_of(const Tensor& rows) {
  return rows.reshape_symint({rows.sym_size(0) * rows.sym_size(1), rows.sym_size(2)});
}

// The gradient of the input, given that of its rows.
Tensor gather_rows(const Rectangle& call, const Tensor& input, const Tensor& rows) {
  if (given(call.a.index))
    return at::zeros_like(input).index_add(0, call.a.index->reshape(-1), all_of(rows));
  return call.drop(rows);
}

// The gradients of an Elman cell's call, from the output. Neither the input nor the biases need be
// those of a forward pass: vmap's rule calls this without one.
RecurrenceGradients by_formulas(const RecurrenceResults& r, const RecurrenceArguments& a,
                                const Wanted& wanted) {
  const Rectangle call(kept(a));
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
    const Tensor& W = s.weight_hh[d];
    const Tensor h = call.of(output, d);
    const Tensor slope = with_nonlinearity(call.nonlinearity, Derivative{h});
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
      Tensor before = grad.matmul(W);
      if (anew.defined()) {
        start = start + at::where(anew[t], before, 0);
        before = at::where(anew[t], 0, before);
      }
      carry = active.defined() ? at::where(active[t], before, carry) : before;
      steps[t] = grad;
    }
    const Tensor grad_pre = T > 0 ? at::stack(steps) : zeros.unsqueeze(0).narrow(0, 0, 0);
    const Tensor flat = all_of(grad_pre).t();
    g.weight_hh.push_back(flat.matmul(all_of(call.output_before(output, d))));
    g.bias_ih.push_back(flat.sum(1));
    g.bias_hh.push_back(g.bias_ih[d].clone());
    if (x.defined()) {
      g.weight_ih.push_back(flat.matmul(all_of(x)));
      const Tensor part = grad_pre.matmul(s.weight_ih[d]);
      g.input = g.input.defined() ? g.input + part : part;
    }
    pre.push_back(grad_pre);
    grad_hx.push_back(carry);
    grad_start.push_back(start);
  }
  if (!x.defined()) g.input = at::cat(pre, -1);
  g.input = gather_rows(call, a.input, g.input);
  g.hx = at::stack(grad_hx);
  if (given(a.reset)) g.reset_state = at::stack(grad_start);
  each_gradient(
      [](const auto&, bool want, auto& gradient) {
        if (!want) gradient = std::decay_t<decltype(gradient)>();
      },
      s, wanted, g);
  return g;
}

// What a step makes: the next states, the output, and what a gated cell saves.
struct Step {
  variable_list states;
  Tensor output, saved;
};

// A step of direction d. x: W_ih x and the biases that are added to it; W: W_hh^T.
Step cell_step(const Rectangle& call, int64_t d, const Tensor& x, const variable_list& states,
               const Tensor& W) {
  const KeptArguments& s = call.a;
  const Tensor& h = states[0];
  const auto f = [&](const Tensor& pre) {
    return with_nonlinearity(call.nonlinearity, Activation{pre});
  };
  const auto gates_of = [](const Tensor& pre, int64_t n) { return pre.chunk(n, -1); };
  Tensor product = (call.cell == Cell::voltage ? f(h) : h).matmul(W);
  if (is_gated(call.cell) && !s.bias_hh.empty()) product = product + s.bias_hh[d];
  const Tensor a = is_leaky(call.cell) ? s.alpha[d] : Tensor();
  switch (call.cell) {
    case Cell::elman: {
      const Tensor next = f(x + product);
      return {{next}, next, {}};
    }
    case Cell::rate: {
      const Tensor next = (1 - a) * h + a * f(x + product);
      return {{next}, next, {}};
    }
    case Cell::voltage: {
      const Tensor next = (1 - a) * h + a * (x + product);
      return {{next}, f(next), {}};
    }
    case Cell::blend: {
      const Tensor next = f((1 - a) * h + a * (x + product));
      return {{next}, next, {}};
    }
    case Cell::gru: {
      const auto of_x = gates_of(x, 3), of_h = gates_of(product, 3);
      const Tensor r = at::sigmoid(of_x[0] + of_h[0]), z = at::sigmoid(of_x[1] + of_h[1]);
      const Tensor n = at::tanh(of_x[2] + r * of_h[2]), q = h - n, next = n + z * q;
      return {{next}, next, at::stack({r, z, of_h[2], q}, 1)};
    }
    case Cell::lstm: {
      const auto pre = gates_of(x + product, 4);
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
Step direction_loop(const Rectangle& call, int64_t d, const Tensor& x, bool save) {
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
  // Without steps there are rows of the input's alone.
  const int parts = traits_of(call.cell).saved;
  const Tensor none = x.narrow_symint(-1, 0, call.H);
  return {states, T > 0 ? at::stack(outputs) : none,
          !save   ? Tensor()
          : T > 0 ? at::stack(saved)
                  : none.repeat({1, 1, parts})};
}

}  // namespace

RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a, bool save) {
  const Rectangle call(kept(a));
  save = save && is_gated(call.cell);
  const Tensor input = call.input(), noise = call.noise();
  variable_list outputs, saved, last(call.states * call.D);
  for (int64_t d = 0; d < call.D; ++d) {
    Tensor x = a.weight_ih.empty() ? call.of(input, d) : input.matmul(a.weight_ih[d].t());
    if (!a.bias_ih.empty()) x = x + a.bias_ih[d];
    // A gated cell's belongs to the product with the state.
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

namespace {

// The gradients of a call of any cell, by autograd.
RecurrenceGradients through_loop(const RecurrenceResults& r, const RecurrenceArguments& a,
                                 const Wanted& wanted) {
  const bool recorded = at::GradMode::is_enabled();
  const at::AutoGradMode enabled(true);
  KeptArguments s = kept(a);
  const Rectangle call(s);
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
  // A view, since one tensor may be derived from another. The view of a tensor of a transform of
  // torch.func that has ended requires no gradient, though the tensor does.
  Tensor own = t.view_as(t);
  if (own.requires_grad()) {
    recorded = true;
  } else {
    own = own + at::zeros({}, own.options()).set_requires_grad(true);
  }
  tensors.push_back(own);
  return own;
}

Tensor output_before(const RecurrenceArguments& a, const Tensor& output, int64_t d) {
  return Rectangle(kept(a)).output_before(output, d);
}

RecurrenceGradients backward_loop(const RecurrenceResults& r, const RecurrenceArguments& a,
                                  const Wanted& wanted) {
  return parse_cell(a.cell) == Cell::elman ? by_formulas(r, a, wanted) : through_loop(r, a, wanted);
}

namespace {

// Lets autograd see the operations of an op's kernel, and autocast leave them alone.
struct AboveAutograd {
  c10::impl::LocalDispatchKeySet now = c10::impl::tls_local_dispatch_key_set();
  c10::impl::ForceDispatchKeyGuard guard{
      now.included_, (now.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView) |
                         c10::autocast_dispatch_keyset};
};

}  // namespace

RecurrenceOp::Results loop_as_kernel(const RecurrenceArguments& a, bool save) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return recurrence_loop(a, save);
}

RecurrenceGradients loop_as_kernel(const RecurrenceResults& r, const RecurrenceArguments& a,
                                   const Wanted& wanted) {
  const AboveAutograd above;
  const at::NoGradGuard unrecorded;
  return backward_loop(r, a, wanted);
}

}  // namespace rnnext
