// The register tile that all matrix work is made of, and the packing that feeds it.
//
// A tile is R rows times NV vectors of panels, which have two each: acc[r][j] += a[r][k] *
// panel[k][j], accumulators in registers, k outermost and ascending. So every output is one chain
// of fused multiply-adds in the order of k, whatever the tile, the vector width or the number of
// threads: the same bits always. F is the type of the factors, and K counts factors here
// (factor.h).
#pragma once

#include "cpu/simd/factor.h"

namespace rnnext::RNNEXT_ISA {

template <class C>
constexpr int kPanel = 2 * kLanes<C>;  // columns of a panel
constexpr int kTileRows = RNNEXT_TILE_ROWS;

// Panels a tile of `rows` rows takes at once: few rows need more columns to hide the FMA's latency.
constexpr int panels_at_once(int rows) {
  const int n = kTileRows / rows;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

template <class C>
constexpr int64_t panels_in(int64_t columns) {
  return (columns + kPanel<C> - 1) / kPanel<C>;
}

// Rows of scratch start on different cache sets: a power-of-two stride would map them to one.
template <class F>
constexpr int64_t scratch_stride(int64_t columns) {
  return panels_in<F>(columns) * kPanel<F> / kDepth<F> + 64 / static_cast<int64_t>(sizeof(F));
}

// a: [R, K], or, when interleaved, [K, R], its rows `stride` apart. panels: of [K, kPanel], NV
// vectors of them.
template <bool interleaved, class F, int R, int NV>
RNNEXT_INLINE void accumulate(Vec<Compute<F>> (&acc)[R][NV], const F* a, int64_t stride,
                              const F* panels, int64_t K) {
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j += 2) {
      const F* row = panels + (j / 2 * K + k) * kPanel<F>;
      const Vec<F> b0 = load(row), b1 = j + 1 < NV ? load(row + kLanes<F>) : b0;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F x = interleaved ? a[k * stride + r] : a[r * stride + k];
        multiply_add(acc[r][j], x, b0);
        if (j + 1 < NV) multiply_add(acc[r][j + 1], x, b1);
      }
    }
  }
}

// Unrolled, so that the tile stays in registers and the CPU overlaps the cells.
template <class Cell, class V, int R, int NV>
RNNEXT_INLINE void apply(V (&acc)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = Cell::forward(acc[r][j]);
}
// Not `= {}`: GCC clears an array of this size with `rep stos`, which costs more than a short
// product.
template <class V, int R, int NV>
RNNEXT_INLINE void clear_tile(V (&acc)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = V{};
}
template <class C, class V, int R, int NV>
RNNEXT_INLINE void load_tile(V (&acc)[R][NV], const C* from, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = load(from + r * stride + j * kLanes<C>);
}
// Asks for what a later tile will load, its rows in no order that the CPU could foresee, or for
// what this one will store: lines that a store has to wait for hold up those behind it.
template <int R, int NV, bool to_write = false, class C>
RNNEXT_INLINE void fetch_tile(const C* from, int64_t stride) {
  constexpr int kStep = 64 / (kLanes<C> * sizeof(C));
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j += kStep)
      __builtin_prefetch(from + r * stride + j * kLanes<C>, to_write, to_write ? 3 : 2);
}
template <class C, class V, int R, int NV>
RNNEXT_INLINE void store_tile(const V (&acc)[R][NV], C* to, int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store(to + r * stride + j * kLanes<C>, acc[r][j]);
}
// The tile as factors: values `column` and up, as many as there are before `end`, of rows that are
// `stride` factors apart.
template <class F, class V, int R, int NV>
RNNEXT_INLINE void store_factors(const V (&acc)[R][NV], F* to, int64_t stride, int64_t column,
                                 int64_t end) {
  if (column + NV * kLanes<F> <= end) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j)
        Factors<F>::store(to + r * stride, column + j * kLanes<F>, acc[r][j]);
  } else {
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < NV; ++j)
        Factors<F>::store_some(to + r * stride, column + j * kLanes<F>, acc[r][j],
                               end - column - j * kLanes<F>);
  }
}
// As many of the tile's columns as there are left.
template <class C, class V, int R, int NV>
RNNEXT_INLINE void load_tile_some(V (&acc)[R][NV], const C* from, int64_t stride, int64_t left) {
  if (left >= NV * kLanes<C>) return load_tile(acc, from, stride);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < NV; ++j)
      acc[r][j] = load_some(from + r * stride + j * kLanes<C>, left - j * kLanes<C>);
}
template <class C, class V, int R, int NV>
RNNEXT_INLINE void store_tile_some(const V (&acc)[R][NV], C* to, int64_t stride, int64_t left) {
  if (left >= NV * kLanes<C>) return store_tile(acc, to, stride);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < NV; ++j)
      store_some(to + r * stride + j * kLanes<C>, acc[r][j], left - j * kLanes<C>);
}

// Runs work.tile<R, NV>(row, column, panels, K) over rows [0, rows) and those of `columns` that
// panels [p0, p1) hold. Panels are outermost, so that each comes from far memory once; they lie at
// work.packed. (Blocks of K that stay in the first cache were tried: no faster at H = 1024, slower
// below.)
template <int R, class Work>
RNNEXT_INLINE void tiles_of_row(const Work& work, int64_t row, int64_t v, int64_t end,
                                const typename Work::F* panels, int64_t K) {
  using F = typename Work::F;
  constexpr int NV = 2 * panels_at_once(R);
  while (v < end) {
    const int64_t n = end - v, column = v * kLanes<F>;
    if (NV >= 8 && n >= 8) {
      work.template tile<R, NV >= 8 ? 8 : 1>(row, column, panels, K);
      v += 8, panels += 4 * K * kPanel<F>;
    } else if (NV >= 4 && n >= 4) {
      work.template tile<R, NV >= 4 ? 4 : 1>(row, column, panels, K);
      v += 4, panels += 2 * K * kPanel<F>;
    } else if (n >= 2) {
      work.template tile<R, 2>(row, column, panels, K);
      v += 2, panels += K * kPanel<F>;
    } else {
      work.template tile<R, 1>(row, column, panels, K);
      v += 1;
    }
  }
}
template <int R, class Work>
RNNEXT_INLINE void tiles_of_rows(const Work& work, int rows, int64_t row, int64_t v, int64_t end,
                                 const typename Work::F* panels, int64_t K) {
  if (rows == R) return tiles_of_row<R>(work, row, v, end, panels, K);
  if constexpr (R > 1) tiles_of_rows<R - 1>(work, rows, row, v, end, panels, K);
}
template <class Work>
void sweep(const Work& work, int64_t rows, int64_t p0, int64_t p1, int64_t columns, int64_t K) {
  using F = typename Work::F;
  if (rows <= 0) return;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // as even as can be: 8 rows are 4 + 4
  const int small = static_cast<int>(rows / tiles);
  const int64_t big = rows % tiles;
  const int64_t group = panels_at_once(small);
  const int64_t vectors =
      (columns + kLanes<F> - 1) / kLanes<F>;  // the last panel may be half empty
  for (int64_t p = p0; p < p1; p += group) {
    const int64_t end = 2 * (p + group < p1 ? p + group : p1);
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int r = small + (i < big);
      tiles_of_rows<kTileRows>(work, r, row, 2 * p, end < vectors ? end : vectors,
                               work.packed + p * K * kPanel<F>, K);
      row += r;
    }
  }
}

// Work for sweep: out[row] = start[row] + a[row] * panels.
template <class Factor>
struct Projection {
  using F = Factor;
  using C = Compute<F>;
  const F* packed;
  Rows<F> a;
  const C* start;  // or null: zeros
  int64_t start_stride;
  C* out;
  int64_t out_stride;
  int64_t end;  // where a row of start and of out ends

  template <int R, int NV>
  RNNEXT_TILE void tile(int64_t row, int64_t column, const F* panels, int64_t K) const {
    const int64_t left = end - column;
    Vec<C> acc[R][NV];
    if (start) {
      load_tile_some(acc, start + row * start_stride + column, start_stride, left);
    } else {
      clear_tile(acc);
    }
    accumulate<false, F, R, NV>(acc, a.first + row * a.stride, a.stride, panels, K);
    store_tile_some(acc, out + row * out_stride + column, out_stride, left);
  }
};

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

  // Panel p into dst [factors of K, kPanel]; columns past the matrix are 0.
  void pack(int64_t p, F* dst) const {
    const int64_t column = p * kPanel<F>;
    if (transposed) {
      pack_transposed(column, dst);
      pack_transposed(column + kLanes<F>, dst + kLanes<F>);
      return;
    }
    for (int64_t k = 0; k < K; k += kDepth<F>, dst += kPanel<F>)
      for (int64_t j = 0; j < kPanel<F>; j += kLanes<F>) {
        const S* row = weight + k * stride + column + j;
        const S* next = k + 1 < K ? row + stride : nullptr;
        store(dst + j, Factors<F>::across(row, next, columns - column - j));
      }
  }
  void pack_transposed(int64_t column, F* dst) const {
    constexpr int kSteps = kLanes<F> * kDepth<F>;
    for (int64_t k = 0; k < K; k += kSteps, dst += kLanes<F> * kPanel<F>) {
      Vec<F> x[kLanes<F>];
      load_block<F>(x, weight + column * stride + k, columns - column, stride, K - k);
      for (int i = 0; i < kLanes<F> && k + i * kDepth<F> < K; ++i) store(dst + i * kPanel<F>, x[i]);
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
