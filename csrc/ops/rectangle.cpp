#include "ops/derivatives.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "ops/autograd.h"
#include "ops/check.h"

namespace rnnext {

Padding::Padding(const Tensor& batch_sizes, at::Device device) {
  // Operations do this, since a transform of torch.func may have wrapped the sizes.
  T = batch_sizes.size(0);
  B = T > 0 ? batch_sizes[0].item<int64_t>() : 0;
  const Tensor present = at::arange(B, at::kLong) < batch_sizes.unsqueeze(1);
  position = present.reshape(-1).nonzero().squeeze(1).to(device);
}

Tensor Padding::add(const Tensor& rows) const {
  std::vector<int64_t> shape = rows.sizes().vec();
  shape[0] = T * B;
  const Tensor flat = at::zeros(shape, rows.options()).index_copy(0, position, rows);
  shape[0] = B;
  shape.insert(shape.begin(), T);
  return flat.view(shape);
}

Tensor Padding::drop(const Tensor& padded) const {
  return padded.reshape({T * B, -1}).index_select(0, position);
}

Tensor Padding::lengths() const { return add(at::ones_like(position)).sum(0); }

Rectangle::Rectangle(KeptArguments arguments) : a(std::move(arguments)) {
  D = static_cast<int64_t>(a.weight_hh.size());
  H = a.weight_hh[0].sym_size(0);
  nonlinearity = parse_nonlinearity(a.nonlinearity);
  form = form_of(a);
  if (given(a.batch_sizes)) {
    padding_.emplace(*a.batch_sizes, a.weight_hh[0].device());
    if (given(a.index)) {
      a.index = pad(*a.index);
    } else {
      a.input = pad(a.input);
    }
    a.lengths = padding_->lengths();
    a.batch_sizes.reset();
  }
  const Tensor& rows = given(a.index) ? *a.index : a.input;
  T = rows.sym_size(0);
  B = rows.sym_size(1);
  if (given(a.lengths)) active = step() < a.lengths->view({1, -1, 1});
}

Tensor Rectangle::step() const {
  return at::arange(T, a.weight_hh[0].options().dtype(at::kLong)).view({-1, 1, 1});
}

Tensor Rectangle::ends() const { return step() == a.lengths->view({1, -1, 1}) - 1; }

Tensor Rectangle::input() const {
  Tensor x = a.input;
  if (given(a.index))
    x = x.index_select(0, a.index->reshape(-1)).view_symint({T, B, x.sym_size(1)});
  // Values past a sequence's end, NaN included, must not reach any derivative.
  return active.defined() ? at::where(active, x, 0) : x;
}

Tensor Rectangle::noise() const {
  if (a.noise.empty()) return Tensor();
  const Tensor scale = at::cat(a.noise);
  return call_op<NoiseOp>(*a.noise_key, T, B, D, H).to(scale.scalar_type()) * scale;
}

Tensor Rectangle::restarts(int64_t d) const {
  if (!given(a.reset)) return Tensor();
  Tensor marks = a.reset->unsqueeze(2);
  if (active.defined()) marks = marks.logical_and(active);
  if (!a.reverse[d] || T == 0) return marks;
  return at::cat({marks.narrow_symint(0, 1, T - 1), at::zeros_like(marks.narrow(0, 0, 1))});
}

Tensor Rectangle::output_before(const Tensor& output, int64_t d) const {
  const Tensor h = of(output, d);
  if (T == 0) return h;
  const auto out = [&](const OptionalTensor& states) {
    const Tensor s = given(states) ? (*states)[d] : at::zeros_symint({B, H}, h.options());
    return (form == Form::voltage ? activation(nonlinearity, s) : s).unsqueeze(0);
  };
  const Tensor start = out(a.hx);
  Tensor before;
  if (!a.reverse[d]) {
    before = at::cat({start, h.narrow_symint(0, 0, T - 1)});
  } else {
    before = at::cat({h.narrow_symint(0, 1, T - 1), start});
    if (given(a.lengths)) before = at::where(ends(), start, before);
  }
  const Tensor anew = restarts(d);
  return anew.defined() ? at::where(anew, out(a.reset_state), before) : before;
}

Tensor Rectangle::last(const Tensor& rows, const Tensor& start) const {
  if (T == 0) return start;
  std::vector<Tensor> states;
  for (int64_t d = 0; d < D; ++d) {
    const Tensor each = of(rows, d);
    Tensor state = each.select_symint(0, a.reverse[d] ? c10::SymInt(0) : T - 1);
    if (given(a.lengths)) {
      if (!a.reverse[d]) state = at::where(ends(), each, 0).sum(0);
      state = at::where(active.select(0, 0), state, start[d]);
    }
    states.push_back(state);
  }
  return at::stack(states);
}

static void add(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

// Tangents run through time as gradients do, the other way. A tangent of h is f' times the sum of
// W_hh (tangent before) and of the other changes of the pre-activation; a gradient of a
// pre-activation is f' times the sum of W_hh^T (gradient after) and of the output's gradient. So
// the backward kernel computes tangents, given W_hh transposed and the other direction.
void set_tangents(const RecurrenceArguments& a, const Tensor& output, const Tensor& h_n) {
  const Rectangle call(with_each(kept(a), primal));
  const KeptArguments& s = call.a;
  const int64_t D = call.D;
  const c10::SymInt &T = call.T, &B = call.B, &H = call.H;
  const auto options = output.options();
  const Tensor h = call.pad(output), of_input = tangent(a.input), of_hx = tangent(a.hx),
               of_reset_state = tangent(a.reset_state);
  const Tensor x = call.input();
  Tensor moved = of_input;  // the input's rows
  if (moved.defined() && given(a.index)) {
    moved = moved.index_select(0, s.index->flatten()).view_symint({T, B, H * D});
  } else if (moved.defined()) {
    moved = call.pad(moved);
  }
  if (moved.defined() && call.active.defined()) moved = at::where(call.active, moved, 0);

  std::vector<Tensor> turned_weights, pre, start;
  c10::List<bool> turned;
  for (int64_t d = 0; d < D; ++d) {
    const Tensor W = s.weight_hh[d].t(), anew = call.restarts(d);
    // The changes of the pre-activations but for those by the state before: [T,B,H]
    Tensor sum = at::zeros_symint({T, B, H}, options);
    if (a.weight_ih.empty()) {
      if (moved.defined()) add(sum, call.of(moved, d));
    } else {
      if (moved.defined()) add(sum, moved.matmul(s.weight_ih[d].t()));
      if (const Tensor t = tangent(a.weight_ih[d]); t.defined()) add(sum, x.matmul(t.t()));
    }
    if (const Tensor t = tangent(a.weight_hh[d]); t.defined())
      add(sum, call.output_before(h, d).matmul(t.t()));
    for (const TensorList& biases : {a.bias_ih, a.bias_hh})
      if (!biases.empty() && is_dual(biases[d])) add(sum, tangent(biases[d]));
    // And the tangent of the state that the direction begins, or begins anew, with.
    Tensor first = of_hx.defined() ? of_hx[d].matmul(W) : at::zeros_symint({B, H}, options);
    if (anew.defined()) {
      if (T > 0 && !s.reverse[d]) first = at::where(anew[0], 0, first);
      if (of_reset_state.defined()) add(sum, at::where(anew, of_reset_state[d].matmul(W), 0));
    }
    turned_weights.push_back(W);
    turned.push_back(!s.reverse[d]);
    pre.push_back(sum);
    start.push_back(first);
  }
  const OptionalTensor along = call.drop(at::cat(pre, -1)), begin = at::stack(start);
  const RecurrenceArguments turn{.input = output,
                                 .weight_hh = turned_weights,
                                 .lengths = a.lengths,
                                 .batch_sizes = a.batch_sizes,
                                 .reset = a.reset,
                                 .form = a.form,
                                 .nonlinearity = a.nonlinearity,
                                 .reverse = turned};
  Wanted of_rows;
  of_rows.input = true;
  const Tensor rows =
      call_backward<RecurrenceBackwardOp>(
          RecurrenceResults{.grad_output = along, .grad_h_n = begin, .output = output}, turn,
          of_rows)
          .input;
  const Tensor from = of_hx.defined() ? of_hx : at::zeros_symint({D, B, H}, options);
  output._set_fw_grad(rows, /*level=*/0, /*is_inplace_op=*/false);
  h_n._set_fw_grad(call.last(call.pad(rows), from), /*level=*/0, /*is_inplace_op=*/false);
}

}  // namespace rnnext
