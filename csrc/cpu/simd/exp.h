// The sigmoid of a vector, and exp(-a) and log(1 + e) as far as it and the softplus need them.
#pragma once

#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

template <class Element>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int kExponentBias = 127, kMantissaBits = 23;
  static constexpr float kSaturation = 104.0f;  // exp(-104) rounds to 0, not to a subnormal number
  static constexpr float kFlushed = 88.0f;      // whose n is -127
  static constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23, whose last bit stands for 1
  static constexpr float kInverseLog2 = 1.44269504088896341f;
  static constexpr float kLog2High = 0.693359375f;  // few bits, so that n times it is exact
  static constexpr float kLog2Low = -2.12194440054690583e-4f;
  // exp(r) = 1 + r + r^2 p(r), |r| <= 0.3466: relative error 1.0e-8.
  template <class V>
  [[gnu::always_inline]] static V exp_tail(V r) {
    return polynomial(r, 0.0013926177501010365f, 0.00836317418011074f, 0.041666554653757494f,
                      0.16666577018959405f, 0.5f);
  }
  // log((1 + s) / (1 - s)) = 2 s + s z q(z), z = s^2 <= 1/9: relative error 4.0e-10.
  template <class V>
  [[gnu::always_inline]] static V log_tail(V z) {
    return polynomial(z, 0.2322432922402335f, 0.21706575800880373f, 0.28592357994302836f,
                      0.3999970633192972f, 0.6666666732052742f);
  }
};

template <>
struct ExpConstants<double> {
  static constexpr long long kExponentBias = 1023, kMantissaBits = 52;
  static constexpr double kSaturation = 746.0;
  static constexpr double kFlushed = 709.0;                // whose n is -1023
  static constexpr double kRounding = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kInverseLog2 = 1.44269504088896340736;
  static constexpr double kLog2High = 0.693147180369123816490;
  static constexpr double kLog2Low = 1.90821492927058770002e-10;
  template <class V>
  [[gnu::always_inline]] static V exp_tail(V r) {  // relative error 2.3e-19
    return polynomial(r, 2.0914680780540267e-09, 2.5105208339987698e-08, 2.7557273657975953e-07,
                      2.7557255421023506e-06, 2.4801587325536023e-05, 0.00019841269874804214,
                      0.0013888888888883752, 0.00833333333332614, 0.04166666666666667,
                      0.1666666666666667, 0.5);
  }
  template <class V>
  [[gnu::always_inline]] static V log_tail(V z) {  // relative error 1.4e-19
    return polynomial(z, 0.1563057780092285, 0.07492143795550767, 0.10845178394880015,
                      0.11734279061303197, 0.13335178631449257, 0.1538454396486055,
                      0.18181819897962714, 0.2222222219823677, 0.285714285716001,
                      0.39999999999999525, 0.6666666666666666);
  }
};

// Whether results may be subnormal: gates do without, in fewer instructions.
enum class Tiny { kSubnormal, kZero };

// exp(-a) for a >= 0, including infinity, with an error of at most 1.2 ULP; NaN stays.
template <Tiny kTiny = Tiny::kSubnormal, class V>
[[gnu::always_inline]] inline V exp_minus(V a) {
  using Element = decltype(a[0] + a[0]);
  using C = ExpConstants<Element>;
  using Bits = decltype(a < a);
  a = at_most(a, kTiny == Tiny::kZero ? C::kFlushed : C::kSaturation);
  const V shifted = C::kRounding - a * C::kInverseLog2;
  const V n = shifted - C::kRounding;  // the whole part of -a / log(2)
  const V r = (-a - n * C::kLog2High) - n * C::kLog2Low;
  const V y = C::exp_tail(r) * (r * r) + r + Element(1);
  if constexpr (kTiny == Tiny::kZero) {
    // 2^n by its exponent's bits, which are 0 for the least n: then it is 0.
    return y * (V)(((Bits)shifted << C::kMantissaBits) + (Bits)(V{} + Element(1)));
  } else {
    // 2^n in two factors, since it may be subnormal.
    const Bits exponent = (Bits)shifted - (Bits)(V{} + C::kRounding);
    const Bits half = exponent >> 1;
    const V first = (V)((half + C::kExponentBias) << C::kMantissaBits);
    const V second = (V)((exponent - half + C::kExponentBias) << C::kMantissaBits);
    return y * first * second;
  }
}

// 1 / (1 + exp(-x)), by the exponential of a number up to 0.
template <Tiny kTiny = Tiny::kSubnormal, class V>
[[gnu::always_inline]] inline V sigmoid(V x) {
  const V e = exp_minus<kTiny>(magnitude(x));
  return select(x < 0, e, V{} + 1) / (1 + e);
}

// The sigmoid of a gate, which is 0 where it would be below the least normal number.
template <class V>
[[gnu::always_inline]] inline V gate(V x) {
  return sigmoid<Tiny::kZero>(x);
}

// log(1 + e) for 0 <= e <= 1; NaN stays.
template <class V>
[[gnu::always_inline]] inline V log_one_plus(V e) {
  using Element = decltype(e[0] + e[0]);
  const V s = e / (e + Element(2));
  const V z = s * s;
  return ExpConstants<Element>::log_tail(z) * (s * z) + (s + s);
}

}  // namespace rnnext::RNNEXT_ISA
