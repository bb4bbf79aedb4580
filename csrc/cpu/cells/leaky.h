// The forms of the leak. s is the state before, a is alpha and f the nonlinearity; what a form
// keeps is saved for the backward pass.
#pragma once

#include "cpu/cells/elman.h"

namespace rnnext::RNNEXT_ISA {

// (1 - a) x + a y: y itself where a is 1.
template <class C>
RNNEXT_INLINE Vec<C> mix(Vec<C> a, Vec<C> x, Vec<C> y) {
  return fused<C>(1 - a, x, a * y);
}

// forward: computes the new state, as it is stored, and what is saved, and returns the output.
//
// backward: from the gradient of the output, the output or the result of f, and the gradient of the
// state that does not come through W_hh, computes the gradient q of what the leak mixes, and
// returns that of the pre-activation.
template <class S, class Act, Cell cell>
struct Leaky {
  using C = Compute<S>;
  using V = Vec<C>;
  static RNNEXT_INLINE V forward(V pre, V a, V s, V& state, V& saved) {
    if constexpr (cell == Cell::rate) {
      saved = Act::forward(pre);
      return state = as_stored<S>(mix<C>(a, s, saved));
    } else if constexpr (cell == Cell::voltage) {
      saved = pre - s;
      state = as_stored<S>(mix<C>(a, s, pre));
      return Act::forward(state);
    } else {
      static_assert(cell == Cell::blend);
      saved = pre - s;
      return state = as_stored<S>(Act::forward(mix<C>(a, s, pre)));
    }
  }
  static RNNEXT_INLINE V backward(V grad, V h, V a, V carried, V& q) {
    if constexpr (cell == Cell::rate) {
      q = grad + carried;
      return Act::backward(a * q, h);
    } else if constexpr (cell == Cell::voltage) {
      q = Act::backward(grad, h) + carried;
      return a * q;
    } else {
      static_assert(cell == Cell::blend);
      q = Act::backward(grad + carried, h);
      return a * q;
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
