// The gates of a GRU as torch.nn.GRU has them: r, z, n.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/several.h"
#include "cpu/simd/tanh.h"
#include "recurrence/cell.h"

namespace rnnext::RNNEXT_ISA {

// V: some vectors of units; S: as what the state is stored.
struct Gru {
  static constexpr CellTraits kTraits = traits_of(Cell::gru);
  static_assert(kTraits.gates == 3 && kTraits.grads == 4 && kTraits.states == 1 &&
                kTraits.saved == 4);

  // From the pre-activations x(k) of the input and h(k) of the state: replaces the state by the new
  // one, which is the output too. save(k, values) stores r, z, n's part from the state, and n.
  template <class S, class V, class Gate, class Save>
  static RNNEXT_INLINE V forward(const Gate& x, const Gate& h, V& state, const Save& save) {
    const V r = gate(x(0) + h(0));
    save(0, r);
    const V of_state = h(2);
    save(2, of_state);
    const V z = gate(x(1) + h(1));
    save(1, z);
    const V n = tanh(fused(r, of_state, x(2)));
    save(3, n);
    return state = as_stored<S>(fused(z, state - n, n));
  }

  // From the gradient of the output and the state before: the gradients of the pre-activations,
  // first that of n's part from the input, last that of its part from the state. `carry`, the
  // gradient of this state that did not come through W_hh, is replaced by that of the state before.
  template <class S, class V>
  static RNNEXT_INLINE void backward(V grad, const V& before, V& carry, const V (&saved)[4],
                                     V (&grads)[4]) {
    const V r = saved[0], z = saved[1], rest = 1 - z, n = saved[3];
    grad = grad + carry;
    grads[0] = grad * (rest * (1 - n * n));
    grads[1] = grads[0] * (saved[2] * (r * (1 - r)));
    grads[2] = grad * ((before - n) * (z * rest));
    grads[3] = grads[0] * r;
    carry = grad * z;
  }
};

}  // namespace rnnext::RNNEXT_ISA
