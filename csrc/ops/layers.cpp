// Compositions of the recurrence op: a stack of layers as nn.RNN, one step as nn.RNNCell.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/signatures.h"

namespace rnnext {
namespace {

// What `reverse` is for one direction or two. (Made once: a list lives on the heap.)
const c10::List<bool>& directions(int64_t D) {
  static const c10::List<bool> one({false}), two({false, true});
  return D == 1 ? one : two;
}

// Whether autograd must see the call: backward mode, or forward mode, which it refuses.
bool differentiated(const Tensor& t) {
  return t.defined() &&
         ((t.requires_grad() && at::GradMode::is_enabled()) || t._fw_grad(/*level=*/0).defined());
}
bool differentiated(const OptionalTensor& t) { return t && differentiated(*t); }
// Whether the op for a whole stack of layers takes it: it runs on the CPU and has no gradient.
bool stackable(const Tensor& t) { return t.is_cpu() && !differentiated(t); }

// A view as a result of its own, of the same memory, version and history: autograd refuses to
// detach a view in place, which is how pieces of a long sequence are cut off (`h.detach_()`).
Tensor as_result(const Tensor& view) {
  if (!view.is_view()) return view;
  Tensor result(view.tensor_data());
  if (view.requires_grad())
    torch::autograd::impl::set_gradient_edge(result, torch::autograd::impl::gradient_edge(view));
  return result;
}

std::tuple<Tensor, Tensor> rnn(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                               bool has_biases, int64_t num_layers, bool bidirectional,
                               bool batch_first, double dropout, bool training,
                               const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
                               std::string_view nonlinearity) {
  const int64_t D = bidirectional ? 2 : 1, per_direction = has_biases ? 4 : 2;
  TORCH_CHECK(
      num_layers > 0 && static_cast<int64_t>(weights.size()) == num_layers * D * per_direction,
      "weights must hold ", per_direction, " tensors for each of ", num_layers, " layers and ", D,
      " directions, got ", weights.size());
  const bool packed = given(batch_sizes);
  TORCH_CHECK(input.dim() == 2 || (input.dim() == 3 && !packed),
              "input must have 2 or 3 dimensions (2 if packed), got ", input.dim());
  const bool unbatched = input.dim() == 2 && !packed;
  TORCH_CHECK_VALUE(!(given(lengths) && (unbatched || packed)),
                    "lengths needs a 3-D input: one sequence or a packed input has its own");
  Tensor x = unbatched                ? input.unsqueeze(1)
             : batch_first && !packed ? input.transpose(0, 1)
                                      : input;
  TORCH_CHECK(x.sym_size(0) > 0, "Expected sequence length to be larger than 0 in RNN");
  OptionalTensor state = given(hx) && unbatched ? hx->unsqueeze(1) : hx;
  if (given(state))
    TORCH_CHECK(state->dim() == 3 && state->sym_size(0) == num_layers * D, "hx must have shape [",
                num_layers * D, unbatched ? ", H], got " : ", B, H], got ", hx->sym_sizes());

  const auto results = [&](const Tensor& output, const Tensor& h) -> std::tuple<Tensor, Tensor> {
    if (unbatched) return {as_result(output.squeeze(1)), as_result(h.squeeze(1))};
    return {batch_first && !packed ? as_result(output.transpose(0, 1)) : output, h};
  };

  const bool drops = dropout > 0 && training;
  if (num_layers > 1 && D == 1 && !drops && stackable(input) && (!given(hx) || stackable(*hx)) &&
      std::all_of(weights.begin(), weights.end(), stackable)) {
    std::vector<Tensor> lists[4];
    for (size_t i = 0; i < weights.size(); ++i) lists[i % per_direction].push_back(weights[i]);
    const auto [output, h] = call_forward<RecurrenceStackOp>(
        RecurrenceArguments{x, state, lists[0], lists[1], lists[2], lists[3], std::nullopt, lengths,
                            batch_sizes, nonlinearity, directions(1)});
    return results(output, h);
  }

  std::vector<Tensor> h_n;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    Tensor lists[4][2];  // weight ih, hh, bias ih, hh; by direction
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0; i < per_direction; ++i)
        lists[i][d] = weights[(layer * D + d) * per_direction + i];
    const auto list = [&](int i) { return TensorList(lists[i], i < per_direction ? D : 0); };
    const OptionalTensor start =
        given(state) && num_layers > 1 ? OptionalTensor(state->narrow(0, layer * D, D)) : state;
    auto [output, h] = call_forward<RecurrenceOp>(
        RecurrenceArguments{x, start, list(0), list(1), list(2), list(3), std::nullopt, lengths,
                            batch_sizes, nonlinearity, directions(D)});
    x = std::move(output);
    h_n.push_back(std::move(h));
    if (drops && layer + 1 < num_layers) x = at::dropout(x, dropout, training);
  }
  return results(x, num_layers == 1 ? h_n[0] : at::cat(h_n));
}

Tensor rnn_cell(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                const Tensor& weight_hh, const OptionalTensor& bias_ih,
                const OptionalTensor& bias_hh, std::string_view nonlinearity) {
  TORCH_CHECK(input.dim() == 1 || input.dim() == 2, "input must have 1 or 2 dimensions, got ",
              input.dim());
  TORCH_CHECK(!given(hx) || hx->dim() == input.dim(), "hx must have as many dimensions as input, ",
              input.dim(), ", got ", hx->dim());
  // Nothing to differentiate: the views below need no autograd record either, a third of the call.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!(differentiated(input) || differentiated(hx) || differentiated(weight_ih) ||
        differentiated(weight_hh) || differentiated(bias_ih) || differentiated(bias_hh)))
    guard.emplace();
  const bool unbatched = input.dim() == 1;
  const auto step = [&](const Tensor& x) {  // [I] or [B,I] -> [1,B,I]
    return unbatched ? x.view_symint({1, 1, x.sym_size(0)}) : x.unsqueeze(0);
  };
  Tensor biases[2] = {bias_ih.value_or(Tensor()), bias_hh.value_or(Tensor())};
  const size_t n = given(bias_ih) || given(bias_hh) ? 1 : 0;
  for (int i = 0; i < 2; ++i)  // one that is missing beside the other is zeros
    if (n && !biases[i].defined()) biases[i] = at::zeros_like(biases[1 - i]);
  const OptionalTensor state = given(hx) ? OptionalTensor(step(*hx)) : std::nullopt;
  const auto h_n = std::get<1>(call_forward<RecurrenceOp>(
      RecurrenceArguments{step(input), state, weight_ih, weight_hh, TensorList(&biases[0], n),
                          TensorList(&biases[1], n), std::nullopt, std::nullopt, std::nullopt,
                          nonlinearity, directions(1)}));
  return as_result(unbatched ? h_n.view_symint({h_n.sym_size(2)}) : h_n.squeeze(0));
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn", rnn);
  m.impl("rnn_cell", rnn_cell);
}

}  // namespace rnnext
