// The micro-kernels: how a tile of sums takes up products. A micro-kernel has
//
//   Operand                   what it multiplies (simd/operand.h)
//   kMR                       rows of its largest tile
//   kSums                     vectors of sums that leave registers for operands (not AMX's)
//   kSumBlock                 values along k that are summed apart, as short chains round less
//   kRowBlock                 rows of operands are read in multiples of it
//   Task                      what a thread holds while it works on a call
//   multiply_add(acc, x, b)   one operand along k, on vectors (AMX has none)
//   Tile<R, NV>               the sums of R rows times NV vectors of columns (AMX: TileExtent's):
//     clear(), load(...)        what they start from
//     add(...)                  adds a product, k outermost and ascending
//     finish(product, ...)      hands them to product.finish<R, NV>(sums, row, column), as vectors
#pragma once

#include "cpu/gemm/tile.h"

namespace rnnext::RNNEXT_ISA {

// Sums in vector registers. Every sum is added in the order of k, block by block, whatever the
// tile, the vector width or the number of threads, so it always has the same bits.
template <class MK, int R, int NV>
struct RegisterTile {
  using F = typename MK::Operand;
  using C = Compute<F>;

  Vec<C> sums[R][NV];

  explicit RegisterTile(Extent<R, NV>) {}
  // Not `= {}`: GCC clears such an array with `rep stos`, which costs more than a short product.
  RNNEXT_INLINE void clear() {
    for_block<R, NV>([&](int r, int j) { sums[r][j] = Vec<C>{}; });
  }
  // Loads rows `stride` apart, of which `left` columns exist.
  RNNEXT_INLINE void load(const C* from, int64_t stride, int64_t left = NV * kLanes<C>) {
    load_tile(sums, from, stride, left);
  }
  // Adds a times NV vectors of panels [K, kPanel]. a: [R, K], or, when interleaved, [K, R], its
  // rows `stride` apart. K counts operands. (Interleaved rows are those of a weight's gradient,
  // whose sums are single chains.) `spreads`: prefetch(row) is called for each row, over all of k.
  template <bool interleaved = false, class Prefetch = void (*)(int)>
  RNNEXT_INLINE void add(const F* a, int64_t stride, const F* panels, int64_t K,
                         const Ahead* ahead = nullptr, bool spreads = false,
                         const Prefetch& prefetch = nullptr) {
    if constexpr (interleaved || MK::kSumBlock == 1) {
      static_assert(std::is_same_v<Prefetch, void (*)(int)>);  // none: there are no blocks of k
      chain<interleaved>(sums, a, stride, panels, K, 0, K);
    } else {
      for (int64_t k = 0, row = 0; k < K; k += MK::kSumBlock) {
        for (; spreads && row < R && row * K < R * (k + MK::kSumBlock); ++row) prefetch(row);
        RegisterTile part(Extent<R, NV>{});
        part.clear();
        part.add_block(a, stride, panels, K, k, K - k < MK::kSumBlock ? K : k + MK::kSumBlock,
                       ahead);
        for_block<R, NV>([&](int r, int j) { sums[r][j] += part.sums[r][j]; });
      }
    }
  }
  template <class Product>
  RNNEXT_INLINE void finish(const Product& product, int64_t row, int64_t column) {
    product.finish(sums, row, column);
  }

 private:
  // Adds steps [begin, end) of k, a block of sums. A tile of few rows, which waits, fetches none.
  RNNEXT_INLINE void add_block(const F* a, int64_t stride, const F* panels, int64_t K,
                               int64_t begin, int64_t end, const Ahead* ahead) {
    if (R >= 4 && ahead)
      return chain<false, (R >= 4)>(sums, a, stride, panels, K, begin, end, *ahead);
    chain<false>(sums, a, stride, panels, K, begin, end);
  }
  // Adds steps [begin, end) of k to acc, two at a time: counting takes ports from multiply-adds.
  // Fetches a line of `ahead` with each k, and its own panels, larger than L1d, 16 k before. (Tiles
  // of 5 and 6 rows by two panels, which load less, lose by that.)
  template <bool interleaved, bool fetches = false>
  static RNNEXT_INLINE void chain(Vec<C> (&acc)[R][NV], const F* a, int64_t stride, const F* panels,
                                  int64_t K, int64_t begin, int64_t end, const Ahead& ahead = {}) {
    const char* next = ahead.first + begin * ahead.step;
#pragma GCC unroll 2
    for (int64_t k = begin; k < end; ++k, next += ahead.step) {
      if constexpr (fetches) __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j += 2) {
        const F* row = panels + (j / 2 * K + k) * kPanel<F>;
        for (int i = 0; fetches && (R <= 4 || NV < 4) && i < 2; ++i)
          __builtin_prefetch(row + 16 * kPanel<F> + i * kLanes<F>);
        const Vec<F> b0 = RNNEXT_ISA::load(row);
        const Vec<F> b1 = j + 1 < NV ? RNNEXT_ISA::load(row + kLanes<F>) : b0;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const F x = interleaved ? a[k * stride + r] : a[r * stride + k];
          MK::multiply_add(acc[r][j], x, b0);
          if (j + 1 < NV) MK::multiply_add(acc[r][j + 1], x, b1);
        }
      }
    }
  }
};

// The common part of the micro-kernels on vectors.
template <class F, int64_t sum_block>
struct VectorMicroKernel {
  using Operand = F;
  struct Task {};
  static constexpr int kRowBlock = 1;
  static constexpr int kMR = RNNEXT_MR, kSums = RNNEXT_MR == 8 ? 24 : 2 * RNNEXT_MR;
  static constexpr int64_t kSumBlock = sum_block;
};

// Multiplies numbers of the compute type C = float or double.
template <class C>
struct FmaMicroKernel : VectorMicroKernel<C, 64> {
  template <int R, int NV>
  using Tile = RegisterTile<FmaMicroKernel, R, NV>;

  // (x - zeros is x in every lane. Zeros + x would turn -0 into 0, with one more instruction.)
  static RNNEXT_INLINE void multiply_add(Vec<C>& acc, C x, Vec<C> b) {
    acc = fused<C>(x - Vec<C>{}, b, acc);
  }
};

#ifdef RNNEXT_BF16_DOT
// Multiplies pairs of bfloat16 by AVX512_BF16's or FEAT_BF16's dot product: two steps of k at once.
struct Bf16DotMicroKernel : VectorMicroKernel<Pair, 1> {
  template <int R, int NV>
  using Tile = RegisterTile<Bf16DotMicroKernel, R, NV>;

  static RNNEXT_INLINE void multiply_add(Vec<float>& acc, Pair x, Vec<Pair> b) {
#ifdef RNNEXT_AVX512
    acc =
        (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(x.bits), (__m512bh)b);
#else
    acc = (Vec<float>)vbfdotq_f32((float32x4_t)acc, (bfloat16x8_t)vdupq_n_s32(x.bits),
                                  (bfloat16x8_t)b);
#endif
  }
};
#endif

}  // namespace rnnext::RNNEXT_ISA
