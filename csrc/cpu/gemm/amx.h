// The micro-kernel of AMX tiles: bfloat16 products, or, with two parts, products of floats as sums
// of two bfloat16 each: high times high, low times high and high times low.
//
// Every sum adds blocks of 32 values of k, in the order of the tile instruction (gemm/tile_unit.h),
// and a block's products of parts one by one, so it has the same bits in any tile and on vectors.
// Single rows take tiles too, mostly empty as they are: on vectors, two multiply-adds and two
// shifts for 32 weights took 1.2 to 1.3 times as long (from beyond L2, 0.9).
#pragma once

#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/tile_unit.h"

namespace rnnext::RNNEXT_ISA {

// A block's share of a vector of sums, as the tile instruction adds it: even k and odd k apart.
struct BlockSum {
  Vec<float> even = {}, odd = {};

  RNNEXT_INLINE void add(int32_t x, Vec<Pair> b) {
    even = next(even, Vec<Pair>{} + (x << 16), b << 16);
    odd = next(odd, Vec<Pair>{} + (x & ~0xffff), b & ~0xffff);
  }
  RNNEXT_INLINE void add_to(Vec<float>& sum) const {
    using tile_unit::flushed;
    sum = flushed(flushed(sum) + flushed(even + odd));
  }

 private:
  static RNNEXT_INLINE Vec<float> next(Vec<float> chain, Vec<Pair> a, Vec<Pair> b) {
    using tile_unit::flushed;
    return flushed(fused<float>(flushed((Vec<float>)a), flushed((Vec<float>)b), chain));
  }
};

template <class MK, int MT, int NT>
struct TileSums;
// 16 * MT rows times 16 * NT columns, of which `rows`, `vectors` exist: 2 x 2, 1 x 4, 1 x 2 tiles.
template <int MT, int NT>
struct TileExtent {
  int rows, vectors;

  template <class MK>
  using Tile = TileSums<MK, MT, NT>;

  template <bool to_write = false, int by = 1, class C>
  RNNEXT_INLINE void prefetch(const C* from, int64_t stride) const {
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < vectors; j += by)
        __builtin_prefetch(from + r * stride + j / by * kLanes<C>, to_write);
  }
};

// Hands a tile's sums to product.finish, R rows times NV vectors at a time.
template <int R, int NV, class Product>
RNNEXT_INLINE void finish_columns(const Product& product, const float* from, int64_t stride,
                                  int rows, int64_t row, int64_t column) {
  for (; rows >= R; rows -= R, row += R, from += R * stride) {
    Vec<float> sums[R][NV];
    load_tile(sums, from, stride, NV * kLanes<float>);
    product.finish(sums, row, column);
  }
  if constexpr (R > 1) finish_columns<1, NV>(product, from, stride, rows, row, column);
}
template <class Product>
RNNEXT_NOINLINE void finish_rows(const Product& product, const float* from, int64_t stride,
                                 int rows, int vectors, int64_t row, int64_t column) {
  for (; vectors >= 2; vectors -= 2, from += 2 * kLanes<float>, column += 2 * kLanes<float>)
    finish_columns<4, 2>(product, from, stride, rows, row, column);
  if (vectors > 0) finish_columns<4, 1>(product, from, stride, rows, row, column);
}

// Sums are in tiles 0 to 3, operands in tiles 4 to 7. Left operands are always read as whole tiles;
// the sums of rows that do not exist are not read.
template <class MK, int MT, int NT>
struct TileSums {
  using F = typename MK::Operand;
  static_assert(kLanes<float> == tile_unit::kRows && (MT == 1 || NT == 2));
  static constexpr int kColumns = 16 * NT;

  TileExtent<MT, NT> extent;
  alignas(64) float staged[16 * MT][kColumns];

  explicit TileSums(const TileExtent<MT, NT>& extent) : extent(extent) {}

  RNNEXT_INLINE void clear() {
    for_tiles([]<int tile>(int64_t, int64_t) { tile_unit::zero<tile>(); });
  }
  RNNEXT_INLINE void load(const float* from, int64_t stride, int64_t left = kColumns) {
    if ((stride == 0 || extent.rows == 16 * MT) && left >= kColumns) return load_sums(from, stride);
    for (int r = 0; r < extent.rows; ++r)
      for (int j = 0; j < kColumns; j += kLanes<float>)
        RNNEXT_ISA::store(staged[r] + j, load_some(from + r * stride + j, left - j));
    load_sums(staged[0], kColumns);
  }
  // Stores to rows that have room for whole tiles.
  RNNEXT_INLINE void store(float* to, int64_t stride) const {
    for_tiles([&]<int tile>(int64_t row, int64_t column) {
      tile_unit::store<tile>(to + row * stride + column, stride * 4);
    });
  }

  struct Products {
    const char *a, *b;
    int64_t stride, tile_stride, panel;  // bytes

    template <int left, int right>
    RNNEXT_INLINE void add() {
      constexpr int kRowBytes = kPanel<F> * 4;  // of the right operands
      const char* const x = a + left * tile_unit::kRowBytes;
      const char* const y = b + right * 16 * kRowBytes;
      if constexpr (MT == 2) {
        if (left == 0) {
          tile_unit::load<6>(y, kRowBytes);
          tile_unit::load<7>(y + 64, kRowBytes);
        }
        tile_unit::load<4>(x, stride);
        tile_unit::dot<0, 4, 6>();
        tile_unit::dot<1, 4, 7>();
        tile_unit::load<5>(x + tile_stride, stride);
        tile_unit::dot<2, 5, 6>();
        tile_unit::dot<3, 5, 7>();
      } else {
        tile_unit::load<4>(x, stride);
        tile_unit::load<5>(y, kRowBytes);
        tile_unit::dot<0, 4, 5>();
        tile_unit::load<6>(y + 64, kRowBytes);
        tile_unit::dot<1, 4, 6>();
        if constexpr (NT == 4) {
          tile_unit::load<7>(y + panel, kRowBytes);
          tile_unit::dot<2, 4, 7>();
          tile_unit::load<5>(y + panel + 64, kRowBytes);
          tile_unit::dot<3, 4, 5>();
        }
      }
    }
  };
  RNNEXT_INLINE void add(const F* a, int64_t stride, const F* panels, int64_t K,
                         const Ahead* = nullptr) {
    constexpr int64_t kBytes = sizeof(F);
    Products products{reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(panels),
                      stride * kBytes, 16 * stride * kBytes, K * kPanel<F> * kBytes};
    for (int64_t k = 0; k < K; k += 16) {
      products.template add<0, 0>();
      if constexpr (kParts<F> > 1) {
        products.template add<1, 0>();
        products.template add<0, 1>();
      }
      products.a += 16 * kBytes;
      products.b += 16 * kPanel<F> * kBytes;
    }
  }

  template <class Product>
  RNNEXT_INLINE void finish(const Product& product, int64_t row, int64_t column) {
    store(staged[0], kColumns);
    if constexpr (requires { product.epilogue; })
      if (product.epilogue.out_of_line)
        return product.epilogue.out_of_line(product, reinterpret_cast<Vec<float>*>(staged[0]), NT,
                                            extent.rows, extent.vectors, row, column);
    finish_rows(product, staged[0], kColumns, extent.rows, extent.vectors, row, column);
  }

 private:
  RNNEXT_INLINE void load_sums(const float* from, int64_t stride) {
    for_tiles([&]<int tile>(int64_t row, int64_t column) {
      tile_unit::load<tile>(from + row * stride + column, stride * 4);
    });
  }
  // Calls f<tile>(row, column) for each tile of sums and its place.
  template <class F>
  static RNNEXT_INLINE void for_tiles(const F& f) {
    f.template operator()<0>(0, 0);
    f.template operator()<1>(0, 16);
    if constexpr (MT * NT > 2) {
      f.template operator()<2>(MT == 2 ? 16 : 0, MT == 2 ? 0 : 32);
      f.template operator()<3>(MT == 2 ? 16 : 0, MT == 2 ? 16 : 48);
    }
  }
};

template <int parts>
struct AmxMicroKernel {
  using Operand = TileOperand<parts>;
  static constexpr int kMR = 32, kRowBlock = 16;
  static constexpr int64_t kSumBlock = 32;
  // A thread's settings while it works on a call.
  struct Task {
    tile_unit::Flushing flushing;
    Task() { tile_unit::configure(tile_unit::kWholeTiles); }
    ~Task() { tile_unit::release(); }
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;
  };
};

}  // namespace rnnext::RNNEXT_ISA
