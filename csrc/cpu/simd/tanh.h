// Hyperbolic tangent of a vector (the compilers' extensions, float or double, any number of lanes).
#pragma once

#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

// With c = ln(2)/2, |x| = n c + r and t = tanh(r), the addition theorem gives
//
//   tanh|x| = num / (num + (1 - t)),   num = (2^n - 1)/2 + (2^n + 1)/2 t.
//
// - The sum in the denominator is exactly 1 for n = 0, and for large n an error of num cancels, so
//   what is left is one rounding of the sum, one of the division, and little else.
// - n steps up where tanh is just above 1/4 and not half way, so r is in [-0.09, 0.26]: just below
//   a power of two, where a ULP is relatively smallest, the error would otherwise reach 2.35 ULP.
// - t = r + r^3 p(r^2) with p the minimax polynomial for the relative error of t on |r| <= 0.2585
//   (Remez exchange; 3.7e-9 for float, 6.9e-18 for double).
template <class Element>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr int kFraction = 0xff;
  static constexpr int kShift = 15;            // 23 mantissa bits less 8 of fraction
  static constexpr float kSaturation = 10.0f;  // tanh rounds to 1 from 9.011 up
  static constexpr float kInverseStep = 2.8853900817779268f;
  static constexpr float kStep = 0.34657359027997264f;
  // 1.5 * 2^kShift gives the last bit the weight 2^-8. 126 is the biased exponent of 1/2.
  static constexpr float kZero = 49152.0f + 126.0f;
  static constexpr float kOffset = 66.0f / 256.0f;
  template <class V>
  [[gnu::always_inline]] static V p(V z) {
    return polynomial(z, -0.0512641864306781655f, 0.13322998673079231f, -0.33333220422636201f);
  }
};

template <>
struct TanhConstants<double> {
  static constexpr long long kFraction = 0xff;
  static constexpr int kShift = 44;            // 52 mantissa bits less 8 of fraction
  static constexpr double kSaturation = 20.0;  // tanh rounds to 1 from 19.07 up
  static constexpr double kInverseStep = 2.8853900817779268147;
  static constexpr double kStep = 0.34657359027997265471;
  static constexpr double kZero = 26388279066624.0 + 1022.0;
  static constexpr double kOffset = 66.0 / 256.0;
  template <class V>
  [[gnu::always_inline]] static V p(V z) {
    return polynomial(z, -0.00130926555617539039, 0.00357675506815506899, -0.00886239100410529249,
                      0.0218694629330717519, -0.0539682535523071359, 0.133333333330126303,
                      -0.333333333333324966);
  }
};

// At most 2 ULP from the true value for every input; tanh(-x) is -tanh(x) bit for bit, +-0 and NaN
// pass through, and |tanh(x)| never exceeds 1. Builds that contract to FMA give equal bits.
// Largest error measured, against tanh in the next wider type: float, over all 2^32 patterns, 1.745
// ULP with FMA and 1.673 without; double, 6.5e7 samples that crowd where the error peaks, 1.87 with
// and without. It peaks for |tanh(x)| in [1/4, 1); below 1/4 it is under 0.62.
template <class V>
[[gnu::always_inline]] inline V tanh(V x) {
  using Element = decltype(x[0] + x[0]);
  using C = TanhConstants<Element>;
  using Bits = decltype(x < x);

  const Bits sign = (Bits)x & kSignBit<Element>;
  V a = (V)((Bits)x ^ sign);
  a = at_most(a, C::kSaturation);

  // z holds 126 + n (1022 + n for double), with the fraction cut off, in its low mantissa bits.
  V z = a * C::kInverseStep + (C::kZero + C::kOffset);
  z = (V)((Bits)z & ~C::kFraction);
  const V n = z - C::kZero;
  const V half_power = (V)((Bits)z << C::kShift);  // 2^n / 2
  const V r = a - n * C::kStep;

  const V r2 = r * r;
  const V t = C::p(r2) * (r2 * r) + r;
  const V num = (half_power + Element(0.5)) * t + (half_power - Element(0.5));
  return (V)((Bits)num | sign) / (num + (Element(1) - t));
}

// tanh(x) = x p(x^2) / q(x^2), just exact enough for a result that is then rounded to S. Minimax
// for the error in ULP of S, as far as tanh rounds to 1: 0.048 ULP for bfloat16, 0.002 for float16.
template <class S>
struct RoundedTanh;

template <>
struct RoundedTanh<BFloat16> {
  static constexpr float kSaturation = 3.53f;
  template <class V>
  [[gnu::always_inline]] static V p(V z) {
    return 0.0848775283f * z + 0.999813497f;
  }
  template <class V>
  [[gnu::always_inline]] static V q(V z) {
    return (0.0069647301f * z + 0.416924179f) * z + 1;
  }
};

template <>
struct RoundedTanh<Float16> {
  static constexpr float kSaturation = 4.52f;
  template <class V>
  [[gnu::always_inline]] static V p(V z) {
    return (0.00169058633f * z + 0.117337964f) * z + 0.999999106f;
  }
  template <class V>
  [[gnu::always_inline]] static V q(V z) {
    return ((6.82959217e-05f * z + 0.0185911618f) * z + 0.450661987f) * z + 1;
  }
};

// tanh(x) rounded to S, or a neighbour of that: at most 0.5493 ULP of bfloat16 and 0.516 of
// float16 from the true value (every third float). It is odd, passes NaN through, and gives equal
// bits with FMA, as above. Instead of a division, which takes 16 cycles on a Xeon: a guess at 1 / q
// from its exponent and mantissa, within 5.1 %, and two steps of Newton's, to 7e-6.
template <class S, class V>
[[gnu::always_inline]] inline V rounded_tanh(V x) {
  using T = RoundedTanh<S>;
  using Bits = decltype(x < x);
  x = at_least(at_most(x, T::kSaturation), -T::kSaturation);
  const V z = x * x, q = T::q(z);
  V r = (V)(0x7ef311c7 - (Bits)q);
  r = r * (1 - q * r) + r;
  const V y = x * T::p(z) * r;
  return y * (1 - q * r) + y;
}

}  // namespace rnnext::RNNEXT_ISA
