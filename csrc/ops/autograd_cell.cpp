// One step as nn.RNNCell under autograd: one node for it and the views around it, which would cost
// more than the step. Its backward pass is the recurrence's.
#include "ops/autograd.h"
#include "ops/cell.h"

#include <ATen/ATen.h>
#include <torch/library.h>

namespace rnnext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CellFunction {
  static constexpr const char* name = "RnnCellBackward";
  static constexpr bool is_traceable = false;

  static Tensor forward(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                        const Tensor& weight_hh, const OptionalTensor& bias_ih,
                        const OptionalTensor& bias_hh, std::string_view nonlinearity) {
    const Tensor state = hx.value_or(Tensor());
    const auto node =
        node_of<CellFunction>({input, state, weight_ih, weight_hh, bias_ih.value_or(Tensor()),
                               bias_hh.value_or(Tensor())});
    Tensor output, h;
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      auto step = cell_step(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity);
      output = std::move(std::get<0>(step));
      h = from_step(std::get<1>(step), input);
    }
    node->ctx_.saved_data["nonlinearity"] = std::string(nonlinearity);
    // The output, which nobody else has: h may be changed in place before the backward pass.
    record(node, {h, output}, {input, state, weight_ih, weight_hh, output});
    return h;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    if (!grad[0].defined() && !grad[1].defined()) return variable_list(6);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight_ih = saved[2], &weight_hh = saved[3];
    const auto step_of = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(as_step(t)) : std::nullopt;
    };
    const OptionalTensor hx = step_of(saved[1]), grad_h_n = step_of(grad[0]), grad_output = grad[1];
    const auto wanted = [&](size_t i) { return ctx->needs_input_grad(i); };
    const bool want_ih = wanted(4), want_hh = wanted(5);
    const Recurrences::Mask mask{wanted(0),          wanted(1), wanted(2) || wanted(3),
                                 want_ih || want_hh, false,     false};
    const std::string& nonlinearity = ctx->saved_data["nonlinearity"].toStringRef();
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(
        {grad_output, grad_h_n, saved[4], {}, mask},
        plain_arguments(as_step(input), hx, weight_ih, weight_hh, {}, {}, nonlinearity));
    variable_list grads(6);
    if (mask[0]) grads[0] = from_step(g.input, input);
    if (mask[1]) grads[1] = from_step(g.hx, input);
    if (mask[2]) grads[2] = g.weight_ih[0], grads[3] = g.weight_hh[0];
    if (want_ih) grads[4] = g.bias[0];
    if (want_hh) grads[5] = want_ih ? g.bias[0].clone() : g.bias[0];
    return grads;
  }
};

Tensor cell(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
            const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
            std::string_view nonlinearity) {
  const auto call = [&](const auto& f) {
    return f(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity);
  };
  if (call([](const auto&... each) { return any_dual(each...); })) return call(rnn_cell);
  if (call([](const auto&... each) { return records(each...); }))
    return call(CellFunction::forward);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(rnn_cell);
}

}  // namespace

// Not Autograd: the composite op has a kernel for that, and these come before it.
TORCH_LIBRARY_IMPL(rnnext, AutogradCPU, m) { m.impl("rnn_cell", cell); }
TORCH_LIBRARY_IMPL(rnnext, AutogradCUDA, m) { m.impl("rnn_cell", cell); }

}  // namespace rnnext
