// Tangents run through time as gradients do, the other way: a tangent of h is the slope of f times
// W_hh the tangent before and what else moves the pre-activation, and a gradient of a
// pre-activation is the slope times W_hh^T the gradient after and the output's. So the backward
// kernel computes them, given W_hh transposed and the direction turned round.
#include "ops/forward_mode.h"

#include <ATen/ATen.h>

#include "ops/autograd.h"
#include "ops/rectangle.h"

namespace rnnext {
namespace {

void add(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

}  // namespace

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
    // What moves the pre-activations beside the tangent of the state before: [T,B,H]
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
    // And that of the state which the direction begins with, or begins anew with.
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
  const OptionalTensor along = call.drop(at::cat(pre, -1)), begin = at::stack(start), none;
  const Recurrences::Mask of_pre{true, false, false, false, false, false};
  const Tensor rows = call_backward<RecurrenceBackwardOp>({along, begin, output, {}, of_pre},
                                                          RecurrenceArguments{output,
                                                                              none,
                                                                              {},
                                                                              turned_weights,
                                                                              {},
                                                                              {},
                                                                              none,
                                                                              a.lengths,
                                                                              a.batch_sizes,
                                                                              a.reset,
                                                                              none,
                                                                              {},
                                                                              a.form,
                                                                              a.nonlinearity,
                                                                              turned})
                          .input;
  const Tensor from = of_hx.defined() ? of_hx : at::zeros_symint({D, B, H}, options);
  output._set_fw_grad(rows, /*level=*/0, /*is_inplace_op=*/false);
  h_n._set_fw_grad(call.last(call.pad(rows), from), /*level=*/0, /*is_inplace_op=*/false);
}

}  // namespace rnnext
