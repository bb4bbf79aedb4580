// Autocast: the modules' ops run in the autocast dtype, as torch.nn's RNN does.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/arguments.h"

namespace rnnext {
namespace {

// Casts floating tensors to the autocast dtype of one device type; weights come from autocast's
// cache. Other arguments stay as they are.
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
