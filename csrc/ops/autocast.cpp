// The Autocast keys: as torch.nn's RNN, the modules' ops run in the autocast dtype.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/signatures.h"

namespace rnnext {
namespace {

// Casts to the autocast dtype of one device type; weights come from autocast's cache.
template <c10::DeviceType device>
struct Cast {
  at::ScalarType dtype = at::autocast::get_lower_precision_fp_from_device_type(device);

  Tensor operator()(const Tensor& t) const { return at::autocast::cached_cast(dtype, t, device); }
  OptionalTensor operator()(const OptionalTensor& t) const {
    return given(t) ? OptionalTensor((*this)(*t)) : std::nullopt;
  }
  std::vector<Tensor> operator()(TensorList list) const {
    std::vector<Tensor> cast;
    for (const Tensor& t : list) cast.push_back((*this)(t));
    return cast;
  }
};

template <c10::DeviceType device>
c10::impl::ExcludeDispatchKeyGuard without_autocast() {
  return c10::impl::ExcludeDispatchKeyGuard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
}

template <c10::DeviceType device>
std::tuple<Tensor, Tensor> rnn(const Tensor& input, const OptionalTensor& hx, TensorList params,
                               bool has_biases, int64_t num_layers, double dropout, bool train,
                               bool bidirectional, bool batch_first, c10::string_view nonlinearity,
                               const OptionalTensor& lengths, const OptionalTensor& batch_sizes) {
  static const auto op = find_op<RnnOp>("rnnext::rnn");
  const auto guard = without_autocast<device>();
  const Cast<device> cast;
  return op.call(cast(input), cast(hx), cast(params), has_biases, num_layers, dropout, train,
                 bidirectional, batch_first, nonlinearity, lengths, batch_sizes);
}

template <c10::DeviceType device>
Tensor rnn_cell(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                const Tensor& weight_hh, const OptionalTensor& bias_ih,
                const OptionalTensor& bias_hh, c10::string_view nonlinearity) {
  static const auto op = find_op<RnnCellOp>("rnnext::rnn_cell");
  const auto guard = without_autocast<device>();
  const Cast<device> cast;
  return op.call(cast(input), cast(hx), cast(weight_ih), cast(weight_hh), cast(bias_ih),
                 cast(bias_hh), nonlinearity);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, AutocastCPU, m) {
  m.impl("rnn", rnn<c10::kCPU>);
  m.impl("rnn_cell", rnn_cell<c10::kCPU>);
}
TORCH_LIBRARY_IMPL(rnnext, AutocastCUDA, m) {
  m.impl("rnn", rnn<c10::kCUDA>);
  m.impl("rnn_cell", rnn_cell<c10::kCUDA>);
}

}  // namespace rnnext
