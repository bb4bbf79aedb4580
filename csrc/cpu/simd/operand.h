// Operands: what a multiply-add takes. F, for format, is the type of one: a number of the compute
// type, or, if the CPU has bfloat16 dot products, a Pair of bfloat16 that follow each other along
// k: its multiply-add takes two steps of k at once, at twice the speed and from half the memory.
// AMX tiles take blocks of such pairs.
#pragma once

#include "cpu/simd/vector.h"

namespace rnnext::RNNEXT_ISA {

// A Pair for AMX tiles. With two parts, a number is the sum of two bfloat16, its high and its low
// part, which keep about 16 bits. A row consists of blocks of 32 values along k, each with the high
// parts before the low ones, so the parts of an operand lie apart.
template <int parts>
struct [[gnu::packed, gnu::aligned(2), gnu::may_alias]] TileOperand {
  int32_t bits[parts];
};
template <int parts>
constexpr int kLanes<TileOperand<parts>> = kLanes<float>;

// How many bfloat16 a number is split into; 0: it stays as it is.
template <class F>
constexpr int kParts = 0;
template <>
constexpr int kParts<Pair> = 1;
template <int parts>
constexpr int kParts<TileOperand<parts>> = parts;
// Steps of k in one operand.
template <class F>
constexpr int kKPack = kParts<F> > 0 ? 2 : 1;
// Rows are padded with zeros to a multiple of so many steps of k.
template <class F>
constexpr int kKAlign = kKPack<F>;
template <int parts>
constexpr int kKAlign<TileOperand<parts>> = 32;
template <class F>
constexpr bool kTiled = (kKAlign<F> > kKPack<F>);
// The content of a lane of a vector of operands.
template <class F>
using Lane = std::conditional_t<kTiled<F>, Pair, F>;

template <class F>
constexpr int64_t operands_in(int64_t k) {
  return (k + kKAlign<F> - 1) / kKAlign<F> * (kKAlign<F> / kKPack<F>);
}

// Whether all operands that see() was given are finite. It takes a cycle.
template <class F>
struct Finite {
  using Word = std::conditional_t<sizeof(F) == 8, uint64_t, uint32_t>;
  typedef Word Bits __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  // The bits of the exponents in an operand, a one in the last place of each, and the signs, to
  // which the sum of the first two carries where all bits of an exponent are set: infinity or NaN.
  static constexpr Word kBits = sizeof(F) == 8  ? 0x7ff0000000000000
                                : kParts<F> > 0 ? 0x7f807f80
                                                : 0x7f800000;
  static constexpr Word kOnes = kBits & ~(kBits << 1), kSigns = (kBits << 1) & ~kBits;
  Bits seen = {};
  RNNEXT_INLINE void see(Vec<F> x) { seen |= ((Bits)x & kBits) + kOnes; }
  bool all() const {
    for (int i = 0; i < kLanes<F>; ++i)
      if (seen[i] & kSigns) return false;
    return true;
  }
};

template <class F>
struct Operands {
  // kLanes operands along k, starting at p: n values, then zeros. (Only Pair has a part 1.)
  template <int part = 0, class S>
  static RNNEXT_INLINE Vec<F> along(const S* p, int64_t n) {
    return load_some(p, n);
  }
  // An operand in each lane, from rows at k and k + 1 (null: zeros) of n values, then zeros.
  template <int part = 0, class S>
  static RNNEXT_INLINE Vec<F> across(const S* row, const S*, int64_t n) {
    return row ? load_some(row, n) : Vec<F>{};
  }
  // Stores x as values column, column + 1, .. of a row of operands; column: a multiple of lanes.
  static RNNEXT_INLINE void store(F* row, int64_t column, Vec<Compute<F>> x) {
    RNNEXT_ISA::store(row + column, x);
  }
  static RNNEXT_INLINE void store_some(F* row, int64_t column, Vec<Compute<F>> x, int64_t n) {
    RNNEXT_ISA::store_some(row + column, x, n);
  }
};

// The low part, which rounding to bfloat16 loses.
RNNEXT_INLINE Vec<float> rest_of(Vec<float> x) { return x - as_stored<BFloat16>(x); }

// Part 1 of x is its low part, part 0 is x itself, of which rounding leaves the high part.
template <int part>
RNNEXT_INLINE Vec<float> part_of(Vec<float> x) {
  if constexpr (part > 0) return rest_of(x);
  return x;
}

template <>
struct Operands<Pair> {
  template <int part = 0, class S>
  static RNNEXT_INLINE Vec<Pair> along(const S* p, int64_t n) {
    return rounded(part_of<part>(load_some(p, n)),
                   part_of<part>(load_some(p + kLanes<float>, n - kLanes<float>)));
  }
  template <int part = 0>
  static RNNEXT_INLINE Vec<Pair> along(const BFloat16* p, int64_t n) {
    static_assert(part == 0);
    if (n >= 2 * kLanes<Pair>) return load(reinterpret_cast<const Pair*>(p));
    Vec<Pair> x = {};
    __builtin_memcpy(&x, p, n * sizeof(BFloat16));
    return x;
  }
  template <int part = 0, class S>
  static RNNEXT_INLINE Vec<Pair> across(const S* row, const S* next, int64_t n) {
    const Vec<float> x = row ? load_some(row, n) : Vec<float>{};
    const Vec<float> y = next ? load_some(next, n) : Vec<float>{};
    return interleaved(part_of<part>(x), part_of<part>(y));
  }
#if defined(RNNEXT_BF16_DOT) && defined(RNNEXT_AVX512)
  static RNNEXT_INLINE Vec<Pair> interleaved(Vec<float> x, Vec<float> y) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Vec<Pair>)_mm512_permutexvar_epi16(order, (__m512i)rounded(x, y));
  }
  static RNNEXT_INLINE void store(Pair* row, uint64_t column, Vec<float> x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(row + column / 2),
                        (__m256i)_mm512_cvtneps_pbh((__m512)x));
  }
  static RNNEXT_INLINE void store_some(Pair* row, uint64_t column, Vec<float> x, int64_t n) {
    _mm256_mask_storeu_epi16(row + column / 2, first_lanes<float>(n),
                             (__m256i)_mm512_cvtneps_pbh((__m512)x));
  }
  static RNNEXT_INLINE Vec<Pair> rounded(Vec<float> low, Vec<float> high) {
    return (Vec<Pair>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
#else
  static RNNEXT_INLINE Vec<Pair> interleaved(Vec<float> x, Vec<float> y) {
    return (Vec<Pair>)(rounded_bits(x) | rounded_bits(y) << 16);
  }
  static RNNEXT_INLINE void store(Pair* row, uint64_t column, Vec<float> x) {
    RNNEXT_ISA::store(reinterpret_cast<BFloat16*>(row) + column, x);
  }
  static RNNEXT_INLINE void store_some(Pair* row, uint64_t column, Vec<float> x, int64_t n) {
    RNNEXT_ISA::store_some(reinterpret_cast<BFloat16*>(row) + column, x, n);
  }
  static RNNEXT_INLINE Vec<Pair> rounded(Vec<float> low, Vec<float> high) {
    Pair pairs[kLanes<Pair>];
    store(pairs, 0, low);
    store(pairs, kLanes<float>, high);
    return load(pairs);
  }
#endif
};

template <int parts>
struct Operands<TileOperand<parts>> {
  using F = TileOperand<parts>;
  // The pairs of one part of the block that holds value `column`, unsigned: divided by a shift.
  static RNNEXT_INLINE Pair* block(F* row, uint64_t column, int part) {
    return reinterpret_cast<Pair*>(row) + (column / 32 * parts + part) * 16;
  }
  static RNNEXT_INLINE void store(F* row, uint64_t column, Vec<float> x) {
    for (int part = 0; part < parts; ++part, x = rest_of(x))
      Operands<Pair>::store(block(row, column, part), column % 32, x);
  }
  static RNNEXT_INLINE void store_some(F* row, uint64_t column, Vec<float> x, int64_t n) {
    for (int part = 0; part < parts; ++part, x = rest_of(x))
      Operands<Pair>::store_some(block(row, column, part), column % 32, x, n);
  }
};

// Rows `stride` apart.
template <class T>
struct Rows {
  T* first = nullptr;  // null: there are none
  int64_t stride = 0;

  explicit operator bool() const { return first != nullptr; }
  operator Rows<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {first, stride};
  }
  T* operator[](int64_t row) const { return first + row * stride; }
};

// Clears what follows the last value of rows of operands: half a pair, or part of a block. It is
// multiplied with zeros, so it must not be infinite or NaN.
template <class F>
RNNEXT_INLINE void clear_row_ends(F* rows, int64_t n, int64_t stride, int64_t values) {
  if constexpr (kTiled<F>) {
    for (int64_t i = 0; values % 32 && i < n; ++i)
      for (int part = 0; part < kParts<F>; ++part)
        __builtin_memset(
            reinterpret_cast<BFloat16*>(Operands<F>::block(rows + i * stride, values, part)) +
                values % 32,
            0, (32 - values % 32) * sizeof(BFloat16));
  } else if constexpr (kKPack<F> > 1) {
    for (int64_t i = 0; values % 2 && i < n; ++i) rows[i * stride + values / 2].bits &= 0xffff;
  }
}

// Whether a row of the storage type is a row of operands.
template <class S, class F>
constexpr bool kStoredAsOperands =
    kParts<F> == 0 ? sizeof(S) == sizeof(F) : kParts<F> == 1 && sizeof(S) == sizeof(BFloat16);

}  // namespace rnnext::RNNEXT_ISA
