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

// 1 / (1 + exp(-x)), from the exponential of a number up to 0: the denominator is in 1..2.
template <class V>
RNNEXT_INLINE Fraction<V> sigmoid_fraction(const V& x) {
  const V e = exp_minus(magnitude(x));
  return {select(x < 0, e, V{} + 1), e + 1};
}

template <int N, class V, int M>
RNNEXT_INLINE Fraction<Several<V, N>> part_of(const Fraction<Several<V, M>>& all, int k) {
  return {part_of<N>(all.numerator, k), part_of<N>(all.denominator, k)};
}

// numerator / denominator, given 1 / denominator within a few ULP: as good as a division, so 1
// where both are equal. Otherwise a state that a gate keeps would fade or grow.
template <class V>
RNNEXT_INLINE V quotient(const Fraction<V>& f, const V& inverse) {
  const V x = f.numerator * inverse;
  return fused(fused(-x, f.denominator, f.numerator), inverse, x);
}

// The values of two fractions, and of four, by one division where that pays. (The product of the
// denominators must not overflow; a sigmoid's is at most 2, and a tanh's of float below 2^26.)
template <class V>
RNNEXT_INLINE void divide(const Fraction<V>& a, const Fraction<V>& b, V& x, V& y) {
  if constexpr (!kSharesDivisions) {
    x = a.numerator / a.denominator;
    y = b.numerator / b.denominator;
    return;
  }
  const V inverse = 1 / (a.denominator * b.denominator);
  x = quotient(a, b.denominator * inverse);
  y = quotient(b, a.denominator * inverse);
}
template <class V>
RNNEXT_INLINE void divide(const Fraction<V> (&f)[4], V (&x)[4]) {
  if constexpr (!kSharesDivisions) {
    for (int k = 0; k < 4; ++k) x[k] = f[k].numerator / f[k].denominator;
    return;
  }
  const V first = f[0].denominator * f[1].denominator, second = f[2].denominator * f[3].denominator;
  const V inverse = 1 / (first * second), of_first = second * inverse, of_second = first * inverse;
  x[0] = quotient(f[0], f[1].denominator * of_first);
  x[1] = quotient(f[1], f[0].denominator * of_first);
  x[2] = quotient(f[2], f[3].denominator * of_second);
  x[3] = quotient(f[3], f[2].denominator * of_second);
}

}  // namespace rnnext::RNNEXT_ISA
