// Activations and the leak: what happens to a pre-activation.
#pragma once

#include <math.h>

#include "cuda/device.h"
#include "recurrence/nonlinearity.h"

namespace rnnext::cuda {

// h = forward(pre), and backward(grad, h), the gradient of pre from the gradient of h and h alone.
// NaN passes through, as in torch.
template <Nonlinearity name>
struct FixedActivation {
  __device__ explicit FixedActivation(Nonlinearity) {}  // as AnyActivation
  template <typename A>
  __device__ static A forward(A pre) {
    if constexpr (name == Nonlinearity::tanh) {
      return ::tanh(pre);
    } else if constexpr (name == Nonlinearity::relu) {
      return pre <= 0 ? A(0) : pre;  // NaN > 0 is false, so test for the values that become 0
    } else if constexpr (name == Nonlinearity::sigmoid) {
      const A e = ::exp(-::fabs(pre));
      return (pre < 0 ? e : A(1)) / (1 + e);
    } else if constexpr (name == Nonlinearity::softplus) {
      return pre > 20 ? pre : ::log1p(::exp(pre));  // from 20 up as torch
    } else {
      static_assert(name == Nonlinearity::identity);
      return pre;
    }
  }
  template <typename A>
  __device__ static A backward(A grad, A h) {
    if constexpr (name == Nonlinearity::tanh) {
      return grad * (1 - h * h);
    } else if constexpr (name == Nonlinearity::relu) {
      return h <= 0 ? A(0) : grad;
    } else if constexpr (name == Nonlinearity::sigmoid) {
      return grad * (h * (1 - h));
    } else if constexpr (name == Nonlinearity::softplus) {
      return h > 20 ? grad : grad * -::expm1(-h);  // 1 - exp(-h) without cancellation
    } else {
      static_assert(name == Nonlinearity::identity);
      return grad;
    }
  }
};

// All activations in one: it branches, all threads alike, at every element. With kernels for each
// there would be 150, not 90: 22 MB of machine code, not 14, and 1.6 times as long to compile.
struct AnyActivation {
  Nonlinearity name;

  template <typename A>
  __device__ A forward(A pre) const {
    const auto f = [&](auto x) { return FixedActivation<decltype(x)::value>::forward(pre); };
    RNNEXT_RETURN_FOR(name);
  }
  template <typename A>
  __device__ A backward(A grad, A h) const {
    const auto f = [&](auto x) { return FixedActivation<decltype(x)::value>::backward(grad, h); };
    RNNEXT_RETURN_FOR(name);
  }
};

// A leak: (1 - a) x + a y, and y itself where a is 1.
template <typename A>
__device__ A mix(A a, A x, A y) {
  return ::fma(1 - a, x, a * y);
}

}  // namespace rnnext::cuda
