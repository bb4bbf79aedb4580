// The Autocast keys: as torch.nn's RNN, the modules' ops run in the autocast dtype.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/signatures.h"

namespace rnnext {
namespace {

// Casts floating tensors to the autocast dtype of one device type; weights come from autocast's
// cache. All else passes as it is.
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
  template <class T>
  const T& operator()(const T& other) const {
    return other;
  }
};

template <class Op, c10::DeviceType device, class Signature = typename Op::Signature>
struct Autocast;
template <class Op, c10::DeviceType device, class Result, class... P>
struct Autocast<Op, device, Result(P...)> {
  static Result call(P... arguments) {
    const c10::impl::ExcludeDispatchKeyGuard guard(
        at::autocast::get_autocast_dispatch_key_from_device_type(device));
    const Cast<device> cast;
    return call_op<Op>(cast(arguments)...);
  }
};

template <c10::DeviceType device>
void define(torch::Library& m) {
  m.impl("recurrence", Autocast<RecurrenceOp, device>::call);
  m.impl("recurrence_ensemble", Autocast<EnsembleOp, device>::call);
  m.impl("rnn", Autocast<RnnOp, device>::call);
  m.impl("rnn_cell", Autocast<RnnCellOp, device>::call);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, AutocastCPU, m) { define<c10::kCPU>(m); }
TORCH_LIBRARY_IMPL(rnnext, AutocastCUDA, m) { define<c10::kCUDA>(m); }

}  // namespace rnnext
