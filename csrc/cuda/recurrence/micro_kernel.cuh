// The products of the resident recurrence: parts = M v for a block's slice of the stationary
// matrix M, one vector v per sequence. M is read once and then stays in registers and shared
// memory. Both micro-kernels share one scheme (see Geometry in choice.h): worker (uw, kw)
// multiplies unit group uw by k-blocks kw, kw + k_workers, ..; sums over k meet in shared memory.
#pragma once

#include "cuda/device.h"
#include "cuda/recurrence/choice.h"

namespace rnnext::cuda {

// The common part of the micro-kernels. A k-block is kBlockBytes of a vector; for each k-block of
// its worker, a thread has two pieces of 16 bytes of the matrix.
template <typename Piece, int kBlockBytes>
class MicroKernelBase {
 protected:
  struct Share {
    Piece first, second;
  };

  // Loads the shares of rows of `row_bytes` bytes. read(offset) is the share of the k-block that
  // begins `offset` bytes behind the worker's first.
  template <class Read>
  __device__ void load_shares(int kw, int row_bytes, const Geometry& g, const Read& read) {
    const int blocks = row_bytes / kBlockBytes;
    count_ = kw < g.k_workers && kw < blocks ? (blocks - kw + g.k_workers - 1) / g.k_workers : 0;
#pragma unroll
    for (int i = 0; i < kRegisterBlocks; ++i) {
      if (i < count_) kept_[i] = read(i * vector_step(g));
    }
#pragma unroll 1
    for (int i = kRegisterBlocks; i < count_; ++i) {
      const Share share = read(i * vector_step(g));
      Piece* to = spilled(g, i);
      to[0] = share.first;
      to[kThreads] = share.second;
    }
  }

  // Calls f(share, offset, chain) for each share. In the loop over those in registers, `chain` is a
  // constant, 0 and 1 in turns.
  template <class F>
  __device__ void for_shares(const Geometry& g, const F& f) const {
#pragma unroll
    for (int i = 0; i < kRegisterBlocks; ++i) {
      if (i < count_) f(kept_[i], i * vector_step(g), i % 2);
    }
#pragma unroll 1
    for (int i = kRegisterBlocks; i < count_; ++i) {
      const Piece* from = spilled(g, i);
      f(Share{from[0], from[kThreads]}, i * vector_step(g), 0);
    }
  }

  // A piece of a row, or zeros.
  template <typename Element>
  __device__ Piece read(const Element* row, int offset, bool inside) const {
    if (!inside) return Piece{};
    return *reinterpret_cast<const Piece*>(reinterpret_cast<const unsigned char*>(row) +
                                           vector_offset_ + offset);
  }

  int count_, vector_offset_, part_offset_;

 private:
  // Bytes of the vectors between a worker's k-blocks; and where the thread's share of its k-block i
  // lies in shared memory. Computed at each use, since no register is left for them.
  __device__ static int vector_step(const Geometry& g) { return g.k_workers * kBlockBytes; }
  __device__ static Piece* spilled(const Geometry& g, int i) {
    return reinterpret_cast<Piece*>(shared_memory() + g.weight_offset) +
           (i - kRegisterBlocks) * 2 * kThreads + unknown(threadIdx.x);
  }

  Share kept_[kRegisterBlocks];
};

// Tensor cores: a worker is a warp, a unit group the 16 rows of an mma, a k-block 64 bytes of v,
// two mma's. Lane (g, q) = (lane / 4, lane % 4) reads bytes 16q..16q+15 of the block, of vector g
// and of matrix rows g and g + 8, in one access: k is only summed over, so any assignment of k to
// the fragments is right if both operands share it.
template <typename Format, typename Element>
class MmaMicroKernel : MicroKernelBase<uint4, 64> {
 public:
  using Storage = Element;

  __device__ void load(const void* matrix, int64_t stride, int first_unit, int units,
                       const Geometry& g) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int uw = warp % g.unit_workers, kw = warp / g.unit_workers;
    vector_offset_ = kw * 64 + lane % 4 * 16;
    part_offset_ = (kw * g.rows + lane % 4 * 2) * g.part_stride + uw * 16 + lane / 4;
    const int unit = uw * 16 + lane / 4;
    const Element* low = static_cast<const Element*>(matrix) + (first_unit + unit) * stride;
    const Element* high = low + 8 * stride;
    load_shares(kw, static_cast<int>(stride * sizeof(Element)), g, [&](int offset) {
      return fragments(rounded(read(low, offset, unit < units)),
                       rounded(read(high, offset, unit + 8 < units)));
    });
  }

  __device__ void product(const unsigned char* vectors, int rows, const Geometry& g,
                          float* parts) const {
    if (count_ == 0) return;
    const int lane = threadIdx.x % 32;
    for (int r0 = 0; r0 < rows; r0 += 8) {
      const bool present = r0 + lane / 4 < rows;
      const unsigned char* v = vectors + (r0 + lane / 4) * g.vector_stride + vector_offset_;
      float sum[4][4] = {};  // four chains hide the latency of mma
      for_shares(g, [&](const Share& w, int offset, int chain) {
        const uint4 x = present ? *reinterpret_cast<const uint4*>(v + offset) : uint4{};
        mma<Format>(sum[chain * 2], w.first, make_uint2(x.x, x.y));
        mma<Format>(sum[chain * 2 + 1], w.second, make_uint2(x.z, x.w));
      });
      float* to = parts + part_offset_ + r0 * g.part_stride;
      const int row = r0 + lane % 4 * 2;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (row + c % 2 < rows) {
          to[c % 2 * g.part_stride + c / 2 * 8] = (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]);
        }
      }
    }
  }

  // x as the product reads it.
  __device__ static Element operand(Element x) {
    if constexpr (sizeof(Element) == 4) {
      return __uint_as_float(to_tf32(x));
    } else {
      return x;
    }
  }

 private:
  __device__ static uint4 rounded(const uint4& x) {
    if constexpr (sizeof(Element) == 4) {
      return make_uint4(to_tf32(__uint_as_float(x.x)), to_tf32(__uint_as_float(x.y)),
                        to_tf32(__uint_as_float(x.z)), to_tf32(__uint_as_float(x.w)));
    } else {
      return x;
    }
  }

  // The A fragments of the block's two mma instructions, from rows g and g + 8.
  __device__ static Share fragments(const uint4& low, const uint4& high) {
    return {make_uint4(low.x, high.x, low.y, high.y), make_uint4(low.z, high.z, low.w, high.w)};
  }
};

template <typename Element>
using ScalarPiece = Word<Element, 16 / sizeof(Element)>;

// FMA: a worker is a thread, a unit group two units (uw and uw + unit_workers), a k-block 16 bytes
// of v. With fewer than 32 unit workers a warp holds several k-workers and sums over them first.
template <typename Element>
class FmaMicroKernel : MicroKernelBase<ScalarPiece<Element>, 16> {
 public:
  using Storage = Element;
  using Base = MicroKernelBase<ScalarPiece<Element>, 16>;
  using typename Base::Share;
  static constexpr int kTileRows = sizeof(Element) == 4 ? 4 : 2;  // sequences at a time

  __device__ void load(const void* matrix, int64_t stride, int first_unit, int units,
                       const Geometry& g) {
    const int uw = threadIdx.x % g.unit_workers, kw = threadIdx.x / g.unit_workers;
    vector_offset_ = kw * 16;
    const int part = g.unit_workers < 32 ? threadIdx.x / 32 : kw;
    const bool writes =
        kw < g.k_workers && (g.unit_workers >= 32 || int(threadIdx.x % 32) < g.unit_workers);
    part_offset_ = writes ? part * g.rows * g.part_stride + uw : -1;
    const Element* first = static_cast<const Element*>(matrix) + (first_unit + uw) * stride;
    const Element* second = first + g.unit_workers * stride;
    this->load_shares(kw, g.vector_stride, g, [&](int offset) {
      return Share{this->read(first, offset, uw < units),
                   this->read(second, offset, uw + g.unit_workers < units)};
    });
  }

  __device__ void product(const unsigned char* vectors, int rows, const Geometry& g,
                          Element* parts) const {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) tile<kTileRows>(vectors, r, g, parts);
    for (; r < rows; ++r) tile<1>(vectors, r, g, parts);
  }

  __device__ static Element operand(Element x) { return x; }

 private:
  using Base::part_offset_;  // -1: another lane writes
  using Base::vector_offset_;

  template <int Rows>
  __device__ void tile(const unsigned char* vectors, int r0, const Geometry& g,
                       Element* parts) const {
    const unsigned char* v = vectors + r0 * g.vector_stride + vector_offset_;
    Element sum[Rows][2] = {};
    this->for_shares(g, [&](const Share& w, int offset, int) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        const auto x =
            *reinterpret_cast<const ScalarPiece<Element>*>(v + offset + r * g.vector_stride);
#pragma unroll
        for (int k = 0; k < int(16 / sizeof(Element)); ++k) {
          sum[r][0] += w.first.x[k] * x.x[k];
          sum[r][1] += w.second.x[k] * x.x[k];
        }
      }
    });
#pragma unroll 1
    for (int lanes = g.unit_workers; lanes < 32; lanes *= 2) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        sum[r][0] += __shfl_xor_sync(0xffffffffu, sum[r][0], lanes);
        sum[r][1] += __shfl_xor_sync(0xffffffffu, sum[r][1], lanes);
      }
    }
    if (part_offset_ >= 0) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        Element* to = parts + part_offset_ + (r0 + r) * g.part_stride;
        to[0] = sum[r][0];
        to[g.unit_workers] = sum[r][1];
      }
    }
  }
};

}  // namespace rnnext::cuda
