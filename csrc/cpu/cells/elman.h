// The Elman cell: a nonlinearity of the pre-activation.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/tanh.h"
#include "recurrence/cell.h"
#include "recurrence/nonlinearity.h"

namespace rnnext::RNNEXT_ISA {

// h = forward(pre), and backward(grad, h), the gradient of pre from that of h and from h alone: an
// Elman cell. NaN passes through, as in torch. S is the type that h is stored as, for tanh alone.
template <class S, Nonlinearity name>
struct Activation {
  static constexpr CellTraits kTraits = traits_of(Cell::elman);
  static_assert(kTraits.gates == 1 && kTraits.states == 1 && kTraits.saved == 0);
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    if constexpr (name == Nonlinearity::tanh && kNative<S>) {
      return tanh(pre);
    } else if constexpr (name == Nonlinearity::tanh) {
      return rounded_tanh<S>(pre);
    } else if constexpr (name == Nonlinearity::relu) {
      return pre <= 0 ? V{} : pre;  // NaN > 0 is false, so test for the values that become 0
    } else if constexpr (name == Nonlinearity::sigmoid) {
      return sigmoid(pre);
    } else if constexpr (name == Nonlinearity::softplus) {
      const V h = (pre <= 0 ? V{} : pre) + log_one_plus(exp_minus(magnitude(pre)));
      return pre > 20 ? pre : h;  // from 20 up as torch
    } else {
      static_assert(name == Nonlinearity::identity);
      return pre;
    }
  }
  static RNNEXT_INLINE V backward(V grad, V h) {
    if constexpr (name == Nonlinearity::tanh) {
      return grad * (1 - h * h);
    } else if constexpr (name == Nonlinearity::relu) {
      return h <= 0 ? V{} : grad;
    } else if constexpr (name == Nonlinearity::sigmoid) {
      return grad * (h * (1 - h));
    } else if constexpr (name == Nonlinearity::softplus) {
      const V t = tanh(h * Compute<S>(0.5));  // 1 - exp(-h) = 2 t / (1 + t), without cancellation
      return h > 20 ? grad : grad * ((t + t) / (1 + t));
    } else {
      static_assert(name == Nonlinearity::identity);
      return grad;
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
