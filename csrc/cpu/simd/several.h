// Several vectors as one value. Operations on them are interleaved: a long chain of instructions,
// such as an exponential, would otherwise fill the processor's queue with instructions that wait
// for the one before.
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
  // The same bits as other vectors.
  template <class U>
  explicit RNNEXT_INLINE operator Several<U, N>() const {
    return Several<U, N>::of([&](int i) { return (U)v[i]; });
  }

#define RNNEXT_OPERATOR(op)                                                                     \
  friend RNNEXT_INLINE auto operator op(const Several& a, const Several& b) {                   \
    return Several<decltype(a.v[0] op b.v[0]), N>::of([&](int i) { return a.v[i] op b.v[i]; }); \
  }                                                                                             \
  template <class C>                                                                            \
    requires std::is_arithmetic_v<C>                                                            \
  friend RNNEXT_INLINE auto operator op(const Several& a, C b) {                                \
    return Several<decltype(a.v[0] op Element(b)), N>::of(                                      \
        [&](int i) { return a.v[i] op Element(b); });                                           \
  }                                                                                             \
  template <class C>                                                                            \
    requires std::is_arithmetic_v<C>                                                            \
  friend RNNEXT_INLINE auto operator op(C a, const Several& b) {                                \
    return Several<decltype(Element(a) op b.v[0]), N>::of(                                      \
        [&](int i) { return Element(a) op b.v[i]; });                                           \
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
  RNNEXT_OPERATOR(>>)
#undef RNNEXT_OPERATOR
  RNNEXT_INLINE Several operator-() const {
    return of([&](int i) { return -v[i]; });
  }
};

template <class V, int N, class C>
RNNEXT_INLINE Several<V, N> at_most(const Several<V, N>& x, C limit) {
  return Several<V, N>::of([&](int i) { return at_most(x.v[i], limit); });
}
template <class V, int N>
RNNEXT_INLINE Several<V, N> fused(const Several<V, N>& a, const Several<V, N>& b,
                                  const Several<V, N>& c) {
  using C = typename Several<V, N>::Element;
  return Several<V, N>::of([&](int i) { return fused<C>(a.v[i], b.v[i], c.v[i]); });
}
template <class Bits, class V, int N>
RNNEXT_INLINE Several<V, N> select(const Several<Bits, N>& which, const Several<V, N>& a,
                                   const Several<V, N>& b) {
  return Several<V, N>::of([&](int i) { return which.v[i] ? a.v[i] : b.v[i]; });
}
template <class S, class V, int N>
RNNEXT_INLINE Several<V, N> as_stored(const Several<V, N>& x) {
  return Several<V, N>::of([&](int i) { return as_stored<S>(x.v[i]); });
}

}  // namespace rnnext::RNNEXT_ISA
