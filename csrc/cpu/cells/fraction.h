// The functions of gates as fractions, so that several can share one division. V: Several vectors.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/several.h"
#include "cpu/simd/tanh.h"

namespace rnnext::RNNEXT_ISA {

// Several fractions share a division of 512 bits, which takes as long as ten multiplications on a
// Xeon. Narrower ones pass in the shadow of other instructions: on a Zen 3, an LSTM's gates take
// 0.75 of the time without sharing, a GRU's 0.87.
constexpr bool kSharesDivisions = RNNEXT_VECTOR_BYTES == 64;

// 1 / (1 + exp(-x)), from the exponential of a number that is not positive: below is in 1..2.
template <class V>
RNNEXT_INLINE Fraction<V> sigmoid_fraction(const V& x) {
  const V e = exp_minus(magnitude(x));
  return {select(x < 0, e, V{} + 1), e + 1};
}

template <int N, class V, int M>
RNNEXT_INLINE Fraction<Several<V, N>> part_of(const Fraction<Several<V, M>>& all, int k) {
  return {part_of<N>(all.above, k), part_of<N>(all.below, k)};
}

// above / below, given 1 / below within a few ULP: as good as a division, so 1 where both are
// equal. Otherwise a state that a gate keeps would fade or grow.
template <class V>
RNNEXT_INLINE V quotient(const Fraction<V>& f, const V& inverse) {
  const V x = f.above * inverse;
  return fused(fused(-x, f.below, f.above), inverse, x);
}

// The values of two fractions, and of four, by one division where that pays. (The product of the
// denominators must not overflow; a sigmoid's is at most 2, and a tanh's of float below 2^26.)
template <class V>
RNNEXT_INLINE void divide(const Fraction<V>& a, const Fraction<V>& b, V& x, V& y) {
  if constexpr (!kSharesDivisions) {
    x = a.above / a.below;
    y = b.above / b.below;
    return;
  }
  const V inverse = 1 / (a.below * b.below);
  x = quotient(a, b.below * inverse);
  y = quotient(b, a.below * inverse);
}
template <class V>
RNNEXT_INLINE void divide(const Fraction<V> (&f)[4], V (&x)[4]) {
  if constexpr (!kSharesDivisions) {
    for (int k = 0; k < 4; ++k) x[k] = f[k].above / f[k].below;
    return;
  }
  const V first = f[0].below * f[1].below, second = f[2].below * f[3].below;
  const V inverse = 1 / (first * second), of_first = second * inverse, of_second = first * inverse;
  x[0] = quotient(f[0], f[1].below * of_first);
  x[1] = quotient(f[1], f[0].below * of_first);
  x[2] = quotient(f[2], f[3].below * of_second);
  x[3] = quotient(f[3], f[2].below * of_second);
}

}  // namespace rnnext::RNNEXT_ISA
