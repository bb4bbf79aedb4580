// __half for a plain C++ compiler: conversions only, round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct alignas(2) __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half h) {
  uint32_t sign = uint32_t(h.bits & 0x8000) << 16, magnitude = h.bits & 0x7fff, out;
  if (magnitude >= 0x7c00) {
    out = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    out = (magnitude << 13) + (uint32_t(127 - 15) << 23);
  } else {  // a subnormal is magnitude * 2^-24, exact in float
    float value = float(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&out, &value, 4);
  }
  out |= sign;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}

inline __half __float2half_rn(float value) {
  uint32_t in;
  std::memcpy(&in, &value, 4);
  uint16_t sign = uint16_t(in >> 16 & 0x8000);
  in &= 0x7fffffff;
  if (in > 0x7f800000) return {uint16_t(0x7fff)};
  if (in >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds past the largest, 65504
  uint32_t shift = 13, mantissa = in & 0x7fffff;
  int exponent = int(in >> 23) - 127 + 15;
  if (exponent <= 0) {  // subnormal
    if (exponent < -10) return {sign};
    mantissa |= 0x800000;
    shift += uint32_t(1 - exponent);
    exponent = 0;
  }
  uint32_t out = (uint32_t(exponent) << 10) + (mantissa >> shift);
  uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
  if (rest > half || (rest == half && (out & 1))) ++out;
  return {uint16_t(sign | out)};
}
inline __half __float2half(float value) { return __float2half_rn(value); }

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
