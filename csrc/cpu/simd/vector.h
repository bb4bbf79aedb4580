// Fixed-width vectors on the compilers' vector extensions, and the storage types of tensors.
#pragma once

#include "cpu/simd/target.h"

namespace rnnext::RNNEXT_ISA {

// Vec<C>: one register of C = float or double. VecOf<C>::unaligned: one in memory, at any address.
template <class C>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(8), may_alias));
};
// Two bfloat16 side by side: one operand of a bfloat16 dot product. See operand.h.
struct [[gnu::packed, gnu::aligned(2), gnu::may_alias]] Pair {
  int32_t bits;
};
template <>
struct VecOf<Pair> {
  typedef int32_t type __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef int32_t unaligned
      __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(2), may_alias));
};
template <class C>
using Vec = typename VecOf<C>::type;
template <class C>
constexpr int kLanes = RNNEXT_VECTOR_BYTES / sizeof(C);

// Stored 16-bit floats: arithmetic happens in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  _Float16 value;
};

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;
template <class S>
constexpr bool kNative = sizeof(S) == sizeof(Compute<S>);  // stored as it is computed

template <class C>
RNNEXT_INLINE Vec<C> load(const C* p) {
  return *reinterpret_cast<const typename VecOf<C>::unaligned*>(p);
}
template <class C>
RNNEXT_INLINE void store(C* p, Vec<C> x) {
  *reinterpret_cast<typename VecOf<C>::unaligned*>(p) = x;
}

// The 16-bit types are converted as they are loaded and stored.
typedef uint16_t HalfBits
    __attribute__((vector_size(RNNEXT_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef long long HalfRegister __attribute__((vector_size(RNNEXT_VECTOR_BYTES / 2)));
typedef float HalfFloats __attribute__((vector_size(RNNEXT_VECTOR_BYTES / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));

RNNEXT_INLINE Vec<float> load(const BFloat16* p) {
  const HalfBits bits = *reinterpret_cast<const HalfBits*>(p);
#ifdef RNNEXT_X86  // GCC widens each half for itself
  return (Vec<float>)((FloatBits)RNNEXT_X86(cvtepu16_epi32)((HalfRegister)bits) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(bits, FloatBits) << 16);
#endif
}
// Rounded to bfloat16, to nearest, ties to even: its bits in the low half of each lane.
RNNEXT_INLINE FloatBits rounded_bits(Vec<float> x) {
  const FloatBits bits = (FloatBits)x;
  const FloatBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : FloatBits{} + 0x7fc0;
}
RNNEXT_INLINE void store(BFloat16* p, Vec<float> x) {
  HalfBits& to = *reinterpret_cast<HalfBits*>(p);
#if defined(RNNEXT_BF16_DOT) && defined(RNNEXT_AVX512)
  constexpr int kSubnormal = 0x20;  // the instruction makes zeros of these
  if (!_mm512_fpclass_ps_mask((__m512)x, kSubnormal)) [[likely]]
    return void(to = (HalfBits)_mm512_cvtneps_pbh((__m512)x));
#endif
  to = __builtin_convertvector(rounded_bits(x), HalfBits);
}
RNNEXT_INLINE Vec<float> load(const Float16* p) {
#ifdef RNNEXT_X86
  const HalfBits bits = *reinterpret_cast<const HalfBits*>(p);
  return RNNEXT_X86(cvtph_ps)((HalfRegister)bits);
#else
  Vec<float> x = {};
  for (int i = 0; i < kLanes<float>; ++i) x[i] = static_cast<float>(p[i].value);
  return x;
#endif
}
RNNEXT_INLINE void store(Float16* p, Vec<float> x) {
#ifdef RNNEXT_X86
  *reinterpret_cast<HalfBits*>(p) = (HalfBits)RNNEXT_X86(cvtps_ph)(x, 0);
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i].value = static_cast<_Float16>(x[i]);
#endif
}

// x, but at most `limit`; NaN stays. One instruction where GCC makes three of the comparison.
template <class V, class C>
RNNEXT_INLINE V at_most(V x, C limit) {
  const V limits = V{} + limit;
#ifdef RNNEXT_X86
  if constexpr (sizeof(C) == 4) return RNNEXT_X86(min_ps)(limits, x);
  if constexpr (sizeof(C) == 8) return RNNEXT_X86(min_pd)(limits, x);
#else
  return x > limits ? limits : x;
#endif
}

// The same, but at least `limit`, of floats.
template <class V>
RNNEXT_INLINE V at_least(V x, float limit) {
  const V limits = V{} + limit;
#ifdef RNNEXT_X86
  return RNNEXT_X86(max_ps)(limits, x);
#else
  return x < limits ? limits : x;
#endif
}

// a where `which` is set, else b.
template <class Bits, class V>
RNNEXT_INLINE V select(Bits which, V a, V b) {
  return which ? a : b;
}

// The first n lanes of x; the others are 0.
template <class C>
RNNEXT_INLINE Vec<C> keep_first(Vec<C> x, int64_t n) {
  decltype(x < x) lane;
  for (int i = 0; i < kLanes<C>; ++i) lane[i] = i;
  return lane < static_cast<decltype(lane[0] + lane[0])>(n) ? x : Vec<C>{};
}

RNNEXT_INLINE Vec<float> root(Vec<float> x) {
#ifdef RNNEXT_X86
  return RNNEXT_X86(sqrt_ps)(x);
#elif defined(__aarch64__) && RNNEXT_VECTOR_BYTES == 16
  return (Vec<float>)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// a * b + c, always rounded once if the CPU can. GCC contracts such sums in some places and not in
// others, so the same sum would have other bits in another tile.
template <class C>
RNNEXT_INLINE Vec<C> fused(Vec<C> a, Vec<C> b, Vec<C> c) {
#ifdef RNNEXT_X86
  if constexpr (sizeof(C) == 4) return RNNEXT_X86(fmadd_ps)(a, b, c);
  if constexpr (sizeof(C) == 8) return RNNEXT_X86(fmadd_pd)(a, b, c);
#elif defined(__aarch64__) && RNNEXT_VECTOR_BYTES == 16
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  if constexpr (sizeof(C) == 8)
    return (Vec<C>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// A sum of any number of vectors, and apart from it what rounding took from the sum (Neumaier).
template <class C>
RNNEXT_INLINE void add_to(C* sum, C* lost, Vec<C> x) {
  const Vec<C> before = load(sum), now = before + x, added = now - before;
  store(sum, now);
  store(lost, load(lost) + ((before - (now - added)) + (x - added)));
}
template <class C>
RNNEXT_INLINE Vec<C> total_of(const C* sum, const C* lost) {
  const Vec<C> rest = load(lost);
  return load(sum) + (rest == rest ? rest : Vec<C>{});  // NaN where the sum is infinite
}

// The polynomial in x with these coefficients, that of the highest power first.
template <class V, class C, class... Others>
RNNEXT_INLINE V polynomial(V x, C first, C second, Others... others) {
  V sum = first * x + second;
  ((sum = sum * x + others), ...);
  return sum;
}

// The bit of the sign, as an integer of the same size.
template <class C, class Int = std::conditional_t<sizeof(C) == 4, int, long long>>
constexpr Int kSignBit = Int{1} << (8 * sizeof(C) - 1);
template <class V>
RNNEXT_INLINE V magnitude(V x) {
  using Bits = decltype(x < x);
  return (V)((Bits)x & ~kSignBit<decltype(x[0] + x[0])>);
}

// x as it would be read back from storage.
template <class S>
RNNEXT_INLINE Vec<Compute<S>> as_stored(Vec<Compute<S>> x) {
  if constexpr (kNative<S>) return x;
  S lanes[kLanes<Compute<S>>];
  store(lanes, x);
  return load(lanes);
}

// Load and store the first n lanes. Out of line, unless the CPU masks them (AVX2: loads alone).
#ifdef RNNEXT_AVX512
template <class C>
RNNEXT_INLINE unsigned first_lanes(int64_t n) {
  return n >= kLanes<C> ? (1u << kLanes<C>)-1 : n > 0 ? (1u << n) - 1 : 0;
}
template <class S>
RNNEXT_INLINE Vec<Compute<S>> load_first(const S* p, int64_t n) {
  const unsigned lanes = first_lanes<Compute<S>>(n);
  if constexpr (sizeof(S) == 8) return (Vec<double>)_mm512_maskz_loadu_pd(lanes, p);
  if constexpr (sizeof(S) == 4) return (Vec<float>)_mm512_maskz_loadu_ps(lanes, p);
  if constexpr (sizeof(S) == 2) {
    const HalfBits bits = (HalfBits)_mm256_maskz_loadu_epi16(lanes, p);
    return load(reinterpret_cast<const S*>(&bits));
  }
}
template <class S>
RNNEXT_INLINE void store_first(S* p, Vec<Compute<S>> x, int64_t n) {
  const unsigned lanes = first_lanes<Compute<S>>(n);
  if constexpr (sizeof(S) == 8) _mm512_mask_storeu_pd(p, lanes, (__m512d)x);
  if constexpr (sizeof(S) == 4) _mm512_mask_storeu_ps(p, lanes, (__m512)x);
  if constexpr (sizeof(S) == 2) {
    HalfBits bits;
    store(reinterpret_cast<S*>(&bits), x);
    _mm256_mask_storeu_epi16(p, lanes, (__m256i)bits);
  }
}
#else
#ifdef RNNEXT_X86
template <class C>
  requires kNative<C>
RNNEXT_INLINE Vec<C> load_first(const C* p, int64_t n) {
  const __m256i lanes = (__m256i)keep_first<C>((Vec<C>)_mm256_set1_epi32(-1), n);
  if constexpr (sizeof(C) == 8) return (Vec<C>)_mm256_maskload_pd(p, lanes);
  if constexpr (sizeof(C) == 4) return (Vec<C>)_mm256_maskload_ps(p, lanes);
}
#endif
template <class S>
__attribute__((noinline)) Vec<Compute<S>> load_first(const S* p, int64_t n) {
  S lanes[kLanes<Compute<S>>] = {};
  if (n > 0) __builtin_memcpy(lanes, p, n * sizeof(S));
  return load(lanes);
}
template <class S>
__attribute__((noinline)) void store_first(S* p, Vec<Compute<S>> x, int64_t n) {
  S lanes[kLanes<Compute<S>>];
  store(lanes, x);
  if (n > 0) __builtin_memcpy(p, lanes, n * sizeof(S));
}
#endif

// n values of storage type S at p (n >= the lanes: all of them; n <= 0: none); lanes past n are 0.
template <class S>
RNNEXT_INLINE Vec<Compute<S>> load_some(const S* p, int64_t n) {
  return n >= kLanes<Compute<S>> ? load(p) : load_first(p, n);
}
template <class S>
RNNEXT_INLINE void store_some(S* p, Vec<Compute<S>> x, int64_t n) {
  if (n >= kLanes<Compute<S>>) return store(p, x);
  store_first(p, x, n);
}
// Copies n values, of which one kind may be stored in 16 bits.
template <class From, class To>
RNNEXT_INLINE void copy(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<Compute<To>>)
    store_some(to + i, load_some(from + i, n - i), n - i);
}
// As store_some, of what is read much later: `past_caches` stores all of x, which is aligned, in
// memory alone, where the instruction set can. Other threads see it after finish_past_caches().
template <class S>
RNNEXT_INLINE void store_kept(S* p, Vec<Compute<S>> x, int64_t n, bool past_caches) {
  if (!past_caches) return store_some(p, x, n);
#ifdef RNNEXT_X86
  float* const to = reinterpret_cast<float*>(p);
  if constexpr (kNative<S>) return RNNEXT_X86(stream_ps)(to, (Vec<float>)x);
  HalfFloats bits;
  store(reinterpret_cast<S*>(&bits), x);
  RNNEXT_X86_HALF(stream_ps)(to, bits);
#else
  store(p, x);
#endif
}
RNNEXT_INLINE void finish_past_caches() {
#ifdef RNNEXT_X86
  _mm_sfence();
#endif
}
// Whether rows from p on, of H numbers, are whole, aligned vectors.
template <class C>
RNNEXT_INLINE bool in_vectors(const void* p, int64_t H) {
  return H % kLanes<C> == 0 && reinterpret_cast<uintptr_t>(p) % sizeof(Vec<C>) == 0;
}

}  // namespace rnnext::RNNEXT_ISA
