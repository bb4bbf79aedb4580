// Compositions of the recurrence op: a stack of layers as nn.RNN, nn.GRU or nn.LSTM.
#include "ops/layers.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/gru.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "ops/check.h"

namespace rnnext {

Tensor joined(TensorList states, const char* name) {
  const Tensor& first = states[0];
  if (states.size() == 1) return first;
  for (const Tensor& t : states)  // at::cat would promote them
    TORCH_CHECK(t.dtype() == first.dtype(), name, " must be tensors of one dtype, got ",
                dtype_name(first), " and ", dtype_name(t));
  const auto copies = [&](const Tensor& t) {
    return t.is_cpu() && is_plain(t) && t.numel() > 0 && !t.is_neg() && !t._is_zerotensor() &&
           t.is_contiguous() && t.sizes() == first.sizes();
  };
  if (!std::ranges::all_of(states, copies)) return at::cat(states);
  at::DimVector shape(first.sizes());
  shape[0] *= static_cast<int64_t>(states.size());
  Tensor all(at::detail::empty_cpu(shape, first.scalar_type()));
  char* to = static_cast<char*>(all.data_ptr());
  for (const Tensor& t : states) {
    std::memcpy(to, t.const_data_ptr(), t.nbytes());
    to += t.nbytes();
  }
  return all;
}

namespace {

// One tensor for each of a cell's states. (A list on the heap costs a step of a small RNN 2 %.)
using States = c10::SmallVector<Tensor, 2>;

bool is_elsewhere(const Tensor& t) { return !t.is_cpu(); }

// Whether the op for a stack of layers, which exists on the CPU and has no gradient, takes it.
bool stacks(const RnnArguments& a) {
  return a.num_layers > 1 && !a.bidirectional && !drops(a) && !given(a.index) && a.noise.empty() &&
         a.reset_state.empty() && !any_tensor<is_elsewhere>(a) && !any_recorded(a) && !any_dual(a);
}

// The states that episodes begin with, [L * D, B, H] each, if any are given.
std::vector<Tensor> reset_states(const RnnArguments& a, const OptionalTensor& resets) {
  std::vector<Tensor> states = a.reset_state.vec();
  for (Tensor& start : states)
    if (given(resets) && start.dim() == 2)
      start = start.unsqueeze(1).expand_symint(
          {start.sym_size(0), resets->sym_size(1), start.sym_size(1)});
  return states;
}

// Dropout between layers. On the CPU the mask comes from the kernels' random numbers: torch's, one
// at a time, take as long as two layers. (For mapped tensors torch has a rule.)
Tensor dropped(const Tensor& x, double p) {
  if (!x.is_cpu() || transformed(x) || p == 1) return at::dropout(x, p, /*train=*/true);
  const Tensor key = at::randint(std::numeric_limits<int64_t>::max(), {}, at::kLong);
  const bool packed = x.dim() == 2;
  const Tensor mask = call_op<DropoutMaskOp>(key, packed ? 1 : x.sym_size(0), x.sym_size(-2),
                                             x.sym_size(-1), p, x.scalar_type());
  return x * (packed ? mask.squeeze(0) : mask);
}

// Output and last states of the layers; x, state, tokens and resets are time first.
std::tuple<Tensor, std::vector<Tensor>> run_layers(const RnnArguments& a, Tensor x,
                                                   TensorList state, const OptionalTensor& tokens,
                                                   const OptionalTensor& resets) {
  const int64_t D = directions_of(a);
  const Cell cell = parse_cell(a.cell);
  const std::vector<Tensor> first_states = reset_states(a, resets);
  Tensor before;  // the last states of the layer before
  // The noise of each layer depends on a key of its own.
  Tensor keys;
  if (!a.noise.empty() && x.is_cpu())
    keys = given(a.noise_keys)
               ? *a.noise_keys
               : at::randint(std::numeric_limits<int64_t>::max(), {a.num_layers}, at::kLong);
  const int64_t together = stacks(a) ? a.num_layers : 1;  // layers a call
  const int64_t n = together * D;
  const bool whole = a.num_layers == together;
  c10::SmallVector<c10::SmallVector<Tensor, 4>, 2> last(traits_of(cell).states);  // of each layer
  for (int64_t layer = 0; layer < a.num_layers; layer += together) {
    const DirectionWeights weights(a.weights, a.has_biases, layer * D, n);
    const auto of_layer_list = [&](TensorList all) {
      return all.empty() ? all : all.slice(layer * D, n);
    };
    // A table is multiplied with W_ih once, however many rows read it. And where the kernel draws
    // no noise, noise is added to precomputed pre-activations.
    const bool reads_table = given(tokens) && layer == 0;
    const TensorList noise = of_layer_list(a.noise);
    const bool adds_noise = !noise.empty() && !x.is_cpu();
    const bool projects = reads_table || adds_noise;
    // Padding must not reach the gradient of W_ih. (The op refuses lengths of another shape.)
    if (adds_noise && given(a.lengths) && a.lengths->sym_sizes() == x.sym_sizes().slice(1, 1)) {
      const Tensor step = at::arange(x.sym_size(0), a.lengths->options()).view({-1, 1, 1});
      x = at::where(step < a.lengths->unsqueeze(1), x, 0);
    }
    if (projects) x = project(x, weights, cell);
    if (adds_noise) x = at::addcmul(x, at::randn_like(x), at::cat(noise));
    const OptionalTensor key = adds_noise || noise.empty() ? OptionalTensor() : keys[layer];
    // A gated cell's b_hh is not part of the projection.
    const bool keeps_bias = projects && is_gated(cell) && a.has_biases;
    std::vector<Tensor> added;
    if (keeps_bias)
      for (const Tensor& bias : weights.bias_ih) added.push_back(at::zeros_like(bias));
    const auto unless_projected = [&](TensorList list) { return projects ? TensorList() : list; };
    const auto of_layer = [&](TensorList all, const char* name) {
      c10::SmallVector<Tensor, 2> own;
      for (const Tensor& t : all) own.push_back(whole ? t : t.narrow(0, layer * D, n));
      return own.empty() ? std::nullopt : OptionalTensor(joined(own, name));
    };
    OptionalTensor hx = of_layer(state, "hx");
    // A tracer does not know how many sequences are packed: this says: as many as before.
    if (!hx && layer > 0 && given(a.batch_sizes) && before.sym_size(1).is_symbolic())
      hx = at::zeros_like(before);
    const OptionalTensor first = of_layer(first_states, "reset_state"),
                         index = reads_table ? tokens : std::nullopt;
    const RecurrenceArguments call{
        .input = x,
        .hx = hx,
        .weight_ih = unless_projected(weights.ih),
        .weight_hh = weights.hh,
        .bias_ih = keeps_bias ? TensorList(added) : unless_projected(weights.bias_ih),
        .bias_hh = keeps_bias ? weights.bias_hh : unless_projected(weights.bias_hh),
        .index = index,
        .lengths = a.lengths,
        .batch_sizes = a.batch_sizes,
        .reset = resets,
        .reset_state = first,
        .alpha = of_layer_list(a.alpha),
        .cell = a.cell,
        .noise = adds_noise ? TensorList() : noise,
        .noise_key = key,
        .nonlinearity = a.nonlinearity,
        .reverse = directions(D)};
    auto [output, h, saved] =
        together > 1 ? call_forward<RecurrenceStackOp>(call) : call_forward<RecurrenceOp>(call);
    x = std::move(output);
    before = h;
    for (size_t s = 0; s < last.size(); ++s)
      last[s].push_back(last.size() == 1 ? as_result(h) : state_of(h, static_cast<int64_t>(s), n));
    if (drops(a) && layer + 1 < a.num_layers) x = dropped(x, a.dropout);
  }
  std::vector<Tensor> states;
  states.reserve(last.size());
  for (const auto& each : last) states.push_back(each.size() == 1 ? each[0] : at::cat(each));
  return {std::move(x), std::move(states)};
}

// Whether torch's op, which calls cuDNN, takes a call of a cell without kernels for GPUs.
bool calls_torch(const RnnArguments& a) {
  return a.input.is_cuda() && is_gated(parse_cell(a.cell)) && !given(a.index) &&
         !given(a.lengths) && !given(a.reset) && !any_tensor<transformed>(a) && !any_dual(a);
}

std::tuple<Tensor, std::vector<Tensor>> by_torch(const RnnArguments& a, const Tensor& x,
                                                 States states) {
  const Cell cell = parse_cell(a.cell);
  check_cell(a, cell);
  TORCH_CHECK_VALUE(a.reset_state.empty(), "reset_state needs a reset");
  const bool packed = given(a.batch_sizes);
  // (cuDNN has gradients in training alone.)
  const bool train = a.training || any_recorded(a);
  const double dropout = a.training ? a.dropout : 0;
  for (Tensor& h : states) h = h.contiguous();
  if (states.empty()) {
    const c10::SymInt B = packed ? c10::SymInt((*a.batch_sizes)[0].item<int64_t>()) : x.sym_size(1);
    states.assign(traits_of(cell).states, x.new_zeros_symint({a.num_layers * directions_of(a), B,
                                                              a.weights[1].sym_size(1)}));
  }
  const auto call = [&](const auto& op, const auto& hx) {
    return packed ? op(x, *a.batch_sizes, hx, a.weights, a.has_biases, a.num_layers, dropout, train,
                       a.bidirectional)
                  : op(x, hx, a.weights, a.has_biases, a.num_layers, dropout, train,
                       a.bidirectional, /*batch_first=*/false);
  };
  if (cell == Cell::gru) {
    auto [output, h_n] = call([](const auto&... each) { return at::gru(each...); }, states[0]);
    return {std::move(output), {std::move(h_n)}};
  }
  auto [output, h_n, c_n] =
      call([](const auto&... each) { return at::lstm(each...); }, TensorList(states));
  return {std::move(output), {std::move(h_n), std::move(c_n)}};
}

std::tuple<Tensor, std::vector<Tensor>> run(const RnnArguments& a) {
  const Sequences sequences = check_layers(a);
  const OptionalTensor resets = sequences.time_first(a.reset);
  const OptionalTensor tokens = sequences.time_first(a.index);
  const Tensor x = given(a.index) ? a.input : sequences.time_first(a.input);
  States state(a.hx.begin(), a.hx.end());
  if (sequences.unbatched)
    for (Tensor& h : state) h = h.unsqueeze(1);
  auto [output, states] =
      calls_torch(a) ? by_torch(a, x, std::move(state)) : run_layers(a, x, state, tokens, resets);
  if (sequences.unbatched)
    for (Tensor& h : states) h = as_result(h.squeeze(1));
  return {sequences.back(output), std::move(states)};
}

// If nothing is recorded, no operation below needs to ask again.
std::tuple<Tensor, std::vector<Tensor>> run_under_autograd(const RnnArguments& a) {
  return any_recorded(a) || any_dual(a) ? run(a) : below_autograd([&] { return run(a); });
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) { m.impl("rnn", RnnOp::call<run>); }
// Not for the key Autograd: the composite op has a kernel for that, and these precede it.
TORCH_LIBRARY_IMPL(rnnext, AutogradCPU, m) { m.impl("rnn", RnnOp::call<run_under_autograd>); }
TORCH_LIBRARY_IMPL(rnnext, AutogradCUDA, m) { m.impl("rnn", RnnOp::call<run_under_autograd>); }
// Under vmap too. (vmap.cpp has rules for the ops that these call.)
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) {
  m.impl("rnn", RnnOp::call<run>);
  m.impl("recurrence_stack", Recurrences::forward<layer_by_layer>);
}

}  // namespace rnnext
