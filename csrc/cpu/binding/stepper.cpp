#include "cpu/binding/stepper.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TracerMode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace rnnext {
namespace {

// A contiguous tensor with the same values. (Kernels read them without torch's dispatcher.)
Tensor values_of(const Tensor& t, const char* name) {
  const bool plain = !t.key_set().has(c10::DispatchKey::Python) && t.has_storage() &&
                     (t.numel() == 0 || t.unsafeGetTensorImpl()->unsafe_storage().data()) &&
                     !at::tracer::impl::is_dispatch_enabled();
  TORCH_CHECK(plain, name,
              " must be a plain tensor with its values in memory, not one of a class that "
              "overrides torch's operations, nor one that torch.func or torch.jit.trace holds");
  return (t.is_neg() ? t.resolve_neg() : t).contiguous();
}

void check_values(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the weights' dtype, ",
              dtype_name(like), ", got ", dtype_name(t));
  TORCH_CHECK(t.device().is_cpu(), name, " must be on the CPU, got ", t.device());
  TORCH_CHECK(!(t.requires_grad() && at::GradMode::is_enabled()),
              "a Stepper has no gradient: call it under torch.no_grad(), or use the RNN itself");
  TORCH_CHECK(!t._fw_grad(/*level=*/0).defined(),
              "a Stepper has no forward-mode derivative: use the RNN itself");
}

}  // namespace

Stepper::Stepper(const std::vector<Weights>& layers, const OptionalTensor& table,
                 const std::vector<NamedTensor>& watched, std::string_view nonlinearity,
                 std::string_view cell, int64_t batch_size) {
  TORCH_CHECK(!layers.empty(), "layers must not be empty");
  TORCH_CHECK_VALUE(batch_size > 0, "batch_size must be positive, got ", batch_size);
  const OptionalTensor& first = std::get<1>(layers[0]);
  TORCH_CHECK(given(first), "weight_hh must be a tensor, got none");
  const Tensor& like = *first;
  TORCH_CHECK(like.device().is_cpu(), "a Stepper runs on the CPU: the weights are on ",
              like.device());
  check_matrix(like, parse_cell(cell));
  TORCH_CHECK(like.size(1) > 0, "weight_hh must have hidden units, got shape ", like.sizes());
  const auto L = static_cast<int64_t>(layers.size());
  const int64_t S = traits_of(parse_cell(cell)).states;
  states_ = at::zeros({2, S, L, batch_size, like.size(1)}, like.options());
  inner_ = at::empty({2, batch_size, like.size(1)}, like.options());
  threads_ = max_threads();
  for (const Weights& weights : layers) add_layer(weights, nonlinearity, cell);
  if (given(table)) {
    check_like(*table, "table", {table->size(0), layers_.front().call.p.input.stride_b}, like);
    table_ = values_of(*table, "table");
    // A table that W_ih is part of was made for this Stepper.
    if (!given(std::get<0>(layers[0]))) table_ = shared(std::move(table_));
    tokens_.resize(batch_size);
  }
  for (const auto& [name, tensor] : watched)
    if (tensor.has_storage())
      seen_.push_back(
          {name, tensor, tensor.storage(), Seen::version_of(tensor), Seen::sample_of(tensor)});
}

void Stepper::add_layer(const Weights& weights, std::string_view nonlinearity,
                        std::string_view cell) {
  const auto& [weight_ih, weight_hh, bias_ih, bias_hh, alpha, noise, noise_key] = weights;
  const auto listed = [](const OptionalTensor& t, const char* name, bool copied = true) {
    std::vector<Tensor> list;
    if (given(t)) list.push_back(copied ? values_of(*t, name).clone() : values_of(*t, name));
    return list;
  };
  const int64_t B = states_.size(3), H = states_.size(4);
  const int64_t width = !layers_.empty()   ? H
                        : given(weight_ih) ? weight_ih->size(-1)
                                           : traits_of(parse_cell(cell)).gates * H;
  // Each step has its own input and state, of these shapes.
  KeptArguments arguments{.input = at::zeros({1, B, width}, states_.options()),
                          .hx = states_[0].select(/*dim=*/1, 0),
                          .weight_ih = listed(weight_ih, "weight_ih", false),
                          .weight_hh = listed(weight_hh, "weight_hh", false),
                          .bias_ih = listed(bias_ih, "bias_ih"),
                          .bias_hh = listed(bias_hh, "bias_hh"),
                          .alpha = listed(alpha, "alpha"),
                          .cell = std::string(cell),
                          .noise = listed(noise, "noise"),
                          .noise_key = noise_key,
                          .nonlinearity = std::string(nonlinearity),
                          .reverse = directions(1)};
  CpuCall call(arguments);
  Recurrence& p = call.p;
  p.layers = static_cast<int>(states_.size(2));
  p.packed_weights = &call;                // the choice of kernels asks only whether there are any
  kernels_ = &kernels_for(call.dtype, p);  // the same for each layer
  const Tensor packed = empty_large({kernels_->shape.weight_bytes(p.I, p.H, p.gates())}, at::kByte);
  kernels_->pack(p, static_cast<char*>(packed.data_ptr()));
  p.packed_weights = call.keep(shared(packed));
  p.weight_ih[0] = p.weight_hh[0] = nullptr;
  arguments.weight_ih = arguments.weight_hh = {};
  Teams teams = forward_teams(p, *kernels_, threads_);
  reserve(teams.bytes);
  layers_.push_back({std::move(arguments), std::move(call), std::move(teams)});
}

void Stepper::reserve(size_t bytes) {
  const auto size = static_cast<int64_t>(bytes);
  if (!workspace_.defined() || workspace_.numel() < size)
    workspace_ = empty_large({size}, at::kByte);
}

uint64_t Stepper::Seen::sample_of(const Tensor& tensor) {
  const c10::TensorImpl& t = *tensor.unsafeGetTensorImpl();
  const c10::Storage& storage = t.unsafe_storage();
  const bool dense = t.is_contiguous();
  int64_t middle = t.storage_offset() + (dense ? t.numel() / 2 : 0);
  for (int64_t d = 0; !dense && d < t.dim(); ++d) middle += t.size(d) / 2 * t.stride(d);
  const size_t size = t.itemsize(), place = middle * size;
  uint64_t sample = ~uint64_t{0};
  if (tensor.is_cpu() && storage.data() && place + size <= storage.nbytes())
    std::memcpy(&sample, static_cast<const char*>(storage.data()) + place,
                std::min(size, sizeof sample));
  return sample;
}

Tensor Stepper::check_features(const Tensor& input, int64_t B) const {
  const int64_t I = layers_.front().call.p.I;
  TORCH_CHECK(input.dim() == 1 && B == 1
                  ? input.size(0) == I
                  : input.dim() == 2 && input.size(0) == B && input.size(1) == I,
              "input must have shape [", B, ", ", I, "]", B == 1 ? " or " : "",
              B == 1 ? c10::str("[", I, "]") : "", ", got ", input.sizes());
  check_values(input, "input", states_);
  return values_of(input, "input");
}

void Stepper::read_tokens(const Tensor& input, int64_t B) {
  const int64_t V = table_.size(0);
  TORCH_CHECK_TYPE(input.scalar_type() == at::kLong || input.scalar_type() == at::kInt,
                   "tokens must be int32 or int64, got ", dtype_name(input));
  TORCH_CHECK(input.dim() == 0 ? B == 1 : input.dim() == 1 && input.size(0) == B,
              "tokens must have shape [", B, "]", B == 1 ? " or []" : "", ", got ", input.sizes());
  TORCH_CHECK(input.device().is_cpu(), "tokens must be on the CPU, got ", input.device());
  const Tensor tokens = values_of(input, "tokens");
  const void* const data = tokens.const_data_ptr();
  const bool wide = tokens.scalar_type() == at::kLong;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t token =
        wide ? static_cast<const int64_t*>(data)[b] : static_cast<const int32_t*>(data)[b];
    TORCH_CHECK_INDEX(token >= 0 && token < V, "tokens[", b, "] = ", token,
                      " is out of range: expected 0 <= token < ", V);
    tokens_[b] = token;
  }
}

// One step of all layers and B sequences, from the states at `from` to `to`; they must not overlap.
Tensor Stepper::advance(const Tensor& input, int64_t B, const char* from, char* to) {
  for (const Seen& seen : seen_)
    TORCH_CHECK(!seen.changed(), seen.name,
                " has changed since this Stepper read it: call refresh()");
  const bool reads_table = table_.defined(), one_row = input.dim() == (reads_table ? 0 : 1);
  if (reads_table) read_tokens(input, B);
  const Tensor features = reads_table ? Tensor() : check_features(input, B);
  const int64_t shape[2] = {B, states_.size(4)};
  Tensor output =
      at::detail::empty_cpu(at::IntArrayRef(shape + one_row, shape + 2), states_.scalar_type());
  char* const inner = static_cast<char*>(inner_.data_ptr());
  const int64_t bytes = state_bytes() / batch() * B;
  const void* rows = reads_table ? table_.const_data_ptr() : features.const_data_ptr();
  for (size_t l = 0; B > 0 && l < layers_.size(); ++l, from += bytes, to += bytes) {
    Recurrence call = layers_[l].call.p;
    call.B = B;
    if (call.input.stride_b > 0) call.input.data = rows;
    if (l == 0 && reads_table) call.input.index = tokens_.data();
    call.hx = from;
    call.h_n = to;
    call.noise_keys = &layers_[l].call.noise_keys;
    call.first_step = steps_;
    call.output = l + 1 < layers_.size() ? inner + l % 2 * bytes : output.data_ptr();
    rows = call.output;
    std::optional<Teams<ForwardPlan>> fewer;
    if (B < batch()) fewer = forward_teams(call, *kernels_, threads_);
    const Teams<ForwardPlan>& teams = fewer ? *fewer : layers_[l].teams;
    reserve(teams.bytes);
    char* const workspace = static_cast<char*>(workspace_.data_ptr());
    teams.run(std::min(plan_threads(call, 1, max_threads()), teams.threads()), [&](Worker& worker) {
      kernels_->forward(call, teams.of(worker), workspace, worker);
    });
  }
  ++steps_;
  return output;
}

Tensor Stepper::step(const Tensor& input) {
  Tensor output = advance(input, batch(), state_of(last_), state_of(1 - last_));
  last_ = 1 - last_;
  return output;
}

std::pair<Tensor, std::vector<Tensor>> Stepper::step_from(const Tensor& input, TensorList states) {
  const int64_t B = states[0].dim() == 3 ? std::min(states[0].size(1), batch()) : batch();
  const Tensor from = check_states(states, B);
  const Tensor to(at::detail::empty_cpu(from.sizes(), from.scalar_type()));
  char* const next = static_cast<char*>(to.data_ptr());
  Tensor output = advance(input, B, static_cast<const char*>(from.const_data_ptr()), next);
  return {std::move(output), state_count() > 1 ? for_caller(next, B) : std::vector<Tensor>{to}};
}

// A caller has a tensor for each state of a cell, as a module returns them.
std::vector<Tensor> Stepper::for_caller(const char* from, int64_t B) const {
  std::vector<Tensor> states;
  for (int64_t s = 0; s < state_count(); ++s, from += states.back().nbytes()) {
    states.emplace_back(
        at::detail::empty_cpu({states_.size(2), B, states_.size(4)}, states_.scalar_type()));
    std::memcpy(states.back().data_ptr(), from, states.back().nbytes());
  }
  return states;
}
Tensor Stepper::check_states(TensorList states, int64_t B) const {
  const int64_t S = state_count(), shape[] = {states_.size(2), B, states_.size(4)};
  const auto name = [S](int64_t s) { return S > 1 ? c10::str("state[", s, "]") : "state"; };
  for (int64_t s = 0; s < S; ++s)
    TORCH_CHECK(states[s].sizes() == shape, name(s), " must have shape ", at::IntArrayRef(shape),
                ", got ", states[s].sizes());
  Tensor all;
  if (S > 1) all = at::detail::empty_cpu({S, shape[0], B, shape[2]}, states_.scalar_type());
  for (int64_t s = 0; s < S; ++s) {
    check_values(states[s], name(s).c_str(), states_);
    const Tensor values = values_of(states[s], name(s).c_str());
    if (S == 1) return values;
    std::memcpy(static_cast<char*>(all.data_ptr()) + s * values.nbytes(), values.const_data_ptr(),
                values.nbytes());
  }
  return all;
}

// Bytes are copied, not tensors: a Stepper made in inference mode may be used outside of it.
std::vector<Tensor> Stepper::get_states() const { return for_caller(state_of(last_), batch()); }

void Stepper::set_states(TensorList states) {
  const at::NoGradGuard no_grad;  // they may require a gradient
  const Tensor values = check_states(states, batch());
  std::memcpy(state_of(last_), values.const_data_ptr(), values.nbytes());
}

void Stepper::reset() { std::memset(state_of(last_), 0, states_.nbytes() / 2); }

void Stepper::reset(const Tensor& mask) {
  const int64_t B = states_.size(3), bytes = state_bytes() / B;
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "mask must be a bool tensor, got ",
                   dtype_name(mask));
  TORCH_CHECK_VALUE(mask.dim() == 1 && mask.size(0) == B, "mask must have shape [", B, "], got ",
                    mask.sizes());
  TORCH_CHECK_VALUE(mask.device().is_cpu(), "mask must be on the CPU, got ", mask.device());
  const Tensor values = values_of(mask, "mask");
  const bool* const ended = values.const_data_ptr<bool>();
  char* row = state_of(last_);
  for (int64_t i = 0; i < states_.size(1) * states_.size(2) * B; ++i, row += bytes)
    if (ended[i % B]) std::memset(row, 0, bytes);
}

}  // namespace rnnext
