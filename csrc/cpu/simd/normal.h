// Normally distributed numbers that depend only on their place: neither the thread that computes
// them, nor their order, nor the ISA changes a bit.
#pragma once

#include "cpu/simd/vector.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

// a * b + c, rounded once on every CPU: without an instruction for it libm computes it, slowly.
RNNEXT_INLINE Vec<float> fused_once(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(RNNEXT_X86) || (defined(__aarch64__) && RNNEXT_VECTOR_BYTES == 16)
  return fused<float>(a, b, c);
#else
  for (int i = 0; i < kLanes<float>; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
// The polynomial with these coefficients, that of the highest power first.
template <class... Coefficients>
RNNEXT_INLINE Vec<float> polynomial_once(Vec<float> x, float first, Coefficients... others) {
  Vec<float> sum = Vec<float>{} + first;
  ((sum = fused_once(sum, x, Vec<float>{} + others)), ...);
  return sum;
}

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of one
// block of four numbers a lane of 64 bits. Only the low half of a lane counts: products read
// nothing else, and a shift gets the high half of a product.
typedef uint64_t Lanes64 __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
typedef uint64_t Unaligned64
    __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(8), may_alias));
struct Philox {
  Lanes64 x[4];

  static RNNEXT_INLINE Lanes64 product(Lanes64 x, uint32_t by) {
#ifdef RNNEXT_X86
    typedef long long Register __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
    return (Lanes64)RNNEXT_X86(mul_epu32)((Register)x, Register{} + by);
#elif defined(__aarch64__) && RNNEXT_VECTOR_BYTES == 16
    return (Lanes64)vmull_u32(vmovn_u64((uint64x2_t)x), vdup_n_u32(by));
#else
    return (x & 0xffffffff) * by;
#endif
  }
  RNNEXT_INLINE void round(const uint64_t (&keys)[2]) {
    const Lanes64 p0 = product(x[0], 0xD2511F53), p1 = product(x[2], 0xCD9E8D57);
    x[0] = (p1 >> 32) ^ x[1] ^ keys[0];
    x[1] = p1;
    x[2] = (p0 >> 32) ^ x[3] ^ keys[1];
    x[3] = p0;
  }
};

// Box and Muller's transform: two independent normal numbers from two random words. The radius
// comes from a u in (0, 1] with 31 random bits, so no number exceeds 6.7.
RNNEXT_INLINE void box_muller(FloatBits radius, FloatBits angle, Vec<float>* first,
                              Vec<float>* second) {
  typedef int32_t Ints __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  using V = Vec<float>;
  const V u =
      fused_once(__builtin_convertvector((Ints)(radius >> 1), V), V{} + 0x1p-31f, V{} + 0x1p-32f);
  // u = 2^n m, 1/sqrt(2) <= m < sqrt(2), and -2 log(m) is (m - 1) times a minimax polynomial:
  // relative error 1.1e-6.
  const Ints n = ((Ints)u - 0x3f3504f3) >> 23;
  const V x = (V)((Ints)u - (n << 23)) - 1;
  const V log_m = x * polynomial_once(x, -0.23792203994763234f, 0.373357052838632f,
                                      -0.4099265942029115f, 0.49819488811520696f,
                                      -0.66629017809524f, 1.0000222576199571f, -2.000001949646334f);
  const V r = root(fused_once(__builtin_convertvector(n, V), V{} - 1.3862943611198906f, log_m));
  // The two highest bits choose a quarter of the circle, the others an angle of at most pi/4 from
  // its middle: cosine within 3.3e-8, sine within 3.2e-9.
  const V y = __builtin_convertvector((Ints)(angle << 2), V) * 0x1p-31f, z = y * y;
  const V sine =
      y * polynomial_once(z, -3.59504522e-05f, 2.49000102e-03f, -8.07454325e-02f, 7.85398161e-01f);
  const V cosine =
      polynomial_once(z, -3.18727840e-04f, 1.58496842e-02f, -3.08424166e-01f, 9.99999967e-01f);
  const V signed_cosine = (V)((Ints)cosine ^ (Ints)((angle << 1) & 0x80000000));
  const Ints swaps = (Ints)angle < 0;
  *first = r * (swaps ? sine : signed_cosine);
  *second = r * (swaps ? signed_cosine : sine);
}

// Passes words [64 * group, 64 * (group + N)) of a step of a sequence to take(j, words, others):
// `words` begin at word j < end, `others` at word j + 16. Philox's counter consists of block, time,
// sequence and direction. Block i of a group's 16 has its words i, i + 16, i + 32 and i + 48, so
// that vectors of up to 16 lanes need no shuffling.
template <int N, class Take>
RNNEXT_INLINE void draw_groups(const PhiloxKeys& keys, int64_t t, int64_t b, int d, int64_t group,
                               int64_t end, const Take& take) {
  static constexpr uint64_t kEven[] = {0, 2, 4, 6, 8, 10, 12, 14};
  const Lanes64 even = *reinterpret_cast<const Unaligned64*>(kEven);
  for (int first = 0; first < 16; first += kLanes<float>) {
    Philox of[2 * N];  // of each group's even blocks, and of its odd ones
    for (int i = 0; i < 2 * N; ++i) {
      const auto block = static_cast<uint64_t>(16 * (group + i / 2) + first + i % 2);
      of[i] = {even + block, Lanes64{} + static_cast<uint64_t>(t),
               Lanes64{} + static_cast<uint64_t>(b), Lanes64{} + static_cast<uint64_t>(d)};
    }
#pragma GCC unroll 10
    for (int i = 0; i < 10; ++i)
      for (Philox& each : of) each.round(keys.of_round[i]);
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < 4; i += 2) {
        const int64_t j = 64 * (group + n) + 16 * i + first;
        if (j >= end) break;
        const auto word = [&](int which) {
          return (FloatBits)((of[2 * n].x[which] & 0xffffffff) | (of[2 * n + 1].x[which] << 32));
        };
        take(j, word(i), word(i + 1));
      }
  }
}

// The same of words [begin, end) and some around them. Two groups at once where there are registers
// for them, since Philox's rounds wait for each other.
template <class Take>
RNNEXT_INLINE void draw_words(const PhiloxKeys& keys, int64_t t, int64_t b, int d, int64_t begin,
                              int64_t end, const Take& take) {
  constexpr int kGroups = RNNEXT_VECTOR_BYTES == 64 ? 2 : 1;
  int64_t group = begin / 64;
  for (; 64 * (group + kGroups - 1) < end; group += kGroups)
    draw_groups<kGroups>(keys, t, b, d, group, end, take);
  if (kGroups > 1 && 64 * group < end) draw_groups<1>(keys, t, b, d, group, end, take);
}

// Passes normal numbers to take(j, vector), where j < end is the number of the first.
template <class Take>
RNNEXT_INLINE void draw(const PhiloxKeys& keys, int64_t t, int64_t b, int d, int64_t begin,
                        int64_t end, const Take& take) {
  draw_words(keys, t, b, d, begin, end, [&](int64_t j, FloatBits radius, FloatBits angle) {
    Vec<float> x[2];
    box_muller(radius, angle, &x[0], &x[1]);
    take(j, x[0]);
    if (j + 16 < end) take(j + 16, x[1]);
  });
}

// Writes words [0, n) to `to`.
RNNEXT_NOINLINE void random_words(const PhiloxKeys& keys, int64_t t, int64_t b, int64_t n,
                                  uint32_t* to) {
  float* const words = reinterpret_cast<float*>(to);
  draw_words(keys, t, b, 0, 0, n, [&](int64_t j, FloatBits x, FloatBits y) {
    store_some(words + j, (Vec<float>)x, n - j);
    if (j + 16 < n) store_some(words + j + 16, (Vec<float>)y, n - j - 16);
  });
}

// Writes numbers [0, n) to `to`.
RNNEXT_NOINLINE void normals(const PhiloxKeys& keys, int64_t t, int64_t b, int d, int64_t n,
                             float* to) {
  draw(keys, t, b, d, 0, n, [&](int64_t j, Vec<float> x) { store_some(to + j, x, n - j); });
}

// to = from + scale * noise of units [begin, end), whole vectors; the pointers are those of unit 0.
template <class C>
RNNEXT_NOINLINE void add_noise(const PhiloxKeys& keys, int64_t t, int64_t b, int d, const C* scale,
                               const C* from, C* to, int64_t begin, int64_t end) {
  draw(keys, t, b, d, begin, end, [&](int64_t j, Vec<float> x) {
    if (j < begin) return;
    if constexpr (sizeof(C) == sizeof(float)) {
      store(to + j, fused<C>(load(scale + j), x, load(from + j)));
    } else {
      for (int half = 0; half < 2; ++half, j += kLanes<C>) {
        Vec<C> noise = {};
        for (int i = 0; i < kLanes<C>; ++i) noise[i] = x[half * kLanes<C> + i];
        if (j < end) store(to + j, fused<C>(load(scale + j), noise, load(from + j)));
      }
    }
  });
}

}  // namespace rnnext::RNNEXT_ISA
