// The macro-kernel: computes a matrix product tile by tile.
#pragma once

#include "cpu/gemm/amx.h"

namespace rnnext::RNNEXT_ISA {

// How many panels a tile of `rows` rows takes at once: few rows need more columns to hide the
// latency of the multiply-add, and to load fewer operands for each.
template <class MK>
constexpr int panels_at_once(int rows) {
  const int n = MK::kSums / 2 / rows;
  return n >= 6 ? 4 : n >= 2 ? 2 : 1;
}

// How a product passes its panels.
struct Pass {
  bool back = false;      // from the last to the first
  bool fetches = false;   // each is fetched while the one before it is multiplied
  double pair_bytes = 0;  // as the plan's
  bool goes_on = false;   // the next product passes those that follow; else it turns round
};

template <int R, int NV, class Product>
RNNEXT_INLINE void tiles_of_row(const Product& product, int64_t row, int64_t v, int64_t end,
                                const typename Product::F* panels, int64_t K, const Ahead* ahead) {
  using F = typename Product::F;
  for (; end - v >= NV; v += NV, panels += NV / 2 * K * kPanel<F>)
    product.tile(Extent<R, NV>{}, row, v * kLanes<F>, panels, K, ahead);
  if constexpr (NV > 1) tiles_of_row<R, NV / 2>(product, row, v, end, panels, K, ahead);
}
template <int R, class Product>
RNNEXT_INLINE void tiles_of_rows(const Product& product, int rows, int64_t row, int64_t v,
                                 int64_t end, const typename Product::F* panels, int64_t K,
                                 const Ahead* ahead) {
  constexpr int NV = 2 * panels_at_once<typename Product::MicroKernel>(R);
  if (rows == R) return tiles_of_row<R, NV>(product, row, v, end, panels, K, ahead);
  if constexpr (R > 1) tiles_of_rows<R - 1>(product, rows, row, v, end, panels, K, ahead);
}

// The macro-kernel over AMX tiles: all rows of two panels, then the next two.
template <class Product>
RNNEXT_INLINE void macro_kernel_of_tiles(const Product& product, int64_t rows, int64_t p0,
                                         int64_t p1, int64_t columns, int64_t K, bool back) {
  using F = typename Product::F;
  const int64_t panel = K * kPanel<F>;
  for (int64_t p = back ? p0 + (p1 - p0 - 1) / 2 * 2 : p0; p >= p0 && p < p1; p += back ? -2 : 2) {
    const F* const panels = product.packed + p * panel;
    const int64_t column = p * kPanel<F>;
    const int64_t there = (columns - column + kLanes<F> - 1) / kLanes<F>, most = p + 1 < p1 ? 4 : 2;
    const int vectors = static_cast<int>(there < most ? there : most);
    for (int64_t row = 0; row < rows; row += 32) {
      const int left = static_cast<int>(rows - row < 32 ? rows - row : 32);
      if (left > 16) {
        product.tile(TileExtent<2, 2>{left, vectors < 2 ? 1 : 2}, row, column, panels, K, nullptr);
        if (vectors > 2)
          product.tile(TileExtent<2, 2>{left, vectors - 2}, row, column + kPanel<F>, panels + panel,
                       K, nullptr);
      } else if (vectors > 2) {
        product.tile(TileExtent<1, 4>{left, vectors}, row, column, panels, K, nullptr);
      } else {
        product.tile(TileExtent<1, 2>{left, vectors}, row, column, panels, K, nullptr);
      }
    }
  }
}

template <class Product>
RNNEXT_INLINE void macro_kernel_of_registers(const Product& product, int64_t rows, int64_t p0,
                                             int64_t p1, int64_t columns, int64_t K,
                                             const Pass& pass) {
  using F = typename Product::F;
  using MK = typename Product::MicroKernel;
  const int64_t panel = K * kPanel<F>;
  // Many rows take large panels in pairs: fewer loads. (Three tiles that fetch would not keep to a
  // line with each k. Measured: fewer rows and a GRU's 3 panels gain nothing.)
  const auto panel_bytes = static_cast<double>(panel * int64_t{sizeof(F)});
  const bool large = pass.pair_bytes > 0 && panel_bytes >= pass.pair_bytes;
  const bool pairs = MK::kSums > 2 * MK::kMR && large && rows > (pass.fetches ? 18 : 15) &&
                     p1 - p0 > 1 && p1 - p0 != 3;
  const int most = pairs ? MK::kSums / 4 : MK::kMR;
  // As even as can be: with an MR of 6, 8 rows are 4 + 4. (One tile needs no division.)
  const int64_t tiles = rows <= most ? 1 : (rows + most - 1) / most;
  const int small = static_cast<int>(tiles == 1 ? rows : rows / tiles);
  const int64_t big = rows - small * tiles;
  // (A tile that fetches keeps to a line with each k.)
  const int64_t at_once = pairs ? 2 : pass.fetches && small > 4 ? 1 : panels_at_once<MK>(small);
  // The last panel may be half empty.
  const int64_t vectors = (columns + kLanes<F> - 1) / kLanes<F>;
  // (at_once is 1, 2 or 4.)
  const int64_t last = p0 + ((p1 - p0 - 1) & -at_once), by = pass.back ? -at_once : at_once;
  for (int64_t p = pass.back ? last : p0, next = 0; p >= p0 && p < p1; p = next) {
    next = p + by;
    const int64_t end = 2 * (p + at_once < p1 ? p + at_once : p1);
    const bool fetches = pass.fetches && K > 0 && (pass.goes_on || (next >= p0 && next < p1));
    const int64_t there = next < p1 && p1 - next < at_once ? p1 - next : at_once;  // that are next
    const auto bytes = there * kPanel<F> * static_cast<int64_t>(sizeof(F));  // for a step of k
    Ahead ahead{reinterpret_cast<const char*>(product.packed + next * panel),
                fetches ? (bytes + tiles - 1) / tiles : 0};
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i, ahead.first += K * ahead.step) {
      const int r = small + (i < big);
      tiles_of_rows<MK::kMR>(product, r, row, 2 * p, end < vectors ? end : vectors,
                             product.packed + p * panel, K, fetches ? &ahead : nullptr);
      row += r;
    }
  }
}

// Calls product.tile(Extent<R, NV>, row, column, panels, K, ahead), whose sums end in
// product.finish(sums, row, column), for rows [0, rows) and those of `columns` that are in panels
// [p0, p1) of product.packed. K counts operands, here and in tiles (a Matrix's K: values). Panels
// are outermost, so that each is read from far memory once. A product that is repeated passes them
// back and forth: the last ones are in the caches still. (AMX tiles got slower by fetching.)
template <class Product>
void macro_kernel(const Product& product, int64_t rows, int64_t p0, int64_t p1, int64_t columns,
                  int64_t K, const Pass& pass = {}) {
  if (rows <= 0) return;
  if constexpr (kTiled<typename Product::F>) {
    macro_kernel_of_tiles(product, rows, p0, p1, columns, K, pass.back);
  } else {
    macro_kernel_of_registers(product, rows, p0, p1, columns, K, pass);
  }
}

// A product for macro_kernel(): out[row] = start[row] + a[row] * panels.
template <class MK>
struct PlainProduct {
  using MicroKernel = MK;
  using F = typename MK::Operand;
  using C = Compute<F>;
  const F* packed;
  Rows<const F> a;
  Rows<const C> start;  // or none: zeros
  Rows<C> out;
  int64_t end;  // where a row of start and of out ends

  template <class Extent>
  RNNEXT_NOINLINE void tile(Extent extent, int64_t row, int64_t column, const F* panels, int64_t K,
                            const Ahead* ahead) const {
    typename Extent::template Tile<MK> sums(extent);
    start ? sums.load(start[row] + column, start.stride, end - column) : sums.clear();
    sums.add(a[row], a.stride, panels, K, ahead);
    sums.finish(*this, row, column);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(const Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    store_tile(sums, out[row], out.stride, column, end);
  }
};

}  // namespace rnnext::RNNEXT_ISA
