// What the autograd kernels of all ops share: whether a call must be recorded, whether it carries
// tangents, and how it is recorded.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 is wrong about the vector<bool> of Function::apply. (Before the header that has it.)
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <utility>

#include "ops/signatures.h"

namespace rnnext {

inline bool needs_grad(const Tensor& t) { return t.requires_grad(); }
inline bool needs_grad(const OptionalTensor& t) { return given(t) && needs_grad(*t); }
inline bool needs_grad(TensorList list) {
  for (const Tensor& t : list)
    if (needs_grad(t)) return true;
  return false;
}
inline bool needs_grad(std::string_view) { return false; }
inline bool needs_grad(const c10::List<bool>&) { return false; }

template <class... T>
bool records(const T&... arguments) {
  return at::GradMode::is_enabled() && (needs_grad(arguments) || ...);
}

// Whether forward mode has a tangent of it.
inline bool is_dual(const Tensor& t) { return torch::autograd::isFwGradDefined(t); }
inline bool is_dual(const OptionalTensor& t) { return given(t) && is_dual(*t); }
inline bool is_dual(TensorList list) {
  for (const Tensor& t : list)
    if (is_dual(t)) return true;
  return false;
}
inline bool is_dual(std::string_view) { return false; }
inline bool is_dual(const c10::List<bool>&) { return false; }

template <class... T>
bool any_dual(const T&... arguments) {
  return (is_dual(arguments) || ...);
}

// A tensor without its tangent, and the tangent, undefined where there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t.defined() ? t._fw_grad(0) : t; }
inline Tensor tangent(const OptionalTensor& t) { return given(t) ? tangent(*t) : Tensor(); }

// Function::apply refuses calls under transforms of torch.func, whose vmap would pass most
// Functions by. Ours are recorded at one transform's level, as torch's own operations, and below it
// vmap finds rules of its own. So the transforms are out of sight until forward() shows them again;
// and forward() enables gradients, which apply turns off, since the transforms around record the
// call.
class Transforms {
 public:
  Transforms() : hidden_(std::move(at::functorch::functorchTLSAccessor())) {}
  ~Transforms() { show(); }
  Transforms(const Transforms&) = delete;
  void show() {
    if (hidden_) at::functorch::functorchTLSAccessor() = std::move(hidden_);
  }

 private:
  std::unique_ptr<at::functorch::FuncTorchTLSBase> hidden_;
};
// A call of Function F, whose forward() takes &Transforms first.
template <class F, class... T>
auto record(const T&... arguments) {
  Transforms transforms;
  return F::apply(&transforms, arguments...);
}

}  // namespace rnnext
