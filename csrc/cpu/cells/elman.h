// The Elman cell: a nonlinearity of the pre-activation.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/tanh.h"
#include "recurrence/cell.h"
#include "recurrence/nonlinearity.h"

namespace rnnext::RNNEXT_ISA {

// h = forward(pre), and backward(grad, h), the gradient of pre from that of h and from h alone. NaN
// passes through, as in torch. S is the type that h is stored as; only tanh depends on it.
template <class S, Nonlinearity name>
struct Activation;

template <class S>
struct Activation<S, Nonlinearity::tanh> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    if constexpr (kNative<S>) {
      return tanh(pre);
    } else {
      return rounded_tanh<S>(pre);
    }
  }
  static RNNEXT_INLINE V backward(V grad, V h) { return grad * (1 - h * h); }
};

template <class S>
struct Activation<S, Nonlinearity::relu> {
  using V = Vec<Compute<S>>;
  // NaN > 0 is false, so test for the values that become 0.
  static RNNEXT_INLINE V forward(V pre) { return pre <= 0 ? V{} : pre; }
  static RNNEXT_INLINE V backward(V grad, V h) { return h <= 0 ? V{} : grad; }
};

template <class S>
struct Activation<S, Nonlinearity::sigmoid> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) { return sigmoid(pre); }
  static RNNEXT_INLINE V backward(V grad, V h) { return grad * (h * (1 - h)); }
};

// From 20 up torch takes pre itself, and 1 for the derivative.
template <class S>
struct Activation<S, Nonlinearity::softplus> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    const V h = (pre <= 0 ? V{} : pre) + log_one_plus(exp_minus(magnitude(pre)));
    return pre > 20 ? pre : h;
  }
  static RNNEXT_INLINE V backward(V grad, V h) {
    const V t = tanh(h * Compute<S>(0.5));  // 1 - exp(-h) = 2 t / (1 + t), without cancellation
    return h > 20 ? grad : grad * ((t + t) / (1 + t));
  }
};

template <class S>
struct Activation<S, Nonlinearity::identity> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) { return pre; }
  static RNNEXT_INLINE V backward(V grad, V) { return grad; }
};

template <class Act>
struct Elman {
  static constexpr CellTraits kTraits = traits_of(Cell::elman);
  static_assert(kTraits.gates == 1 && kTraits.states == 1 && kTraits.saved == 0);
  using V = typename Act::V;

  static RNNEXT_INLINE V forward(V pre) { return Act::forward(pre); }
  static RNNEXT_INLINE V backward(V grad, V h) { return Act::backward(grad, h); }
};

}  // namespace rnnext::RNNEXT_ISA
