// One step of the recurrence as nn.RNNCell, nn.GRUCell or nn.LSTMCell, and its gradients.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/layers.h"

namespace rnnext {
namespace {

// [B,n] or [n] as the one step of [1,B,n], and back to the shape of `like`.
Tensor as_step(const Tensor& t) {
  if (t.dim() == 1) return t.view_symint({1, 1, t.sym_size(0)});
  if (!is_plain(t)) return t.unsqueeze(0);
  return plain_view(t, {1, t.size(0), t.size(1)}, {0, t.stride(0), t.stride(1)});
}
Tensor from_step(const Tensor& step, const Tensor& like) {
  if (like.dim() == 1) return step.view_symint({step.sym_size(2)});
  if (!is_plain(step)) return step.squeeze(0);
  return plain_view(step, {step.size(1), step.size(2)}, {step.stride(1), step.stride(2)});
}

// A step of one of torch's cells as a call of the recurrence. Its arguments must outlive it.
class CellStep {
 public:
  explicit CellStep(const CellArguments& a) : a_(a) {
    TORCH_CHECK(a.input.dim() == 1 || a.input.dim() == 2, "input must have 1 or 2 dimensions, got ",
                a.input.dim());
    TORCH_CHECK(a.weight_ih.dim() == 2, "weight_ih must be 2-D, got ", a.weight_ih.sym_sizes());
    TORCH_CHECK(a.weight_hh.dim() == 2, "weight_hh must be 2-D, got ", a.weight_hh.sym_sizes());
    check_count(a.hx, "hx", traits_of(parse_cell(a.cell)).states);
    for (const Tensor& h : a.hx) {
      TORCH_CHECK(h.dim() == a.input.dim(), "hx must have as many dimensions as input, ",
                  a.input.dim(), ", got ", h.dim());
      TORCH_CHECK(h.sym_sizes() == a.hx[0].sym_sizes(), "hx must hold states of one shape, got ",
                  a.hx[0].sym_sizes(), " and ", h.sym_sizes());
    }
    input_ = as_step(a.input);
    hx_ = stacked(a.hx);
    if (given(a.bias_ih)) biases_[0] = *a.bias_ih;
    if (given(a.bias_hh)) biases_[1] = *a.bias_hh;
    for (int i = 0; i < 2; ++i)  // if only one is given, the other is zeros
      if (!biases_[i].defined() && biases_[1 - i].defined())
        biases_[i] = a.weight_hh.new_zeros_symint(a.weight_hh.sym_sizes().slice(0, 1));
  }

  RecurrenceArguments arguments() const {
    const size_t n = biases_[0].defined();
    return {.input = input_,
            .hx = hx_,
            .weight_ih = a_.weight_ih,
            .weight_hh = a_.weight_hh,
            .bias_ih = {&biases_[0], n},
            .bias_hh = {&biases_[1], n},
            .cell = a_.cell,
            .nonlinearity = a_.nonlinearity,
            .reverse = directions(1)};
  }

  // States as the recurrence takes them, none if none is defined; and back, as separate tensors.
  OptionalTensor stacked(TensorList states) const {
    const auto* const one = std::ranges::find_if(states, &Tensor::defined);
    if (one == states.end()) return std::nullopt;
    c10::SmallVector<Tensor, 2> each;
    for (const Tensor& t : states) each.push_back(as_step(t.defined() ? t : at::zeros_like(*one)));
    return joined(each, "hx");
  }
  std::vector<Tensor> states_of(const Tensor& h_n) const {
    const int64_t S = traits_of(parse_cell(a_.cell)).states;
    if (S == 1) return {from_step(h_n, a_.input)};
    std::vector<Tensor> states;
    for (int64_t s = 0; s < S; ++s) states.push_back(from_step(state_of(h_n, s, 1), a_.input));
    return states;
  }

 private:
  const CellArguments& a_;
  Tensor input_;
  OptionalTensor hx_;
  Tensor biases_[2];  // both or none
};

// The op as such a call; autograd records each of its operations.
std::vector<Tensor> rnn_cell(const CellArguments& a) {
  const CellStep step(a);
  const auto results = call_forward<RecurrenceOp>(step.arguments());
  std::vector<Tensor> states = step.states_of(std::get<1>(results));
  for (Tensor& h : states) h = as_result(h);
  return states;
}

// One step as nn.RNNCell, as one node of autograd: nodes for the views around the step would cost
// more than the step. Its backward pass is the recurrence's.
struct CellFunction {
  static constexpr const char* name = "RnnCellBackward";
  static constexpr bool is_traceable = false;

  static std::vector<Tensor> forward(const CellArguments& a) {
    const auto node = node_of<CellFunction>(flattened(a));
    const Cell cell = parse_cell(a.cell);
    std::vector<Tensor> states;
    const auto [output, h_n, saved] = below_autograd([&] {
      const CellStep step(a);
      auto all = call_forward<RecurrenceOp>(step.arguments(), traits_of(cell).always_saves);
      states = step.states_of(std::get<1>(all));
      return all;
    });
    const BackwardInputs results{.output = output, .saved = saved};
    variable_list tensors = flattened(results, a);
    if (!is_gated(cell))  // the backward pass does not read the biases, which come last
      std::fill(tensors.end() - 2, tensors.end(), Tensor());
    node->ctx_.saved_data["values"] = values_of(results, a);
    // Keeps the output rather than h: the caller may change h in place before the backward pass,
    // and does not have the output.
    variable_list recorded = states;
    recorded.push_back(output);
    record(node, recorded, std::move(tensors));
    return states;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    KeptBackwardInputs r;
    CellFields<Kept> a;
    restore(ctx->get_saved_variables(), ctx->saved_data["values"].toList(), r, a);
    const size_t S = grad.size() - 1, hx = a.hx.size();
    variable_list grads(hx + 5);
    if (std::ranges::none_of(grad, &Tensor::defined)) return grads;
    const auto needs = [&](size_t i) { return ctx->needs_input_grad(i); };
    Wanted wanted{.input = needs(0),
                  .weight_ih = needs(hx + 1),
                  .weight_hh = needs(hx + 2),
                  .bias_ih = needs(hx + 3),
                  .bias_hh = needs(hx + 4)};
    for (size_t s = 0; s < hx; ++s) wanted.hx |= needs(1 + s);
    const CellArguments passed = a;
    const CellStep step(passed);
    r.grad_output = grad[S];
    r.grad_h_n = step.stacked(TensorList(grad).slice(0, S));
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(r, step.arguments(), wanted);
    if (wanted.input) grads[0] = from_step(g.input, a.input);
    if (wanted.hx) std::ranges::copy(step.states_of(g.hx), grads.begin() + 1);
    if (wanted.weight_ih) grads[hx + 1] = g.weight_ih[0];
    if (wanted.weight_hh) grads[hx + 2] = g.weight_hh[0];
    if (wanted.bias_ih) grads[hx + 3] = g.bias_ih[0];
    if (wanted.bias_hh) grads[hx + 4] = g.bias_hh[0];
    return grads;
  }
};

std::vector<Tensor> cell(const CellArguments& a) {
  if (any_dual(a)) return rnn_cell(a);
  if (any_recorded(a)) return CellFunction::forward(a);
  return below_autograd([&] { return rnn_cell(a); });
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
}
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) {
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
}
// Not for the key Autograd: the composite op has a kernel for that, and these precede it.
TORCH_LIBRARY_IMPL(rnnext, AutogradCPU, m) { m.impl("rnn_cell", RnnCellOp::call<cell>); }
TORCH_LIBRARY_IMPL(rnnext, AutogradCUDA, m) { m.impl("rnn_cell", RnnCellOp::call<cell>); }

}  // namespace rnnext
