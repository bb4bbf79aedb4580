// What the autograd kernels of all ops share: whether a call must be recorded.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 is wrong about the vector<bool> of Function::apply. (Before the header that has it.)
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/signatures.h"

namespace rnnext {

inline bool needs_grad(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(t),
                              "rnnext has no forward-mode derivative");
  return t.requires_grad();
}
inline bool needs_grad(const OptionalTensor& t) { return given(t) && needs_grad(*t); }
inline bool needs_grad(TensorList list) {
  bool any = false;
  for (const Tensor& t : list) any = needs_grad(t) || any;
  return any;
}
inline bool needs_grad(std::string_view) { return false; }
inline bool needs_grad(const c10::List<bool>&) { return false; }

// Looks at all of them: a forward-mode derivative is refused wherever it is.
template <class... T>
bool records(const T&... arguments) {
  const bool any = (needs_grad(arguments) | ...);
  return any && at::GradMode::is_enabled();
}

}  // namespace rnnext
