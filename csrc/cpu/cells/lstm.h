// The gates of an LSTM as torch.nn.LSTM has them: i, f, g, o.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/several.h"
#include "cpu/simd/tanh.h"
#include "recurrence/cell.h"

namespace rnnext::RNNEXT_ISA {

// V: some vectors of units; S: as what the state is stored.
struct Lstm {
  static constexpr CellTraits kTraits = traits_of(Cell::lstm);
  static_assert(kTraits.gates == 4 && kTraits.grads == 4 && kTraits.states == 2 &&
                kTraits.saved == 5);

  // From the pre-activations x(k) of the input and h(k) of the state: replaces c by the new one, as
  // it is stored, and returns h. save(k, values) stores i, f, g, o, and f c', for k from 0 to 4.
  template <class S, class V, class Gate, class Save>
  static RNNEXT_INLINE V forward(const Gate& x, const Gate& h, V& c, const Save& save) {
    const V i = gate(x(0) + h(0));
    save(0, i);
    const V f = gate(x(1) + h(1));
    save(1, f);
    const V kept = f * c;
    save(4, kept);
    const V g = tanh(x(2) + h(2));
    save(2, g);
    const V o = gate(x(3) + h(3));
    save(3, o);
    c = as_stored<S>(fused(i, g, kept));
    return o * tanh(c);
  }

  // From the gradient of h: the gradients of the pre-activations. `carry`, the gradient of c that
  // did not come through h, is replaced by that of c before.
  template <class S, class V>
  static RNNEXT_INLINE void backward(const V& grad, const V&, V& carry, const V (&saved)[5],
                                     V (&grads)[4]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V t = tanh(as_stored<S>(fused(i, g, saved[4])));
    const V dc = fused(grad * o, 1 - t * t, carry);
    grads[0] = dc * (g * (i * (1 - i)));
    grads[1] = dc * (saved[4] * (1 - f));
    grads[2] = dc * (i * (1 - g * g));
    grads[3] = grad * (t * (o * (1 - o)));
    carry = dc * f;
  }
};

}  // namespace rnnext::RNNEXT_ISA
