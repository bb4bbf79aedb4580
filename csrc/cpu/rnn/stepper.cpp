#include "cpu/rnn/stepper.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>

#include "cpu/rnn/binding.h"
#include "cpu/runtime/memory.h"
#include "ops/parse.h"

namespace rnnext {
namespace {

// Its values in memory's order. The kernels read them past torch's dispatcher.
Tensor values_of(const Tensor& t, const char* name) {
  TORCH_CHECK(!t.key_set().has(c10::DispatchKey::Python), name,
              " must be a plain tensor: this one's class overrides what torch does with it");
  return (t.is_neg() ? t.resolve_neg() : t).contiguous();
}

}  // namespace

Stepper::Stepper(const std::vector<Tensor>& params, bool bias, std::string_view nonlinearity,
                 int64_t batch_size) {
  const size_t per_layer = bias ? 4 : 2;
  TORCH_CHECK(!params.empty() && params.size() % per_layer == 0, "params must hold ", per_layer,
              " tensors for each layer, got ", params.size());
  TORCH_CHECK_VALUE(batch_size > 0, "batch_size must be positive, got ", batch_size);
  const Tensor& like = params[1];
  TORCH_CHECK(like.device().is_cpu(), "a Stepper runs on the CPU: the weights are on ",
              like.device());
  kernels_ = &kernels_for(parse_dtype(like, "weight_hh"));
  TORCH_CHECK(like.dim() == 2 && like.size(0) > 0,
              "weight_hh must have shape [H, H] with H > 0, got ", like.sizes());
  const int64_t H = like.size(0), layers = static_cast<int64_t>(params.size() / per_layer);
  states_ = at::zeros({2, layers, batch_size, H}, like.options());
  inner_ = at::empty({batch_size, H}, like.options());
  size_t workspace = 0;
  threads_ = max_threads();
  for (int64_t l = 0; l < layers; ++l) {
    const Tensor* const weights = &params[l * per_layer];
    const int64_t I = l > 0 ? H : weights[0].size(-1);
    check_like(weights[0], "weight_ih", {H, I}, like);
    check_like(weights[1], "weight_hh", {H, H}, like);
    Layer layer;
    Recurrence& call = layer.call;
    call.T = 1;
    call.B = batch_size;
    call.I = I;
    call.H = H;
    call.nonlinearity = parse_nonlinearity(nonlinearity);
    call.input.stride_b = I;
    if (bias) {
      check_like(weights[2], "bias_ih", {H}, like);
      check_like(weights[3], "bias_hh", {H}, like);
      layer.biases =
          at::stack({values_of(weights[2], "bias_ih"), values_of(weights[3], "bias_hh")});
      call.bias_ih[0] = layer.biases.const_data_ptr();
      call.bias_hh[0] = layer.biases[1].const_data_ptr();
    }
    const Tensor weight_ih = values_of(weights[0], "weight_ih");
    const Tensor weight_hh = values_of(weights[1], "weight_hh");
    call.weight_ih[0] = weight_ih.const_data_ptr();
    call.weight_hh[0] = weight_hh.const_data_ptr();
    const auto bytes = static_cast<int64_t>(kernels_->packed_bytes(call));
    layer.packed = empty_large({bytes}, at::kByte);
    kernels_->pack(call, static_cast<char*>(layer.packed.data_ptr()));
    call.packed = layer.packed.const_data_ptr();
    call.weight_ih[0] = call.weight_hh[0] = nullptr;
    call.hx = call.packed;  // any will do to ask for the size
    workspace = std::max(workspace, kernels_->forward_workspace(call, threads_));
    layers_.push_back(std::move(layer));
  }
  workspace_ = empty_large({static_cast<int64_t>(workspace)}, at::kByte);
}

char* Stepper::state_of(int which, int64_t layer) const {
  const int64_t bytes = inner_.numel() * inner_.element_size();
  const auto layers = static_cast<int64_t>(layers_.size());
  return static_cast<char*>(states_.data_ptr()) + (which * layers + layer) * bytes;
}

Tensor Stepper::step(const Tensor& input) {
  const Recurrence& first = layers_.front().call;
  const int64_t B = first.B, H = first.H;
  const bool one_row = input.dim() == 1 && B == 1;
  TORCH_CHECK(one_row ? input.size(0) == first.I
                      : input.dim() == 2 && input.size(0) == B && input.size(1) == first.I,
              "input must have shape [", B, ", ", first.I, "]", B == 1 ? " or " : "",
              B == 1 ? c10::str("[", first.I, "]") : "", ", got ", input.sizes());
  TORCH_CHECK(input.scalar_type() == states_.scalar_type(), "input must have the weights' dtype, ",
              dtype_name(states_), ", got ", dtype_name(input));
  TORCH_CHECK(input.device().is_cpu(), "input must be on the CPU, got ", input.device());
  TORCH_CHECK(!(input.requires_grad() && at::GradMode::is_enabled()),
              "a Stepper has no gradient: call it under torch.no_grad(), or use the RNN itself");
  const Tensor rows = values_of(input, "input");
  const int64_t shape[2] = {B, H};
  const Tensor output =
      at::detail::empty_cpu(at::IntArrayRef(shape + one_row, shape + 2), states_.scalar_type());
  const void* features = rows.const_data_ptr();
  for (size_t l = 0; l < layers_.size(); ++l) {
    Recurrence call = layers_[l].call;
    call.input.data = call.I > 0 ? features : nullptr;
    call.hx = state_of(last_, l);
    call.h_n = state_of(1 - last_, l);
    call.output = l + 1 < layers_.size() ? inner_.data_ptr() : output.data_ptr();
    features = call.h_n;
    char* const workspace = static_cast<char*>(workspace_.data_ptr());
    run_team(std::min(threads_for(call, 1), threads_),
             [&](Worker& worker) { kernels_->forward(call, workspace, worker); });
  }
  last_ = 1 - last_;
  return output;
}

// Copies of bytes, not of tensors: a Stepper made in inference mode may be used outside of it.
Tensor Stepper::state() const {
  const Tensor state = at::empty(states_.sizes().slice(1), states_.scalar_type());
  std::memcpy(state.data_ptr(), state_of(last_, 0), state.nbytes());
  return state;
}

void Stepper::set_state(const Tensor& state) {
  const auto shape = states_.sizes().slice(1);
  TORCH_CHECK(state.sizes() == shape, "state must have shape ", shape, ", got ", state.sizes());
  TORCH_CHECK(state.scalar_type() == states_.scalar_type(), "state must have the weights' dtype, ",
              dtype_name(states_), ", got ", dtype_name(state));
  TORCH_CHECK(state.device().is_cpu(), "state must be on the CPU, got ", state.device());
  const Tensor rows = values_of(state, "state");
  std::memcpy(state_of(last_, 0), rows.const_data_ptr(), rows.nbytes());
}

void Stepper::reset() { std::memset(state_of(last_, 0), 0, states_.nbytes() / 2); }

}  // namespace rnnext
