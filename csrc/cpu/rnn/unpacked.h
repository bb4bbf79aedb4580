// Products with weights that a call reads once: as they lie, or packed just before they are
// multiplied, since packing all of them first would touch each twice in far memory. Sums run in the
// order of k and in its blocks, so they have the same bits as in any other call.
#pragma once

#include "cpu/rnn/work_items.h"

namespace rnnext::RNNEXT_ISA {

// sums[r] += row r of a times `columns` rows of the weight [.., K], one in each lane. The CPU needs
// some lines to recognize each row as a stream, so the first lines of the rows that come next are
// prefetched, one with each block.
template <int R, class MK, class S, class F = typename MK::Operand>
RNNEXT_NOINLINE void add_unpacked(Vec<Compute<F>> (&sums)[R], const S* weight, int64_t columns,
                                  int64_t K, const F* a, int64_t stride) {
  constexpr int kSteps = kLanes<F> * kKPack<F>;
  static_assert(MK::kSumBlock == 1 || MK::kSumBlock % kSteps == 0);
  Vec<Compute<F>> acc[R];
  for (int r = 0; r < R; ++r) acc[r] = MK::kSumBlock == 1 ? sums[r] : Vec<Compute<F>>{};
  for (int64_t k = 0; k < K; k += kSteps, a += kLanes<F>) {
    Vec<F> block[kLanes<F>];
    if (columns >= kLanes<F> && K - k >= kSteps) {
      const int64_t n = k / kSteps;
      const S* next = weight + (kLanes<F> + n % kLanes<F>)*K;
      __builtin_prefetch(reinterpret_cast<const char*>(next) + n / kLanes<F> * 64, 0, 2);
      load_block<F>(block, weight + k, kLanes<F>, K, kSteps);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<F>; ++i)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) MK::multiply_add(acc[r], a[r * stride + i], block[i]);
    } else {
      load_block<F>(block, weight + k, columns, K, K - k);
      for (int i = 0; i < kLanes<F> && k + i * kKPack<F> < K; ++i)
        for (int r = 0; r < R; ++r) MK::multiply_add(acc[r], a[r * stride + i], block[i]);
    }
    if (MK::kSumBlock > 1 && ((k + kSteps) % MK::kSumBlock == 0 || k + kSteps >= K))
      for (int r = 0; r < R; ++r) {
        sums[r] += acc[r];
        acc[r] = Vec<Compute<F>>{};
      }
  }
  if constexpr (MK::kSumBlock == 1)
    for (int r = 0; r < R; ++r) sums[r] = acc[r];
}

// The same in the order of tiles.
template <int R, class S>
RNNEXT_NOINLINE void add_unpacked_tiled(Vec<float> (&sums)[R], const S* weight, int64_t columns,
                                        int64_t K, const TileOperand<1>* a, int64_t stride) {
  for (int64_t k = 0; k < K; k += 32, a += 16) {
    Vec<Pair> block[kLanes<Pair>];
    load_block<Pair>(block, weight + k, columns, K, K - k);
    const int64_t pairs = min_of(16, (K - k + 1) / 2);
    BlockSum block_sums[R];
    for (int64_t i = 0; i < pairs; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) block_sums[r].add(a[r * stride + i].bits[0], block[i]);
    for (int r = 0; r < R; ++r) block_sums[r].add_to(sums[r]);
  }
}

// A product for macro_kernel(): adds n values of k, from `begin` on, to a product with a weight
// [K, columns] of operands. They come from far memory, so the rows that follow are prefetched.
template <class MK>
struct UnpackedBlock {
  using MicroKernel = MK;
  using F = typename MK::Operand;
  const PlainProduct<MK>& product;
  const Matrix<F, F>& weight;
  int64_t begin, n;
  const F* packed = nullptr;

  template <int R, int NV>
  RNNEXT_NOINLINE void tile(Extent<R, NV> extent, int64_t row, int64_t column, const F*, int64_t,
                            const Ahead*) const {
    RegisterTile<MK, R, NV> sums(extent), part(extent);
    const Rows<const F>& a = product.a;
    product.start ? sums.load(product.start[row] + column, product.start.stride) : sums.clear();
    part.clear();
    const int64_t wrap = weight.wraps_at() - begin;
    const F* from = weight.row(begin) + column;
    for (int64_t k = 0; k < n; from = weight.weight + column)
      for (const int64_t end = k < wrap && wrap < n ? wrap : n; k < end;
           ++k, from += weight.columns) {
        Extent<1, NV>{}.prefetch(from + MK::kSumBlock * weight.columns, 0);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
          const Vec<F> b = load(from + j * kLanes<F>);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) MK::multiply_add(part.sums[r][j], a[row + r][k], b);
        }
      }
    for_block<R, NV>([&](int r, int j) { sums.sums[r][j] += part.sums[r][j]; });
    sums.finish(product, row, column);
  }
};

// How many operands of a block of k, and of any weight, stream() packs at once.
template <class F>
constexpr int64_t kPackedBlock = kPackedBlockBytes / int64_t{sizeof(F)};
template <class S, class F>
int64_t streamed_size(const Matrix<S, F>& weight) {
  return max_of(kStreamed<F> * weight.panel_size(), kPackedBlock<F>);
}

// Computes `product`, whose `packed` is not set, for `rows` rows and panels [p0, p1) of a weight
// [K, columns] that no other product reads. Its panels are packed to `panels`, which stays in
// cache, just before they are multiplied: whole ones, or, for few rows, a block of k at a time (a
// panel's rows are pages apart where there are many columns). For rows so few that they are one
// tile, whole panels of a block are read as they lie.
template <class S, class MK>
void stream(PlainProduct<MK> product, const Matrix<S, typename MK::Operand>& weight,
            typename MK::Operand* panels, int64_t rows, int64_t p0, int64_t p1) {
  using F = typename MK::Operand;
  if constexpr (std::is_same_v<S, F>) {
    constexpr int64_t kAtOnce = kPackedBlock<F> / (MK::kSumBlock * kPanel<F>);
    static_assert(kAtOnce > 0 && MK::kSumBlock <= kBlockRows);
    if (rows <= kStreamedRows) {
      const int64_t unpacked = rows <= MK::kMR ? min_of(p1, weight.columns / kPanel<F>) : p0;
      for (int64_t k = 0, n; k < weight.K; k += n) {
        n = min_of(MK::kSumBlock, weight.K - k);
        if (p0 < unpacked)
          macro_kernel(UnpackedBlock<MK>{product, weight, k, n}, rows, p0, unpacked, weight.columns,
                       n);
        for (int64_t q = max_of(p0, unpacked); q < p1; q += kAtOnce) {
          const int64_t end = min_of(q + kAtOnce, p1);
          weight.pack_block(k, n, q, end, panels, n * kPanel<F>);
          product.packed = panels - q * n * kPanel<F>;
          macro_kernel(product, rows, q, end, weight.columns, n);
        }
        product.a.first += n;
        product.start = {product.out.first, product.out.stride};
      }
      return;
    }
  }
  for (int64_t q = p0; q < p1; q += kStreamed<F>) {
    const int64_t end = min_of(q + kStreamed<F>, p1);
    product.packed = weight.pack_panels(q, end, panels);
    macro_kernel(product, rows, q, end, weight.columns, operands_in<F>(weight.K));
  }
}

}  // namespace rnnext::RNNEXT_ISA
