// The cells: what happens to an accumulated pre-activation.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/tanh.h"
#include "recurrence/nonlinearity.h"

namespace rnnext::RNNEXT_ISA {

// h = forward(pre), and backward(grad, h), the gradient of pre from the gradient of h and h alone.
// NaN goes through all of them, as in torch.
template <class C, Nonlinearity name>
struct Activation;

template <class C>
struct Activation<C, Nonlinearity::tanh> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return tanh(pre); }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return grad * (1 - h * h); }
};

template <class C>
struct Activation<C, Nonlinearity::relu> {
  // NaN > 0 is false, so test for the values that become 0.
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return pre <= 0 ? Vec<C>{} : pre; }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return h <= 0 ? Vec<C>{} : grad; }
};

template <class C>
struct Activation<C, Nonlinearity::sigmoid> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) {
    const Vec<C> e = exp_minus(magnitude(pre));
    return (pre < 0 ? e : Vec<C>{} + 1) / (1 + e);
  }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return grad * (h * (1 - h)); }
};

// From 20 up torch takes pre itself, and 1 for the derivative.
template <class C>
struct Activation<C, Nonlinearity::softplus> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) {
    const Vec<C> h = (pre <= 0 ? Vec<C>{} : pre) + log_one_plus(exp_minus(magnitude(pre)));
    return pre > 20 ? pre : h;
  }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) {
    const Vec<C> t = tanh(h * C(0.5));  // 1 - exp(-h) = 2 t / (1 + t), without cancellation
    return h > 20 ? grad : grad * ((t + t) / (1 + t));
  }
};

template <class C>
struct Activation<C, Nonlinearity::identity> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return pre; }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C>) { return grad; }
};

// f(Named<name>{}) for the call's nonlinearity.
template <class F>
RNNEXT_INLINE auto with_activation(Nonlinearity name, const F& f)
    -> decltype(f(Named<Nonlinearity::tanh>{})) {
  RNNEXT_RETURN_WITH_NONLINEARITY(name, f);
}

}  // namespace rnnext::RNNEXT_ISA
