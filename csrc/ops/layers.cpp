// Compositions of the recurrence op: a stack of layers as nn.RNN, one step as nn.RNNCell.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/autograd.h"
#include "ops/cell.h"
#include "ops/signatures.h"
#include "ops/stack.h"
#include "recurrence/nonlinearity.h"

namespace rnnext {
namespace {

// Whether the op for a whole stack of layers takes it: it runs on the CPU and has no gradient.
bool stackable(const Tensor& t) { return t.is_cpu() && !records(t) && !is_dual(t); }

// Whether a transform of torch.func holds it.
bool transformed(const Tensor& t) {
  constexpr c10::DispatchKeySet wrappers(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return t.key_set().has_any(wrappers);
}

// A view as a result of its own, of the same memory, version and history: autograd refuses to
// detach a view in place, which is how pieces of a long sequence are cut off (`h.detach_()`).
Tensor as_result(const Tensor& view) {
  if (!view.is_view() || transformed(view) || is_dual(view)) return view;
  Tensor result(view.tensor_data());
  if (view.requires_grad())
    torch::autograd::impl::set_gradient_edge(result, torch::autograd::impl::gradient_edge(view));
  return result;
}

// A layer's rows times W_ih and the biases, each direction beside the other: ready pre-activations.
// lists: weight ih, hh, bias ih, hh; by direction.
Tensor project(const Tensor& x, const Tensor (&lists)[4][2], bool has_biases, int64_t D) {
  if (x.dim() == 2 && x.is_cpu()) {
    // One step of as many sequences, from zeros: its sums are those that a step of the recurrence
    // begins with, to the bit. W_hh says no more than H.
    const Tensor unread[2] = {lists[1][0].detach(), D > 1 ? lists[1][1].detach() : Tensor()};
    const size_t n = has_biases ? D : 0;
    const Tensor output = std::get<0>(call_forward<RecurrenceOp>(plain_arguments(
        x.unsqueeze(0), std::nullopt, TensorList(lists[0], D), TensorList(unread, D),
        TensorList(lists[2], n), TensorList(lists[3], n), "identity", D)));
    return output.squeeze(0);
  }
  Tensor parts[2];
  for (int64_t d = 0; d < D; ++d) {
    const OptionalTensor bias =
        has_biases ? OptionalTensor(lists[2][d] + lists[3][d]) : OptionalTensor();
    parts[d] = at::linear(x, lists[0][d], bias);
  }
  return D == 1 ? parts[0] : at::cat({parts[0], parts[1]}, -1);
}

// The sequences of a call, time first, as the ops of one layer take them.
struct Sequences {
  bool unbatched, batch_first;

  Tensor time_first(const Tensor& t) const {
    return unbatched ? t.unsqueeze(1) : batch_first ? t.transpose(0, 1) : t;
  }
  OptionalTensor time_first(const OptionalTensor& t) const {
    return given(t) ? OptionalTensor(time_first(*t)) : t;
  }
  Tensor back(const Tensor& t) const {
    return unbatched ? as_result(t.squeeze(1)) : batch_first ? as_result(t.transpose(0, 1)) : t;
  }
};

std::tuple<Tensor, Tensor> rnn(const Tensor& input, const OptionalTensor& hx, TensorList weights,
                               bool has_biases, int64_t num_layers, bool bidirectional,
                               bool batch_first, double dropout, bool training,
                               const OptionalTensor& index, const OptionalTensor& lengths,
                               const OptionalTensor& batch_sizes, const OptionalTensor& reset,
                               TensorList alpha, std::string_view form, TensorList noise,
                               std::string_view nonlinearity) {
  const int64_t D = bidirectional ? 2 : 1, per_direction = has_biases ? 4 : 2;
  const auto n = static_cast<int64_t>(weights.size());  // which the product below may not pass
  TORCH_CHECK(num_layers > 0 && num_layers <= n && n == num_layers * D * per_direction,
              "weights must hold ", per_direction, " tensors for each of ", num_layers,
              " layers and ", D, " directions, got ", n);
  for (const auto& [name, list] : {std::pair("alpha", alpha), std::pair("noise", noise)})
    TORCH_CHECK(list.empty() || static_cast<int64_t>(list.size()) == num_layers * D, name,
                " must hold a tensor for each of ", num_layers, " layers and ", D,
                " directions, or none, got ", list.size());
  const bool packed = given(batch_sizes), table = given(index);
  const Tensor& rows = table ? *index : input;
  const int64_t dims = rows.dim() + table;  // as if the rows were features
  TORCH_CHECK(dims == 2 || (dims == 3 && !packed), table ? "index" : "input", " must have ",
              2 - table, " or ", 3 - table, " dimensions (", 2 - table, " if packed), got ",
              rows.dim());
  const bool unbatched = dims == 2 && !packed;
  TORCH_CHECK_VALUE(!(given(lengths) && (unbatched || packed)),
                    "lengths needs a 3-D input: one sequence or a packed input has its own");
  const Sequences sequences{unbatched, batch_first && !packed};
  if (given(reset)) {
    TORCH_CHECK_VALUE(!packed, "reset must not be given with a packed input");
    TORCH_CHECK_VALUE(reset->dim() == dims - 1, "reset must have shape ",
                      unbatched     ? "[T]"
                      : batch_first ? "[B, T]"
                                    : "[T, B]",
                      ", got ", reset->sym_sizes());
  }
  const OptionalTensor resets = sequences.time_first(reset);
  OptionalTensor tokens = sequences.time_first(index);
  Tensor x = table ? input : sequences.time_first(input);
  TORCH_CHECK((table ? *tokens : x).sym_size(0) > 0,
              "Expected sequence length to be larger than 0 in RNN");
  OptionalTensor state = given(hx) && unbatched ? hx->unsqueeze(1) : hx;
  if (given(state))
    TORCH_CHECK(state->dim() == 3 && state->sym_size(0) == num_layers * D, "hx must have shape [",
                num_layers * D, unbatched ? ", H], got " : ", B, H], got ", hx->sym_sizes());
  const auto results = [&](const Tensor& output, const Tensor& h) -> std::tuple<Tensor, Tensor> {
    return {sequences.back(output), unbatched ? as_result(h.squeeze(1)) : h};
  };

  TORCH_CHECK(!table || noise.empty(), "noise must not be given with an index: it is not shared");
  const bool drops = dropout > 0 && training, ready = table || !noise.empty();
  if (num_layers > 1 && D == 1 && !drops && !ready && stackable(input) &&
      (!given(hx) || stackable(*hx)) && std::all_of(weights.begin(), weights.end(), stackable) &&
      std::all_of(alpha.begin(), alpha.end(), stackable)) {
    std::vector<Tensor> lists[4];
    for (size_t i = 0; i < weights.size(); ++i) lists[i % per_direction].push_back(weights[i]);
    const auto [output, h, saved] = call_forward<RecurrenceStackOp>(RecurrenceArguments{
        x, state, lists[0], lists[1], lists[2], lists[3], std::nullopt, lengths, batch_sizes,
        resets, std::nullopt, alpha, form, nonlinearity, directions(1)});
    return results(output, h);
  }

  std::vector<Tensor> h_n;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    Tensor lists[4][2];  // weight ih, hh, bias ih, hh; by direction
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0; i < per_direction; ++i)
        lists[i][d] = weights[(layer * D + d) * per_direction + i];
    // A table is multiplied with W_ih once, whatever the number of its readers; and noise is added
    // to pre-activations, which are made for it.
    const bool projects = (table && layer == 0) || !noise.empty();
    if (projects) x = project(x, lists, has_biases, D);
    if (!noise.empty()) x = x + at::randn_like(x) * at::cat(noise.slice(layer * D, D));
    const auto list = [&](int i) {
      return TensorList(lists[i], i == 1 || (i < per_direction && !projects) ? D : 0);
    };
    const OptionalTensor start =
        given(state) && num_layers > 1 ? OptionalTensor(state->narrow(0, layer * D, D)) : state;
    const TensorList alphas = alpha.empty() ? alpha : alpha.slice(layer * D, D);
    auto [output, h, saved] = call_forward<RecurrenceOp>(RecurrenceArguments{
        x, start, list(0), list(1), list(2), list(3), layer == 0 ? tokens : std::nullopt, lengths,
        batch_sizes, resets, std::nullopt, alphas, form, nonlinearity, directions(D)});
    x = std::move(output);
    h_n.push_back(std::move(h));
    if (drops && layer + 1 < num_layers) x = at::dropout(x, dropout, training);
  }
  return results(x, num_layers == 1 ? h_n[0] : at::cat(h_n));
}

}  // namespace

const c10::List<bool>& directions(int64_t D) {
  static const c10::List<bool> one({false}), two({false, true});
  return D == 1 ? one : two;
}

RecurrenceOp::Results cell_step(const Tensor& input, const OptionalTensor& hx,
                                const Tensor& weight_ih, const Tensor& weight_hh,
                                const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                std::string_view nonlinearity) {
  TORCH_CHECK(input.dim() == 1 || input.dim() == 2, "input must have 1 or 2 dimensions, got ",
              input.dim());
  TORCH_CHECK(!given(hx) || hx->dim() == input.dim(), "hx must have as many dimensions as input, ",
              input.dim(), ", got ", hx->dim());
  Tensor biases[2] = {bias_ih.value_or(Tensor()), bias_hh.value_or(Tensor())};
  const size_t n = given(bias_ih) || given(bias_hh) ? 1 : 0;
  for (int i = 0; i < 2; ++i)  // one that is missing beside the other is zeros
    if (n && !biases[i].defined()) biases[i] = at::zeros_like(biases[1 - i]);
  const OptionalTensor state = given(hx) ? OptionalTensor(as_step(*hx)) : std::nullopt;
  return call_forward<RecurrenceOp>(plain_arguments(as_step(input), state, weight_ih, weight_hh,
                                                    TensorList(&biases[0], n),
                                                    TensorList(&biases[1], n), nonlinearity));
}

Tensor rnn_cell(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                const Tensor& weight_hh, const OptionalTensor& bias_ih,
                const OptionalTensor& bias_hh, std::string_view nonlinearity) {
  const auto step = cell_step(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity);
  return as_result(from_step(std::get<1>(step), input));
}

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn", rnn);
  m.impl("rnn_cell", rnn_cell);
}
// Under vmap too. (vmap_recurrence.cpp has rules for the ops that these call.)
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) {
  m.impl("rnn", rnn);
  m.impl("rnn_cell", rnn_cell);
  m.impl("recurrence_stack", Recurrences::forward<layer_by_layer>);
}

}  // namespace rnnext
