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
template <class C, int end = kLanes<C>, int S = 1>
RNNEXT_INLINE void transpose(Vec<C> (&x)[kLanes<C>]) {
  if constexpr (S < end) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<C>; ++i)
      if (!(i & S)) exchange<C, S>(x[i], x[i + S], std::make_integer_sequence<int, kLanes<C>>());
    transpose<C, end, 2 * S>(x);
  }
}

#if RNNEXT_VECTOR_BYTES == 64
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
#if RNNEXT_VECTOR_BYTES == 64
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
    if (transposed) {
      const bool first = pack_transposed(column, dst);
      return pack_transposed(column + kLanes<F>, dst + kLanes<F>) && first;
    }
    for (int64_t k = 0; k < K; k += kDepth<F>, dst += kPanel<F>)
      for (int64_t j = 0; j < kPanel<F>; j += kLanes<F>) {
        const S* row = weight + k * stride + column + j;
        const S* next = k + 1 < K ? row + stride : nullptr;
        store(dst + j, Factors<F>::across(row, next, columns - column - j));
      }
    return true;
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
