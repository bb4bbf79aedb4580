// Several vectors as one value. Operations on them are interleaved: a long chain, such as an
// exponential, would fill the processor's queue with instructions that wait for the one before.
#pragma once

#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

template <class V, int N>
struct Several {
  using Element = decltype(V{}[0] + V{}[0]);
  V v[N];

  Element operator[](int) const;  // for decltype alone
  // The vectors f(0), f(1), and so on.
  template <class F>
  static RNNEXT_INLINE Several of(const F& f) {
    Several made;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) made.v[i] = f(i);
    return made;
  }
  // The same of the vectors of these values. (f takes copies: references took longer to compile.)
  template <class F, class... T>
  static RNNEXT_INLINE auto each(F f, const T&... values) {
    Several<decltype(f(values.v[0]...)), N> made;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) made.v[i] = f(values.v[i]...);
    return made;
  }
  // The same bits as other vectors.
  template <class U>
  explicit RNNEXT_INLINE operator Several<U, N>() const {
    return each([](V x) { return (U)x; }, *this);
  }

#define RNNEXT_OPERATOR(op)                                                   \
  friend RNNEXT_INLINE auto operator op(const Several& a, const Several& b) { \
    return each([](V x, V y) { return x op y; }, a, b);                       \
  }                                                                           \
  template <class C>                                                          \
    requires std::is_arithmetic_v<C>                                          \
  friend RNNEXT_INLINE auto operator op(const Several& a, C b) {              \
    return each([b](V x) { return x op Element(b); }, a);                     \
  }                                                                           \
  template <class C>                                                          \
    requires std::is_arithmetic_v<C>                                          \
  friend RNNEXT_INLINE auto operator op(C a, const Several& b) {              \
    return each([a](V x) { return Element(a) op x; }, b);                     \
  }
  RNNEXT_OPERATOR(+)
  RNNEXT_OPERATOR(-)
  RNNEXT_OPERATOR(*)
  RNNEXT_OPERATOR(/)
  RNNEXT_OPERATOR(<)
  RNNEXT_OPERATOR(&)
  RNNEXT_OPERATOR(|)
  RNNEXT_OPERATOR(^)
  RNNEXT_OPERATOR(<<)
#undef RNNEXT_OPERATOR
  RNNEXT_INLINE Several operator-() const {
    return each([](V x) { return -x; }, *this);
  }
};

template <class V, int N, class C>
RNNEXT_INLINE Several<V, N> at_most(const Several<V, N>& x, C limit) {
  return Several<V, N>::each([limit](V one) { return at_most(one, limit); }, x);
}
template <class V, int N>
RNNEXT_INLINE Several<V, N> fused(const Several<V, N>& a, const Several<V, N>& b,
                                  const Several<V, N>& c) {
  using C = typename Several<V, N>::Element;
  return Several<V, N>::each([](V x, V y, V z) { return fused<C>(x, y, z); }, a, b, c);
}
template <class Bits, class V, int N>
RNNEXT_INLINE Several<V, N> select(const Several<Bits, N>& which, const Several<V, N>& a,
                                   const Several<V, N>& b) {
  return Several<V, N>::each([](Bits is, V x, V y) { return is ? x : y; }, which, a, b);
}
template <class S, class V, int N>
RNNEXT_INLINE Several<V, N> as_stored(const Several<V, N>& x) {
  return Several<V, N>::each([](V one) { return as_stored<S>(one); }, x);
}

}  // namespace rnnext::RNNEXT_ISA
