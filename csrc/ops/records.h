// Whether a call must be recorded for autograd, and whether it carries tangents.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <type_traits>

#include "ops/arguments.h"

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
template <class Number>
std::enable_if_t<std::is_arithmetic_v<Number>, bool> needs_grad(Number) {
  return false;
}

template <class... T>
bool records(const T&... arguments) {
  return at::GradMode::is_enabled() && (needs_grad(arguments) || ...);
}

// Whether a tensor has a tangent of forward mode.
inline bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
inline bool is_dual(const OptionalTensor& t) { return given(t) && is_dual(*t); }
inline bool is_dual(TensorList list) {
  for (const Tensor& t : list)
    if (is_dual(t)) return true;
  return false;
}
inline bool is_dual(std::string_view) { return false; }
inline bool is_dual(const c10::List<bool>&) { return false; }
template <class Number>
std::enable_if_t<std::is_arithmetic_v<Number>, bool> is_dual(Number) {
  return false;
}

template <class... T>
bool any_dual(const T&... arguments) {
  return (is_dual(arguments) || ...);
}

// A tensor without its tangent, and the tangent, undefined where there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t.defined() ? t._fw_grad(0) : t; }
inline Tensor tangent(const OptionalTensor& t) { return given(t) ? tangent(*t) : Tensor(); }

}  // namespace rnnext
