// Goes through a product tile by tile.
#pragma once

#include "cpu/gemm/amx.h"

namespace rnnext::RNNEXT_ISA {

// How many panels a tile of `rows` rows takes at once: few rows need more columns to hide the
// latency of the multiply-add.
template <class Engine>
constexpr int panels_at_once(int rows) {
  const int n = Engine::kTileRows / rows;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

// Calls work.tile(Extent<R, NV>, row, column, panels, K, ahead) for rows [0, rows) and those of
// `columns` that are in panels [p0, p1) of work.packed. Panels are outermost, so that each is read
// from far memory once. (Blocks of K that stay in the first cache were no faster at H = 1024, and
// slower below.)
template <int R, int NV, class Work>
RNNEXT_INLINE void tiles_of_row(const Work& work, int64_t row, int64_t v, int64_t end,
                                const typename Work::F* panels, int64_t K, const Ahead* ahead) {
  using F = typename Work::F;
  for (; end - v >= NV; v += NV, panels += NV / 2 * K * kPanel<F>)
    work.tile(Extent<R, NV>{}, row, v * kLanes<F>, panels, K, ahead);
  if constexpr (NV > 1) tiles_of_row<R, NV / 2>(work, row, v, end, panels, K, ahead);
}
template <int R, class Work>
RNNEXT_INLINE void tiles_of_rows(const Work& work, int rows, int64_t row, int64_t v, int64_t end,
                                 const typename Work::F* panels, int64_t K, const Ahead* ahead) {
  constexpr int NV = 2 * panels_at_once<typename Work::Engine>(R);
  if (rows == R) return tiles_of_row<R, NV>(work, row, v, end, panels, K, ahead);
  if constexpr (R > 1) tiles_of_rows<R - 1>(work, rows, row, v, end, panels, K, ahead);
}

// The same over AMX tiles: all rows of two panels, then the next two.
template <class Work>
RNNEXT_INLINE void sweep_tiles(const Work& work, int64_t rows, int64_t p0, int64_t p1,
                               int64_t columns, int64_t K) {
  using F = typename Work::F;
  const int64_t panel = K * kPanel<F>;
  for (int64_t p = p0; p < p1; p += 2) {
    const F* const panels = work.packed + p * panel;
    const int64_t column = p * kPanel<F>;
    const int64_t there = (columns - column + kLanes<F> - 1) / kLanes<F>, most = p + 1 < p1 ? 4 : 2;
    const int vectors = static_cast<int>(there < most ? there : most);
    if constexpr (Work::Engine::kRowOnVectors) {
      if (rows == 1) {
        if (vectors > 2) {
          work.tile(Extent<1, 4>{}, 0, column, panels, K, nullptr);
        } else {
          work.tile(Extent<1, 2>{}, 0, column, panels, K, nullptr);
        }
        continue;
      }
    }
    for (int64_t row = 0; row < rows; row += 32) {
      const int left = static_cast<int>(rows - row < 32 ? rows - row : 32);
      if (left > 16) {
        work.tile(TileExtent<2, 2>{left, vectors < 2 ? 1 : 2}, row, column, panels, K, nullptr);
        if (vectors > 2)
          work.tile(TileExtent<2, 2>{left, vectors - 2}, row, column + kPanel<F>, panels + panel, K,
                    nullptr);
      } else if (vectors > 2) {
        work.tile(TileExtent<1, 4>{left, vectors}, row, column, panels, K, nullptr);
      } else {
        work.tile(TileExtent<1, 2>{left, vectors}, row, column, panels, K, nullptr);
      }
    }
  }
}

template <class Work>
RNNEXT_INLINE void sweep_registers(const Work& work, int64_t rows, int64_t p0, int64_t p1,
                                   int64_t columns, int64_t K, int64_t then) {
  using F = typename Work::F;
  constexpr int kTileRows = Work::Engine::kTileRows;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // as even as can be: 8 rows are 4 + 4
  const int small = static_cast<int>(rows / tiles);
  const int64_t big = rows % tiles;
  const int64_t group = panels_at_once<typename Work::Engine>(small);
  const int64_t vectors =
      (columns + kLanes<F> - 1) / kLanes<F>;  // the last panel may be half empty
  const int64_t panel = K * kPanel<F>;
  Ahead ahead{nullptr, group * kPanel<F> * static_cast<int64_t>(sizeof(F)) / tiles};
  for (int64_t p = p0; p < p1; p += group) {
    const int64_t end = 2 * (p + group < p1 ? p + group : p1);
    const int64_t next = p + group < p1 ? p + group : then;
    ahead.first = reinterpret_cast<const char*>(work.packed + next * panel);
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i, ahead.first += K * ahead.step) {
      const int r = small + (i < big);
      tiles_of_rows<kTileRows>(work, r, row, 2 * p, end < vectors ? end : vectors,
                               work.packed + p * panel, K, then < 0 ? nullptr : &ahead);
      row += r;
    }
  }
}
// `then`: the panel of work.packed that is read after these, if each is to be fetched while the one
// before is multiplied; else -1. (Tiles of AMX got slower by it.)
template <class Work>
void sweep(const Work& work, int64_t rows, int64_t p0, int64_t p1, int64_t columns, int64_t K,
           int64_t then = -1) {
  if (rows <= 0) return;
  if constexpr (kTiled<typename Work::F>) {
    sweep_tiles(work, rows, p0, p1, columns, K);
  } else {
    sweep_registers(work, rows, p0, p1, columns, K, then);
  }
}

// Work for sweep: out[row] = start[row] + a[row] * panels.
template <class E>
struct Projection {
  using Engine = E;
  using F = typename E::Operand;
  using C = Compute<F>;
  const F* packed;
  Rows<const F> a;
  Rows<const C> start;  // or none: zeros
  Rows<C> out;
  int64_t end;  // where a row of start and of out ends

  template <class Extent>
  RNNEXT_TILE void tile(Extent extent, int64_t row, int64_t column, const F* panels, int64_t K,
                        const Ahead* ahead) const {
    typename Extent::template Tile<E> sums(extent);
    if (start) {
      sums.load(start[row] + column, start.stride, end - column);
    } else {
      sums.clear();
    }
    sums.add(a[row], a.stride, panels, K, ahead);
    sums.finish(*this, row, column);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(const Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    store_tile(sums, out[row] + column, out.stride, end - column);
  }
};

}  // namespace rnnext::RNNEXT_ISA
