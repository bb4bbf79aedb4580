// Normally distributed numbers that depend only on their place: neither the thread that computes
// them, nor their order, nor the ISA changes a bit.
#pragma once

#include "cpu/simd/operand.h"
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

// Philox 4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: seven
// rounds pass the tests of TestU01) of one block of four words a lane of 64 bits. Only the low half
// of a lane counts: products read nothing else, and a shift gets the high half of a product.
typedef uint64_t Lanes64 __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
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
  static uint64_t product(uint64_t x, uint32_t by) { return (x & 0xffffffff) * by; }
  template <int side, class Words>
  static RNNEXT_INLINE Words times(Words x) {
    return product(x, side == 0 ? 0xD2511F53 : 0xCD9E8D57);
  }

  RNNEXT_INLINE void round(const uint64_t (&keys)[2]) {
    const Lanes64 p0 = times<0>(x[0]), p1 = times<1>(x[2]);
    *this = {(p1 >> 32) ^ x[1] ^ keys[0], p1, (p0 >> 32) ^ x[3] ^ keys[1], p0};
  }
};

// The first three rounds of a counter that consists of step, block, direction and sequence. No
// product up to there depends on both the block, by which lanes differ, and the sequence.
struct FirstRounds {
  const PhiloxKeys& keys;
  const uint64_t first[2];

  FirstRounds(const PhiloxKeys& keys, uint64_t t, uint64_t d)
      : keys(keys), first{Philox::times<0>(t), Philox::times<1>(d)} {}

  template <class Words>
  struct Products {
    Words second, third;
  };
  // side: 0 of blocks, 1 of a sequence.
  template <int side, class Words>
  RNNEXT_INLINE Products<Words> products(Words x) const {
    x = Philox::times<side>(x ^ (first[!side] >> 32) ^ keys.of_round[0][side]);
    return {x, Philox::times<!side>((x >> 32) ^ first[side] ^ keys.of_round[1][!side])};
  }
  RNNEXT_INLINE Philox together(const Products<Lanes64>& blocks,
                                const Products<uint64_t>& sequence) const {
    const Lanes64 last = Lanes64{} + sequence.third;
    return {(blocks.third >> 32) ^ keys.of_round[2][0] ^ sequence.second, blocks.third,
            blocks.second ^ keys.of_round[2][1] ^ (last >> 32), last};
  }
};

// The low halves of both, one of `even`, one of `odd`.
template <int... L>
RNNEXT_INLINE FloatBits alternate(Lanes64 even, Lanes64 odd, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector((FloatBits)even, (FloatBits)odd,
                                 (L % 2 ? L - 1 + kLanes<float> : L)...);
}

// Box and Muller's transform: a radius and an angle at a time, random words, become two independent
// normal numbers. The radius comes from an odd number of 31 bits, so no number exceeds 6.6.
RNNEXT_INLINE void box_muller(FloatBits radius, FloatBits angle, Vec<float>* first,
                              Vec<float>* second) {
  typedef int32_t Ints __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  using V = Vec<float>;
  const Ints bits = (Ints) __builtin_convertvector((Ints)((radius & 0x7fffffff) | 1), V);
  // The number is 2^(31 + n) m, 1/sqrt(2) <= m < sqrt(2), and -2 log(m) is (m - 1) times a minimax
  // polynomial: relative error 1.8e-7.
  const Ints exponent = (bits - 0x4eb504f3) & (Ints{} - (1 << 23));  // 2^23 n
  const V x = fused_once((V)(bits - exponent), V{} + 0x1p-31f, V{} - 1);
  const V log_m =
      x * polynomial_once(x, 0.20213791728019714f, -0.32445162534713745f, 0.34501659870147705f,
                          -0.39800330996513367f, 0.4993981719017029f, -0.6667011976242065f,
                          1.0000072717666626f, -1.9999998807907104f);
  const V r = root(fused_once(__builtin_convertvector(exponent, V),
                              V{} - 1.3862943611198906f * 0x1p-23f, log_m));
  // 23 bits choose y in [-1/2, 1/2), the highest the sign of the cosine of pi y. The polynomials
  // are within 9e-8, the sine's within 5e-8.
  const V y = (V)((angle & 0x7fffff) | 0x3f800000) - 1.5f, z = y * y;
  const V cosine = polynomial_once(z, 0.2196968048810959f, -1.3318802118301392f, 4.058412075042725f,
                                   -4.934792995452881f, 0.9999999403953552f);
  *first = r * (V)((FloatBits)cosine ^ (angle & 0x80000000));
  *second = r * (y * polynomial_once(z, 0.07756038755178452f, -0.5982421040534973f,
                                     2.550069808959961f, -5.167709827423096f, 3.1415927410125732f));
}

// Draws words [begin, end), and some around them, of all sequences: take(i, j, words) gets four
// vectors of sequence i, which begin at words j, j + 16, j + 32 and j + 48. Block k of the 16 of 64
// words has words k, k + 16, k + 32 and k + 48, so that vectors of up to 16 lanes stay as they are.
template <class Take>
RNNEXT_INLINE void draw_words(const PhiloxKeys& keys, int64_t t, const SequenceNumbers& of, int d,
                              int64_t begin, int64_t end, const Take& take) {
  // Rounds wait for each other: two sequences at once where there are registers for them.
  constexpr int N = RNNEXT_VECTOR_BYTES == 64 ? 4 : 2, kSome = 16;
  typedef Lanes64 Loaded __attribute__((may_alias));
  alignas(64) static constexpr uint64_t kEven[] = {0, 2, 4, 6, 8, 10, 12, 14};
  const FirstRounds rounds(keys, static_cast<uint64_t>(t), static_cast<uint64_t>(d));
  FirstRounds::Products<uint64_t> own[kSome] = {};
  FloatBits words[kSome][4];
  for (int64_t done = 0; done < of.size; done += kSome) {
    const int64_t some = of.size - done < kSome ? of.size - done : kSome;
    for (int64_t i = 0; i < some; ++i)
      own[i] = rounds.products<1>(
          static_cast<uint64_t>(of.order ? of.order[done + i] : of.first + done + i));
    for (int64_t group = begin / 64; 64 * group < end; ++group)
      for (int first = 0; first < 16; first += kLanes<float>) {
        const Lanes64 even =
            *reinterpret_cast<const Loaded*>(kEven) + static_cast<uint64_t>(16 * group + first);
        const auto of_even = rounds.products<0>(even), of_odd = rounds.products<0>(even + 1);
        for (int64_t i = 0; i < some; i += N / 2) {
          Philox blocks[N];  // of each sequence the even ones, then the odd ones
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n)
            blocks[n] = rounds.together(n % 2 ? of_odd : of_even, own[i + n / 2]);
#pragma GCC unroll 4
          for (int round = 3; round < 7; ++round)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) blocks[n].round(keys.of_round[round]);
#pragma GCC unroll 8
          for (int n = 0; n < 2 * N; ++n)
            words[i + n / 4][n % 4] =
                alternate(blocks[n / 4 * 2].x[n % 4], blocks[n / 4 * 2 + 1].x[n % 4],
                          std::make_integer_sequence<int, kLanes<float>>());
        }
        for (int64_t i = 0; i < some; ++i) take(done + i, 64 * group + first, words[i]);
      }
  }
}

// Passes normal numbers to take(i, j, vector), where begin <= j < end is the number of the first.
template <class Take>
RNNEXT_INLINE void draw(const PhiloxKeys& keys, int64_t t, const SequenceNumbers& of, int d,
                        int64_t begin, int64_t end, const Take& take) {
  draw_words(keys, t, of, d, begin, end,
             [&](int64_t i, int64_t j, const FloatBits(&words)[4]) __attribute__((always_inline)) {
               Vec<float> numbers[4];
#pragma GCC unroll 2
               for (int k = 0; k < 4; k += 2)
                 box_muller(words[k], words[k + 1], &numbers[k], &numbers[k + 1]);
#pragma GCC unroll 4
               for (int k = 0; k < 4; ++k, j += 16)
                 if (begin <= j && j < end) take(i, j, numbers[k]);
             });
}

// Writes words [0, n) of each sequence to a row of `to`.
RNNEXT_NOINLINE void random_words(const PhiloxKeys& keys, int64_t t, const SequenceNumbers& of,
                                  int64_t n, uint32_t* to) {
  draw_words(keys, t, of, 0, 0, n, [&](int64_t i, int64_t j, const FloatBits(&words)[4]) {
    for (int k = 0; k < 4 && j < n; ++k, j += 16)
      store_some(reinterpret_cast<float*>(to) + i * n + j, (Vec<float>)words[k], n - j);
  });
}

// Writes numbers [0, n) of each sequence to a row of `to`, `stride` numbers apart.
RNNEXT_NOINLINE void normals(const PhiloxKeys& keys, int64_t t, const SequenceNumbers& of, int d,
                             int64_t n, float* to, int64_t stride) {
  draw(keys, t, of, d, 0, n,
       [&](int64_t i, int64_t j, Vec<float> x) { store_some(to + i * stride + j, x, n - j); });
}

// Writes from + scale * noise of units [begin, end) of each sequence to a row of `to`, whole
// vectors, of which one begins with unit `begin`. The pointers are those of unit 0.
template <class C>
RNNEXT_NOINLINE void add_noise(const PhiloxKeys& keys, int64_t t, const SequenceNumbers& of, int d,
                               const C* scale, const C* from, Rows<C> to, int64_t begin,
                               int64_t end) {
  draw(keys, t, of, d, begin, end,
       [&](int64_t i, int64_t j, Vec<float> x) __attribute__((always_inline)) {
         C* const row = to[i];
         if constexpr (sizeof(C) == sizeof(float)) {
           store(row + j, fused<C>(load(scale + j), x, load(from + j)));
         } else {
           for (int half = 0; half < 2; ++half, j += kLanes<C>) {
             Vec<C> noise = {};
             for (int k = 0; k < kLanes<C>; ++k) noise[k] = x[half * kLanes<C> + k];
             if (j < end) store(row + j, fused<C>(load(scale + j), noise, load(from + j)));
           }
         }
       });
}

}  // namespace rnnext::RNNEXT_ISA
