// Panels of columns, rows of scratch, and tiles as blocks of R rows times NV vectors. Loads, stores
// and prefetches of blocks are unrolled: blocks stay in registers, and the CPU overlaps accesses.
#pragma once

#include "cpu/simd/operand.h"

namespace rnnext::RNNEXT_ISA {

template <class C>
constexpr int kPanel = 2 * kLanes<C>;  // NR, the columns of a panel

template <class C>
constexpr int64_t panels_in(int64_t columns) {
  return (columns + kPanel<C> - 1) / kPanel<C>;
}

// The order of the columns of a product with the weights of all gates: the panels of some hidden
// units gate by gate, then those of the next units, so that one thread has all gates of a unit.
// The last units, if they fill no panel, have as many columns for each gate as they are.
template <class C>
struct GateColumns {
  int64_t H;
  int gates;

  // Columns of each gate in the u-th block of units, and where they begin. `u` may be the end.
  int64_t width(int64_t u) const { return u < H / kPanel<C> ? kPanel<C> : H % kPanel<C>; }
  int64_t begin(int64_t u) const {
    const int64_t vectors = (gates * H + kLanes<C> - 1) / kLanes<C>;
    return (u * gates * 2 < vectors ? u * gates * 2 : vectors) * kLanes<C>;
  }
  // How many panels these columns are in.
  int64_t panels(int64_t u) const { return panels_in<C>(begin(u)); }
  int64_t panels() const { return panels_in<C>(gates * H); }

  // The rows of a weight [gates * H, ..] that the n-th vector of columns is made of: `count` from
  // `first` on, or, if it has several gates, row[i] (past the last column any row).
  struct VectorRows {
    int64_t first, count, row[kLanes<C>];
    bool mixed;
  };
  VectorRows vector(int64_t n) const {
    const int64_t u = n / (2 * gates), column = n % (2 * gates) * kLanes<C>;
    const int64_t units = u * kPanel<C> < H ? width(u) : 0;
    int64_t gate = units > 0 ? column / units : gates, left = (gate + 1) * units - column;
    VectorRows rows;
    rows.first = gate * H + u * kPanel<C> + units - left;
    rows.count = gate >= gates ? 0 : left < kLanes<C> ? left : kLanes<C>;
    rows.mixed = rows.count < kLanes<C> && gate + 1 < gates;
    for (int64_t i = 0, row = rows.first; i < kLanes<C> && rows.mixed; ++i, ++row) {
      rows.row[i] = gate < gates ? row : 0;
      if (--left == 0) left = units, ++gate, row += H - units;
    }
    return rows;
  }
};

// Rows of scratch start on different cache sets: a power-of-two stride would map them to one.
template <class F>
constexpr int64_t scratch_stride(int64_t columns) {
  return panels_in<F>(columns) * kPanel<F> / kKPack<F> + 64 / static_cast<int64_t>(sizeof(F));
}

// Calls f(r, j) for each vector of a block, unrolled, so that the vectors are registers.
template <int R, int NV, class F>
RNNEXT_INLINE void for_block(const F& f) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) f(r, j);
}

// Copies a block for code that loops over it: if its address is taken, it lies in memory always.
template <class V, int R, int NV>
RNNEXT_INLINE void copy_block(V (&to)[R][NV], const V (&from)[R][NV]) {
  for_block<R, NV>([&](int r, int j) { to[r][j] = from[r][j]; });
}

// Loads as many of the block's columns as are left, of rows `stride` apart.
template <class C, class V, int R, int NV>
RNNEXT_INLINE void load_tile(V (&block)[R][NV], const C* from, int64_t stride, int64_t left) {
  if (left >= NV * kLanes<C>) {
    for_block<R, NV>([&](int r, int j) { block[r][j] = load(from + r * stride + j * kLanes<C>); });
  } else {
    V memory[R][NV];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < NV; ++j)
        memory[r][j] = load_some(from + r * stride + j * kLanes<C>, left - j * kLanes<C>);
    copy_block(block, memory);
  }
}
// Stores the block as values `column` and up, as many as there are before `end`, of rows of
// operands or of numbers, `stride` apart.
template <class F, class V, int R, int NV>
RNNEXT_INLINE void store_tile(const V (&block)[R][NV], F* to, int64_t stride, int64_t column,
                              int64_t end) {
  if (column + NV * kLanes<F> <= end) {
    for_block<R, NV>([&](int r, int j) {
      Operands<F>::store(to + r * stride, column + j * kLanes<F>, block[r][j]);
    });
  } else {
    V memory[R][NV];
    copy_block(memory, block);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < NV; ++j)
        Operands<F>::store_some(to + r * stride, column + j * kLanes<F>, memory[r][j],
                                end - column - j * kLanes<F>);
  }
}

// The lines that a tile fetches into L2 while it multiplies, `step` bytes with each k: its share of
// the panels that are read next, if they lie beyond L2.
struct Ahead {
  const char* first = nullptr;
  int64_t step = 0;

  // The same share of other panels, of another K.
  template <class F>
  Ahead of(const F* panels, int64_t K, const F* others, int64_t other_K) const {
    const int64_t offset = first - reinterpret_cast<const char*>(panels);
    return {reinterpret_cast<const char*>(others) + offset / K * other_K, step};
  }
};

// How much a tile covers, as a value.
template <int R, int NV>
struct Extent {
  template <class MK>
  using Tile = typename MK::template Tile<R, NV>;

  RNNEXT_INLINE Extent<1, NV> one_row() const { return {}; }
  // Prefetches what a later tile will load, since the CPU cannot foresee the order of its rows, or
  // what this tile will store, since a store that waits for its line holds up those behind it. `by`
  // columns lie in one element.
  template <bool to_write = false, int by = 1, class C>
  RNNEXT_INLINE void prefetch(const C* from, int64_t stride) const {
    constexpr int kVectors = (NV + by - 1) / by, kVectorBytes = kLanes<C> * sizeof(C),
                  kStep = kVectorBytes < 64 ? 64 / kVectorBytes : 1;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += kStep)
        __builtin_prefetch(from + r * stride + j * kLanes<C>, to_write);
  }
};

}  // namespace rnnext::RNNEXT_ISA
