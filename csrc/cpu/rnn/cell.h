// The cell: what happens to an accumulated pre-activation.
#pragma once

#include "cpu/simd/tanh.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

template <class C>
struct TanhCell {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return tanh(pre); }
  // Times the gradient of the output, given the output h alone.
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return grad * (1 - h * h); }
};

template <class C>
struct ReluCell {
  // NaN goes through, as in torch: NaN > 0 is false, so test for the values that become 0.
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return pre <= 0 ? Vec<C>{} : pre; }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return h <= 0 ? Vec<C>{} : grad; }
};

// The cell by its name, where the time of a branch does not count.
template <class C>
RNNEXT_INLINE Vec<C> apply_named(Nonlinearity name, Vec<C> pre) {
  switch (name) {
    case Nonlinearity::tanh:
      return TanhCell<C>::forward(pre);
    case Nonlinearity::relu:
      return ReluCell<C>::forward(pre);
  }
  __builtin_unreachable();
}

}  // namespace rnnext::RNNEXT_ISA
