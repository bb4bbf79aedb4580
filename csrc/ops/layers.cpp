// Compositions of the recurrence op: a stack of layers as nn.RNN, nn.GRU or nn.LSTM, one step as
// their cells; and Autocast, which is for these.
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/native/Math.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "ops/autograd.h"
#include "ops/cell.h"
#include "ops/check.h"
#include "ops/signatures.h"
#include "recurrence/nonlinearity.h"

namespace rnnext {
namespace {

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

// The weights of n directions from the first on, be they of one layer or of several: each list in
// their order. `weights` must outlive it.
class DirectionWeights {
 public:
  DirectionWeights(TensorList weights, bool has_biases, int64_t first, int64_t n) {
    TensorList* const lists[] = {&ih, &hh, &bias_ih, &bias_hh};
    const size_t each = has_biases ? 4 : 2;
    for (size_t i = 0; i < each; ++i) {
      *lists[i] = weights.slice(first * each + i, 1);
      if (n == 1) continue;
      for (int64_t d = first; d < first + n; ++d) own_[i].push_back(weights[d * each + i]);
      *lists[i] = own_[i];
    }
  }
  DirectionWeights(const DirectionWeights&) = delete;

  TensorList ih, hh, bias_ih, bias_hh;

 private:
  c10::SmallVector<Tensor, 2> own_[4];
};

// Rows times W_ih and the biases on the CPU, each direction beside the other. This is one step of
// as many sequences from a state of zeros. Its sums are those that a step of the recurrence begins
// with, to the bit and on any number of threads. W_hh only tells H.
Tensor project_step(const Tensor& x, TensorList ih, TensorList hh, TensorList bias_ih,
                    TensorList bias_hh) {
  const size_t D = hh.size();
  const Tensor unread[2] = {hh[0].detach(), D > 1 ? hh[1].detach() : Tensor()};
  const Tensor step = x.unsqueeze(0);
  const RecurrenceArguments a{.input = step,
                              .weight_ih = ih,
                              .weight_hh = {unread, D},
                              .bias_ih = bias_ih,
                              .bias_hh = bias_hh,
                              .cell = "elman",
                              .nonlinearity = "identity",
                              .reverse = directions(static_cast<int64_t>(D))};
  return std::get<0>(call_forward<RecurrenceOp>(a)).squeeze(0);
}

// A layer's precomputed input: its rows times W_ih and the biases, or, for a gated cell, b_ih.
Tensor project(const Tensor& x, const DirectionWeights& of, Cell cell) {
  const size_t D = of.hh.size();
  const bool has_biases = !of.bias_ih.empty(), gated = is_gated(cell);
  if (x.is_cpu()) {
    if (x.dim() == 3) {
      const Tensor rows = project(x.flatten(0, 1), of, cell);
      return rows.view_symint({x.sym_size(0), x.sym_size(1), rows.sym_size(1)});
    }
    if (!gated) return project_step(x, of.ih, of.hh, of.bias_ih, of.bias_hh);
    std::vector<Tensor> gates;
    const int64_t G = traits_of(cell).gates;
    for (int64_t g = 0; g < G; ++g) {
      const auto gate = [&](TensorList all) {
        std::vector<Tensor> own;
        for (const Tensor& t : all) own.push_back(t.chunk(G)[g]);
        return own;
      };
      const std::vector<Tensor> bias = gate(of.bias_ih);
      std::vector<Tensor> none;
      for (const Tensor& t : bias) none.push_back(at::zeros_like(t));
      const Tensor rows = project_step(x, gate(of.ih), gate(of.hh), bias, none);
      gates.push_back(rows.unflatten(-1, {static_cast<int64_t>(D), -1}));
    }
    return at::stack(gates, -2).flatten(1);
  }
  Tensor parts[2];
  for (size_t d = 0; d < D; ++d) {
    const OptionalTensor bias = !has_biases ? OptionalTensor()
                                : gated     ? of.bias_ih[d]
                                            : OptionalTensor(of.bias_ih[d] + of.bias_hh[d]);
    parts[d] = at::linear(x, of.ih[d], bias);
  }
  return D == 1 ? parts[0] : at::cat({parts[0], parts[1]}, -1);
}

// at::dropout while training. On the CPU it takes the kernels' normal numbers, of which it keeps
// those above a quantile: torch's own generator draws one number at a time, which takes as long as
// two layers. (What is mapped has a rule of torch's.)
Tensor dropped(const Tensor& x, double p) {
  if (!x.is_cpu() || transformed(x) || p == 1) return at::dropout(x, p, /*train=*/true);
  const Tensor key = at::randint(std::numeric_limits<int64_t>::max(), {}, at::kLong);
  const bool packed = x.dim() == 2;
  Tensor numbers =
      call_op<NoiseOp>(key, packed ? 1 : x.sym_size(0), x.sym_size(-2), 1, x.sym_size(-1));
  if (packed) numbers = numbers.squeeze(0);
  const double quantile = std::sqrt(2) * calc_erfinv(2 * p - 1);
  return x * numbers.gt_(quantile).to(x.scalar_type()).mul_(1 / (1 - p));
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
  Tensor states_back(const Tensor& h) const { return unbatched ? as_result(h.squeeze(1)) : h; }
};

int64_t directions_of(const RnnArguments& a) { return a.bidirectional ? 2 : 1; }
bool drops(const RnnArguments& a) { return a.dropout > 0 && a.training; }

// Checks the states, and names the shapes that the caller gave. B is not known of packed sequences.
// (Those of an LSTM are pairs.)
void check_states(const RnnArguments& a, const Sequences& sequences, std::optional<c10::SymInt> B) {
  const size_t each = traits_of(parse_cell(a.cell)).states;
  check_count(a.hx, "hx", each);
  check_count(a.reset_state, "reset_state", each);
  const Tensor& like = a.weights[1];
  if (!like.defined() || like.dim() != 2) return;  // left to the op to refuse
  const c10::SymInt H = like.sym_size(1);
  const int64_t states = a.num_layers * directions_of(a);
  const auto fits = [&](const Tensor& t, bool batched) {
    const c10::SymIntArrayRef got = t.sym_sizes();
    return got.size() == (batched ? 3 : 2) && got[0] == states && got.back() == H &&
           (!batched || !B || got[1] == *B);
  };
  const auto shape = [&](bool batched) {
    return c10::str("[", states, !batched ? "" : B ? c10::str(", ", *B) : ", B", ", ", H, "]");
  };
  const bool batched = !sequences.unbatched;
  const auto place = [&](size_t s) { return each > 1 ? c10::str("[", s, "]") : ""; };
  for (size_t s = 0; s < a.hx.size(); ++s)
    TORCH_CHECK(fits(a.hx[s], batched), "hx", place(s), " must have shape ", shape(batched),
                ", got ", a.hx[s].sym_sizes());
  for (size_t s = 0; s < a.reset_state.size(); ++s) {
    const Tensor& start = a.reset_state[s];
    TORCH_CHECK_VALUE(fits(start, false) || (batched && fits(start, true)), "reset_state", place(s),
                      " must have shape ", shape(false), batched ? " or " + shape(true) : "",
                      ", got ", start.sym_sizes());
  }
}

// Checks what the ops of one layer cannot, as they are given neither layers nor batch_first.
Sequences check(const RnnArguments& a) {
  const int64_t D = directions_of(a), per_direction = a.has_biases ? 4 : 2;
  const auto n = static_cast<int64_t>(a.weights.size());  // which the product below may not pass
  TORCH_CHECK(a.num_layers > 0 && a.num_layers <= n && n == a.num_layers * D * per_direction,
              "weights must hold ", per_direction, " tensors for each of ", a.num_layers,
              " layers and ", D, " directions, got ", n);
  TORCH_CHECK(a.dropout >= 0 && a.dropout <= 1, "dropout must be between 0 and 1, got ", a.dropout);
  for (const auto& [name, list] : {std::pair("alpha", a.alpha), std::pair("noise", a.noise)})
    TORCH_CHECK(list.empty() || static_cast<int64_t>(list.size()) == a.num_layers * D, name,
                " must hold a tensor for each of ", a.num_layers, " layers and ", D,
                " directions, or none, got ", list.size());
  const bool packed = given(a.batch_sizes), table = given(a.index);
  const Tensor& rows = table ? *a.index : a.input;
  const int64_t dims = rows.dim() + table;  // as if the rows were features
  TORCH_CHECK(dims == 2 || (dims == 3 && !packed), table ? "index" : "input", " must have ",
              2 - table, " or ", 3 - table, " dimensions (", 2 - table, " if packed), got ",
              rows.dim());
  const Sequences sequences{dims == 2 && !packed, a.batch_first && !packed};
  TORCH_CHECK_VALUE(!(given(a.lengths) && (sequences.unbatched || packed)),
                    "lengths needs a 3-D input: one sequence or a packed input has its own");
  if (given(a.reset)) {
    TORCH_CHECK_VALUE(!packed, "reset must not be given with a packed input");
    const c10::SymIntArrayRef steps = rows.sym_sizes().slice(0, dims - 1);
    TORCH_CHECK_VALUE(a.reset->sym_sizes() == steps, "reset must have shape ", steps, ", got ",
                      a.reset->sym_sizes());
  }
  TORCH_CHECK(rows.sym_size(sequences.batch_first && !sequences.unbatched) > 0,
              "Expected sequence length to be larger than 0 in RNN");
  std::optional<c10::SymInt> B;
  if (!packed && !sequences.unbatched) B = rows.sym_size(sequences.batch_first ? 0 : 1);
  check_states(a, sequences, B);
  TORCH_CHECK(!table || a.noise.empty(), "noise must not be given with an index: it is not shared");
  return sequences;
}

bool is_elsewhere(const Tensor& t) { return !t.is_cpu(); }

// Whether the op for a whole stack of layers, which is the CPU's and has no gradient, takes it.
bool stacks(const RnnArguments& a) {
  return a.num_layers > 1 && !a.bidirectional && !drops(a) && !given(a.index) && a.noise.empty() &&
         a.reset_state.empty() && !any_tensor<is_elsewhere>(a) && !any_recorded(a) && !any_dual(a);
}

// The states that episodes begin with, [L * D, B, H] each, if there are resets.
std::vector<Tensor> reset_states(const RnnArguments& a, const OptionalTensor& resets) {
  std::vector<Tensor> states = a.reset_state.vec();
  for (Tensor& start : states)
    if (given(resets) && start.dim() == 2)
      start = start.unsqueeze(1).expand_symint(
          {start.sym_size(0), resets->sym_size(1), start.sym_size(1)});
  return states;
}

// Output and last states of the layers; x, state, tokens and resets are time first.
std::tuple<Tensor, std::vector<Tensor>> run_layers(const RnnArguments& a, Tensor x,
                                                   TensorList state, const OptionalTensor& tokens,
                                                   const OptionalTensor& resets) {
  const int64_t D = directions_of(a);
  const Cell cell = parse_cell(a.cell);
  const std::vector<Tensor> first_states = reset_states(a, resets);
  // The noise of each layer depends on a key of its own.
  Tensor keys;
  if (!a.noise.empty() && x.is_cpu())
    keys = at::randint(std::numeric_limits<int64_t>::max(), {a.num_layers}, at::kLong);
  const int64_t together = stacks(a) ? a.num_layers : 1;  // layers a call
  const int64_t n = together * D;
  const bool whole = a.num_layers == together;
  std::vector<std::vector<Tensor>> last(traits_of(cell).states);  // of each layer
  for (int64_t layer = 0; layer < a.num_layers; layer += together) {
    const DirectionWeights weights(a.weights, a.has_biases, layer * D, n);
    const auto of_layer_list = [&](TensorList all) {
      return all.empty() ? all : all.slice(layer * D, n);
    };
    // A table is multiplied with W_ih once, whatever the number of its readers; and where the
    // kernel draws no noise, it is added to pre-activations, which are made for it.
    const bool reads_table = given(tokens) && layer == 0;
    const TensorList noise = of_layer_list(a.noise);
    const bool adds_noise = !noise.empty() && !x.is_cpu();
    const bool projects = reads_table || adds_noise;
    if (projects) x = project(x, weights, cell);
    if (adds_noise) x = at::addcmul(x, at::randn_like(x), at::cat(noise));
    OptionalTensor key;
    if (!noise.empty() && !adds_noise) key = keys.select(0, layer);
    // A gated cell's b_hh is no part of the projection.
    const bool keeps_bias = projects && is_gated(cell) && a.has_biases;
    std::vector<Tensor> added;
    if (keeps_bias)
      for (const Tensor& bias : weights.bias_ih) added.push_back(at::zeros_like(bias));
    const auto unless_projected = [&](TensorList list) { return projects ? TensorList() : list; };
    const auto of_layer = [&](TensorList all) {
      std::vector<Tensor> own;
      for (const Tensor& t : all) own.push_back(whole ? t : t.narrow(0, layer * D, n));
      return own.empty() ? std::nullopt : OptionalTensor(own.size() == 1 ? own[0] : at::cat(own));
    };
    const OptionalTensor hx = of_layer(state), first = of_layer(first_states),
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
    for (size_t s = 0; s < last.size(); ++s)
      last[s].push_back(last.size() == 1 ? h : h.narrow(0, static_cast<int64_t>(s) * n, n));
    if (drops(a) && layer + 1 < a.num_layers) x = dropped(x, a.dropout);
  }
  std::vector<Tensor> states;
  for (const std::vector<Tensor>& each : last)
    states.push_back(each.size() == 1 ? as_result(each[0]) : at::cat(each));
  return {x, states};
}

std::tuple<Tensor, std::vector<Tensor>> run(const RnnArguments& a) {
  const Sequences sequences = check(a);
  const bool table = given(a.index);
  const OptionalTensor resets = sequences.time_first(a.reset);
  const OptionalTensor tokens = sequences.time_first(a.index);
  const Tensor x = table ? a.input : sequences.time_first(a.input);
  std::vector<Tensor> state = a.hx.vec();
  if (sequences.unbatched)
    for (Tensor& h : state) h = h.unsqueeze(1);
  auto [output, states] = run_layers(a, x, state, tokens, resets);
  for (Tensor& h : states) h = sequences.states_back(h);
  return {sequences.back(output), std::move(states)};
}

// Where nothing is recorded, none of the operations below needs to ask again.
std::tuple<Tensor, std::vector<Tensor>> run_under_autograd(const RnnArguments& a) {
  std::optional<at::AutoDispatchBelowADInplaceOrView> below;
  if (!any_recorded(a) && !any_dual(a)) below.emplace();
  return run(a);
}

}  // namespace

CellStep::CellStep(const CellArguments& a) : a_(a) {
  TORCH_CHECK(a.input.dim() == 1 || a.input.dim() == 2, "input must have 1 or 2 dimensions, got ",
              a.input.dim());
  check_count(a.hx, "hx", traits_of(parse_cell(a.cell)).states);
  for (const Tensor& h : a.hx)
    TORCH_CHECK(h.dim() == a.input.dim(), "hx must have as many dimensions as input, ",
                a.input.dim(), ", got ", h.dim());
  input_ = as_step(a.input);
  hx_ = stacked(a.hx);
  if (given(a.bias_ih)) biases_[0] = *a.bias_ih;
  if (given(a.bias_hh)) biases_[1] = *a.bias_hh;
  for (int i = 0; i < 2; ++i)  // one that is missing beside the other is zeros
    if (!biases_[i].defined() && biases_[1 - i].defined())
      biases_[i] = at::zeros_like(biases_[1 - i]);
}

OptionalTensor CellStep::stacked(TensorList states) const {
  if (states.size() == 1)
    return states[0].defined() ? OptionalTensor(as_step(states[0])) : std::nullopt;
  const auto* const one = std::ranges::find_if(states, &Tensor::defined);
  if (one == states.end()) return std::nullopt;
  std::vector<Tensor> each;
  for (const Tensor& t : states) each.push_back(as_step(t.defined() ? t : at::zeros_like(*one)));
  return at::cat(each);
}

std::vector<Tensor> CellStep::states_of(const Tensor& h_n) const {
  const int64_t S = traits_of(parse_cell(a_.cell)).states;
  if (S == 1) return {from_step(h_n, a_.input)};
  std::vector<Tensor> states;
  for (int64_t s = 0; s < S; ++s) states.push_back(from_step(h_n.narrow(0, s, 1), a_.input));
  return states;
}

std::vector<Tensor> rnn_cell(const CellArguments& a) {
  const CellStep step(a);
  const auto results = call_forward<RecurrenceOp>(step.arguments());
  std::vector<Tensor> states = step.states_of(std::get<1>(results));
  for (Tensor& h : states) h = as_result(h);
  return states;
}

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn", RnnOp::call<run>);
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
}
// Not Autograd: the composite op has a kernel for that, and these come before it.
TORCH_LIBRARY_IMPL(rnnext, AutogradCPU, m) { m.impl("rnn", RnnOp::call<run_under_autograd>); }
TORCH_LIBRARY_IMPL(rnnext, AutogradCUDA, m) { m.impl("rnn", RnnOp::call<run_under_autograd>); }
// Under vmap too. (vmap.cpp has rules for the ops that these call.)
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) {
  m.impl("rnn", RnnOp::call<run>);
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
  m.impl("recurrence_stack", Recurrences::forward<layer_by_layer>);
}

// Autocast: as torch.nn's RNN, the modules' ops run in the autocast dtype.
namespace {

// Casts floating tensors to the autocast dtype of one device type; weights come from autocast's
// cache. All else passes as it is.
template <c10::DeviceType device>
void cast_and_call(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_lower_precision_fp_from_device_type(device);
  const size_t n = op.schema().arguments().size();
  for (c10::IValue* value = &*stack->end() - n; value != &*stack->end(); ++value) {
    if (value->isTensor()) {
      *value = at::autocast::cached_cast(dtype, value->toTensor(), device);
    } else if (value->isTensorList()) {
      *value = at::autocast::cached_cast(dtype, TensorList(value->toTensorVector()), device);
    }
  }
  op.callBoxed(stack);
}

template <c10::DeviceType device>
void define_autocast(torch::Library& m) {
  for (const char* const name : {"recurrence", "recurrence_ensemble", "rnn", "rnn_cell"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<cast_and_call<device>>());
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, AutocastCPU, m) { define_autocast<c10::kCPU>(m); }
TORCH_LIBRARY_IMPL(rnnext, AutocastCUDA, m) { define_autocast<c10::kCUDA>(m); }

}  // namespace rnnext
