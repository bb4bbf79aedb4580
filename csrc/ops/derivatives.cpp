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
  Tensor active;  // [T,B,1] which steps exist; undefined: all
  std::optional<Padding> padding;

  explicit Rectangle(KeptArguments arguments) : a(std::move(arguments)) {
    D = static_cast<int64_t>(a.weight_hh.size());
    H = a.weight_hh[0].sym_size(0);
    nonlinearity = parse_nonlinearity(a.nonlinearity);
    cell = cell_of(a);
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
  // The input's rows, [T,B,I] or [T,B,D*H]. Values past a sequence's end, NaN included, must not
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
  // The columns of direction d, in rows [T,B,D*H].
  Tensor of(const Tensor& rows, int64_t d) const { return rows.narrow_symint(-1, H * d, H); }
  Tensor zeros() const { return at::zeros_symint({B, H}, a.weight_hh[0].options()); }
  // [B,H] of direction d's states hx or reset_state.
  Tensor state(const OptionalTensor& states, int64_t d) const {
    return given(states) ? (*states)[d] : zeros();
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

// The gradients of a call without a leak, from the output. Neither the input nor the biases need be
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
    g.bias.push_back(flat.sum(1));
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

// Direction d, a step at a time: output [T,B,H] and h_n [B,H]. x [T,B,H]: what the pre-activations
// start from.
std::pair<Tensor, Tensor> direction_loop(const Rectangle& call, int64_t d, const Tensor& x) {
  const KeptArguments& s = call.a;
  const auto f = [&](const Tensor& pre) {
    return with_nonlinearity(call.nonlinearity, Activation{pre});
  };
  const Tensor W = s.weight_hh[d].t(), anew = call.restarts(d), &active = call.active;
  const Tensor a = call.cell == Cell::elman ? Tensor() : s.alpha[d];
  const int64_t T = call.steps();
  const Tensor start = call.state(s.reset_state, d);
  Tensor state = call.state(s.hx, d);
  variable_list outputs(T);
  for (int64_t i = 0; i < T; ++i) {
    const int64_t t = s.reverse[d] ? T - 1 - i : i;
    if (anew.defined()) state = at::where(anew[t], start, state);
    const Tensor pre = x[t] + (call.cell == Cell::voltage ? f(state) : state).matmul(W);
    Tensor next;
    switch (call.cell) {
      case Cell::elman:
        next = f(pre);
        break;
      case Cell::rate:
        next = (1 - a) * state + a * f(pre);
        break;
      case Cell::voltage:
        next = (1 - a) * state + a * pre;
        break;
      case Cell::blend:
        next = f((1 - a) * state + a * pre);
        break;
      case Cell::gru:
      case Cell::lstm:
        TORCH_INTERNAL_ASSERT(false);
    }
    state = active.defined() ? at::where(active[t], next, state) : next;
    outputs[t] = call.cell == Cell::voltage ? f(next) : next;
    if (active.defined()) outputs[t] = at::where(active[t], outputs[t], 0);
  }
  return {T > 0 ? at::stack(outputs) : x, state};
}

}  // namespace

RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a) {
  const Rectangle call(kept(a));
  const Tensor input = call.input(), noise = call.noise();
  variable_list outputs, last;
  for (int64_t d = 0; d < call.D; ++d) {
    Tensor x = a.weight_ih.empty() ? call.of(input, d) : input.matmul(a.weight_ih[d].t());
    if (!a.bias_ih.empty()) x = x + a.bias_ih[d];
    if (!a.bias_hh.empty()) x = x + a.bias_hh[d];
    if (noise.defined()) x = x + call.of(noise, d);
    auto [output, h_n] = direction_loop(call, d, x);
    outputs.push_back(std::move(output));
    last.push_back(std::move(h_n));
  }
  return {call.drop(at::cat(outputs, -1)), at::stack(last), {}};
}

namespace {

// The gradients of a call with a leak.
RecurrenceGradients through_loop(const RecurrenceResults& r, const RecurrenceArguments& a,
                                 const Wanted& wanted) {
  const bool recorded = at::GradMode::is_enabled();
  const at::AutoGradMode enabled(true);
  KeptArguments s = kept(a);
  const Rectangle call(s);
  const auto options = s.weight_hh[0].options();
  // Both biases have one gradient: that of their sum, in the place of the first.
  for (size_t d = 0; d < s.bias_hh.size(); ++d) s.bias_ih[d] = s.bias_ih[d] + s.bias_hh[d];
  s.bias_hh.clear();
  // A gradient may be wanted of an argument that is not given.
  const auto states = [&] { return at::zeros_symint({call.D, call.B, call.H}, options); };
  if (wanted.bias && s.bias_ih.empty())
    s.bias_ih.assign(call.D, at::zeros_symint({call.H}, options));
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
  return a.alpha.empty() ? by_formulas(r, a, wanted) : through_loop(r, a, wanted);
}

}  // namespace rnnext
