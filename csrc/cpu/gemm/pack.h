// Weights as the engines read them: panels of [K, kPanel] factors.
#pragma once

#include "cpu/gemm/tile.h"

namespace rnnext::RNNEXT_ISA {

template <class C, int S, int... L>
RNNEXT_INLINE void exchange(Vec<C>& a, Vec<C>& b, std::integer_sequence<int, L...>) {
  const Vec<C> lo = __builtin_shufflevector(a, b, ((L & S) ? kLanes<C> + L - S : L)...);
  b = __builtin_shufflevector(a, b, ((L & S) ? kLanes<C> + L : L + S)...);
  a = lo;
}
// Up to blocks of `end` x `end`.
#if RNNEXT_VECTOR_BYTES == 64 && !defined(RNNEXT_AVX512)
// Of vectors that are no registers, number by number.
template <class C>
RNNEXT_TILE void transpose(Vec<C> (&x)[kLanes<C>]) {
  for (int i = 0; i < kLanes<C>; ++i)
    for (int j = 0; j < i; ++j) {
      const auto y = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = y;
    }
}
#else
template <class C, int end = kLanes<C>, int S = 1>
RNNEXT_INLINE void transpose(Vec<C> (&x)[kLanes<C>]) {
  if constexpr (S < end) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<C>; ++i)
      if (!(i & S)) exchange<C, S>(x[i], x[i + S], std::make_integer_sequence<int, kLanes<C> >());
    transpose<C, end, 2 * S>(x);
  }
}
#endif

#ifdef RNNEXT_AVX512
RNNEXT_INLINE __m512i load_halves(const void* low, const void* high) {
  const __m256i first = _mm256_loadu_si256(static_cast<const __m256i_u*>(low));
  const __m256i second = _mm256_loadu_si256(static_cast<const __m256i_u*>(high));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}
#endif

// A block of a stored matrix [.., stride], at most `rows` rows and n values of each, transposed:
// x[k] has the factors at k, a row in each lane; the rest is zero.
template <class F, class S>
RNNEXT_INLINE void load_block(Vec<F> (&x)[kLanes<F>], const S* from, int64_t rows, int64_t stride,
                              int64_t n) {
  constexpr int kSteps = kLanes<F> * kDepth<F>;
  if (rows >= kLanes<F> && n >= kSteps) {
#ifdef RNNEXT_AVX512
    // Halves of rows are put together as they are loaded, which spares a quarter of the shuffles.
    if constexpr (kStoredAsFactors<S, F>) {
      constexpr int kHalf = kLanes<F> / 2;
      const int64_t apart = kHalf * stride;
#pragma GCC unroll 8
      for (int i = 0; i < kHalf; ++i, from += stride) {
        x[i] = (Vec<F>)load_halves(from, from + apart);
        x[i + kHalf] = (Vec<F>)load_halves(from + kSteps / 2, from + apart + kSteps / 2);
      }
      return transpose<F, kHalf>(x);
    }
#endif
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<F>; ++i, from += stride) x[i] = Factors<F>::along(from, kSteps);
  } else {
    for (int i = 0; i < kLanes<F>; ++i, from += stride)
      x[i] = i < rows ? Factors<F>::along(from, n) : Vec<F>{};
  }
  transpose<F>(x);
}

// The same of the pairs of one part of tile factors; of the low part, where `part` is 1.
template <int part, class S>
RNNEXT_INLINE void load_pairs(Vec<Pair> (&x)[kLanes<Pair>], const S* from, int64_t rows,
                              int64_t stride, int64_t n) {
  if constexpr (part == 0) return load_block<Pair>(x, from, rows, stride, n);
  for (int i = 0; i < kLanes<Pair>; ++i, from += stride)
    x[i] = i < rows ? Factors<Pair>::rest_along(from, n) : Vec<Pair>{};
  transpose<Pair>(x);
}

// Panels that are packed and multiplied at once, where each is used by one product only.
template <class F>
constexpr int64_t kStreamed = kTiled<F> ? 2 : 1;

// A stored matrix seen as K x columns panels: weight [columns, K] (transposed) or [K, columns], its
// stored rows `stride` apart.
template <class S, class F>
struct Matrix {
  const S* weight;
  int64_t K, columns;
  bool transposed;
  int64_t stride = transposed ? K : columns;

  // Values [begin, end) of K alone; where these are a product's pieces, each piece is packed for
  // itself, at piece_at(begin) of the whole.
  Matrix piece(int64_t begin, int64_t end) const {
    return {weight + (transposed ? begin : begin * stride), end - begin, columns, transposed,
            stride};
  }
  int64_t piece_at(int64_t begin) const { return panels() * kPanel<F> * factors_in<F>(begin); }

  int64_t panels() const { return panels_in<F>(columns); }
  int64_t panel_size() const { return factors_in<F>(K) * kPanel<F>; }
  int64_t packed_size() const { return panels() * panel_size(); }

  // Panel p into dst [factors of K, kPanel]; columns past the matrix are 0. Returns whether all
  // values are finite (of a transposed matrix; of others nobody asks).
  bool pack(int64_t p, F* dst) const {
    const int64_t column = p * kPanel<F>;
    if constexpr (kTiled<F>) {
      const bool finite = pack_part<0>(column, reinterpret_cast<Pair*>(dst));
      if constexpr (kParts<F> > 1) pack_part<1>(column, reinterpret_cast<Pair*>(dst));
      return finite;
    } else if (transposed) {
      const bool first = pack_transposed(column, dst);
      return pack_transposed(column + kLanes<F>, dst + kLanes<F>) && first;
    } else {
      pack_rows(column, dst);
      return true;
    }
  }
  // Panels [q, end) to dst on; where panel 0 would lie.
  const F* pack_panels(int64_t q, int64_t end, F* dst) const {
    for (int64_t r = q; r < end; ++r) pack(r, dst + (r - q) * panel_size());
    return dst - q * panel_size();
  }
  void pack_rows(int64_t column, F* dst) const {
    for (int64_t k = 0; k < K; k += kDepth<F>, dst += kPanel<F>)
      for (int64_t j = 0; j < kPanel<F>; j += kLanes<F>) {
        const S* row = weight + k * stride + column + j;
        const S* next = k + 1 < K ? row + stride : nullptr;
        store(dst + j, Factors<F>::across(row, next, columns - column - j));
      }
  }
  // A part of a panel of tile factors: blocks of 16 pairs along k, that part of each.
  template <int part>
  RNNEXT_TILE bool pack_part(int64_t column, Pair* dst) const {
    Finite<Pair> finite;
    dst += part * 16 * kPanel<F>;
    for (int64_t k = 0; k < K; k += kGrain<F>, dst += 16 * kParts<F> * kPanel<F>)
      for (int64_t j = 0; j < kPanel<F>; j += kLanes<F>) {
        const int64_t left = columns - column - j;
        Vec<Pair> x[kLanes<Pair>];
        if (transposed) {
          load_pairs<part>(x, weight + (column + j) * stride + k, left, stride, K - k);
        } else {
          for (int i = 0; i < 16; ++i) x[i] = pairs_across<part>(k + 2 * i, column + j, left);
        }
        for (int i = 0; i < 16; ++i) {
          store(dst + i * kPanel<F> + j, x[i]);
          finite.see(x[i]);
        }
      }
    return !transposed || finite.all();
  }
  template <int part>
  Vec<Pair> pairs_across(int64_t k, int64_t column, int64_t n) const {
    const S* const row = k < K ? weight + k * stride + column : nullptr;
    const S* const next = k + 1 < K ? row + stride : nullptr;
    if constexpr (part == 0) return Factors<Pair>::across(row, next, n);
    return Factors<Pair>::rest_across(row, next, n);
  }
  bool pack_transposed(int64_t column, F* dst) const {
    constexpr int kSteps = kLanes<F> * kDepth<F>;
    Finite<F> finite;
    for (int64_t k = 0; k < K; k += kSteps, dst += kLanes<F> * kPanel<F>) {
      Vec<F> x[kLanes<F>];
      load_block<F>(x, weight + column * stride + k, columns - column, stride, K - k);
      for (int i = 0; i < kLanes<F> && k + i * kDepth<F> < K; ++i) {
        store(dst + i * kPanel<F>, x[i]);
        finite.see(x[i]);
      }
    }
    return finite.all();
  }
};

}  // namespace rnnext::RNNEXT_ISA
