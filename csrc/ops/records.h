// Whether a call must be recorded for autograd, and whether it carries tangents.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "ops/arguments.h"

namespace rnnext {

template <class Argument>
bool needs_grad(const Argument& argument) {
  return std::ranges::any_of(tensors_of(argument),
                             [](const Tensor& t) { return t.requires_grad(); });
}
template <class... T>
bool records(const T&... arguments) {
  return at::GradMode::is_enabled() && (needs_grad(arguments) || ...);
}

// Whether a tensor has a tangent of forward mode.
inline bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
template <class... T>
bool any_dual(const T&... arguments) {
  return (std::ranges::any_of(tensors_of(arguments), is_dual) || ...);
}

// A tensor without its tangent, and the tangent, undefined where there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t.defined() ? t._fw_grad(0) : t; }
inline Tensor tangent(const OptionalTensor& t) { return given(t) ? tangent(*t) : Tensor(); }

}  // namespace rnnext
