// The products of the resident recurrence: parts = M v for a block's slice of the stationary
// matrix M, one vector v per sequence. M is read once and then stays in registers and shared
// memory. Both engines share one scheme (see Geometry in choice.h): worker (uw, kw) multiplies unit
// group uw by the k-blocks kw, kw + k_workers, ...; its sums over k meet in shared memory.
#pragma once

#include "cuda/device.h"
#include "cuda/recurrence/choice.h"

namespace rnnext::cuda {

constexpr int kSpillBytes = kThreads * 2 * 16;  // shared memory of one k-block past the registers

// Tensor cores: a worker is a warp, a unit group the 16 rows of an mma, a k-block 64 bytes of v,
// two mma's. Lane (g, q) = (lane / 4, lane % 4) reads bytes 16q..16q+15 of the block, of vector g
// and of matrix rows g and g + 8, in one access: k is only summed over, so any assignment of k to
// the fragments is right if both operands share it.
template <typename Format, typename Element>
class MatrixEngine {
 public:
  using Storage = Element;
  static constexpr int kBlockBytes = 64;

  __device__ void load(const void* matrix, int64_t stride, int first_unit, int units,
                       const Geometry& g, unsigned char* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int uw = warp % g.unit_workers, kw = warp / g.unit_workers;
    const int blocks = static_cast<int>(stride * sizeof(Element) / kBlockBytes);
    count_ = kw < g.k_workers && kw < blocks ? (blocks - kw + g.k_workers - 1) / g.k_workers : 0;
    vector_offset_ = kw * kBlockBytes + lane % 4 * 16;
    part_offset_ = (kw * g.rows + lane % 4 * 2) * g.part_stride + uw * 16 + lane / 4;
    const int step = vector_step(g);
    const int unit = uw * 16 + lane / 4;
    const Element* low = static_cast<const Element*>(matrix) + (first_unit + unit) * stride;
    const Element* high = low + 8 * stride;
#pragma unroll
    for (int i = 0; i < kRegisterBlocks; ++i) {
      if (i < count_) {
        const uint4 a = read(low, i * step, unit < units),
                    b = read(high, i * step, unit + 8 < units);
        interleave(a, b, fragments_[i]);
      }
    }
#pragma unroll 1
    for (int i = kRegisterBlocks; i < count_; ++i) {
      const uint4 a = read(low, i * step, unit < units), b = read(high, i * step, unit + 8 < units);
      uint32_t w[2][4];
      interleave(a, b, w);
      uint4* to = reinterpret_cast<uint4*>(shared + spill_offset(g, i));
      to[0] = make_uint4(w[0][0], w[0][1], w[0][2], w[0][3]);
      to[32] = make_uint4(w[1][0], w[1][1], w[1][2], w[1][3]);
    }
  }

  __device__ void product(const unsigned char* vectors, int rows, const Geometry& g,
                          float* parts) const {
    if (count_ == 0) return;
    const int lane = threadIdx.x % 32;
    for (int r0 = 0; r0 < rows; r0 += 8) {
      const bool present = r0 + lane / 4 < rows;
      const unsigned char* v = vectors + (r0 + lane / 4) * g.vector_stride + vector_offset_;
      float sum[4][4] = {};  // four chains hide the latency of mma
#pragma unroll
      for (int i = 0; i < kRegisterBlocks; ++i) {
        if (i < count_) {
          const uint4 x = fetch(v + i * vector_step(g), present);
          multiply(sum[i % 2 * 2], sum[i % 2 * 2 + 1], fragments_[i], x);
        }
      }
#pragma unroll 1
      for (int i = kRegisterBlocks; i < count_; ++i) {
        const uint4 x = fetch(v + i * vector_step(g), present);
        const uint4* from = reinterpret_cast<const uint4*>(shared_memory() + spill_offset(g, i));
        const uint4 a = from[0], b = from[32];
        const uint32_t w[2][4] = {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
        multiply(sum[0], sum[1], w, x);
      }
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

  // What the product reads in place of x.
  __device__ static Element operand(Element x) {
    if constexpr (sizeof(Element) == 4) {
      return __uint_as_float(to_tf32(x));
    } else {
      return x;
    }
  }

 private:
  // Bytes of the vectors between a worker's k-blocks; and where the thread's share of its k-block i
  // lies in shared memory. Made anew at each use: there is no register to keep them in.
  __device__ static int vector_step(const Geometry& g) { return g.k_workers * kBlockBytes; }
  __device__ static int spill_offset(const Geometry& g, int i) {
    const int thread = unknown(threadIdx.x);
    return g.weight_offset + (i - kRegisterBlocks) * kSpillBytes + thread / 32 * 1024 +
           thread % 32 * 16;
  }

  __device__ uint4 read(const Element* row, int offset, bool inside) const {
    if (!inside) return make_uint4(0, 0, 0, 0);
    const unsigned char* from =
        reinterpret_cast<const unsigned char*>(row) + vector_offset_ + offset;
    uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
    if constexpr (sizeof(Element) == 4) {
      x = make_uint4(to_tf32(__uint_as_float(x.x)), to_tf32(__uint_as_float(x.y)),
                     to_tf32(__uint_as_float(x.z)), to_tf32(__uint_as_float(x.w)));
    }
    return x;
  }

  // The A fragments of the block's two mma's from rows g and g + 8.
  __device__ static void interleave(const uint4& low, const uint4& high, uint32_t (&w)[2][4]) {
    w[0][0] = low.x, w[0][1] = high.x, w[0][2] = low.y, w[0][3] = high.y;
    w[1][0] = low.z, w[1][1] = high.z, w[1][2] = low.w, w[1][3] = high.w;
  }

  __device__ static uint4 fetch(const unsigned char* v, bool present) {
    return present ? *reinterpret_cast<const uint4*>(v) : make_uint4(0, 0, 0, 0);
  }

  __device__ static void multiply(float (&first)[4], float (&second)[4], const uint32_t (&w)[2][4],
                                  const uint4& x) {
    const uint32_t b0[2] = {x.x, x.y}, b1[2] = {x.z, x.w};
    mma<Format>(first, w[0], b0);
    mma<Format>(second, w[1], b1);
  }

  uint32_t fragments_[kRegisterBlocks][2][4];
  int count_, vector_offset_, part_offset_;
};

// FMA: a worker is a thread, a unit group two units (uw and uw + unit_workers), a k-block 16 bytes
// of v. With fewer than 32 unit workers a warp holds several k-workers and sums over them first.
template <typename Element>
class ScalarEngine {
 public:
  using Storage = Element;
  static constexpr int kBlockBytes = 16;
  static constexpr int kPer = kBlockBytes / sizeof(Element);
  static constexpr int kTileRows = sizeof(Element) == 4 ? 4 : 2;  // sequences at a time

  __device__ void load(const void* matrix, int64_t stride, int first_unit, int units,
                       const Geometry& g, unsigned char* shared) {
    const int uw = threadIdx.x % g.unit_workers, kw = threadIdx.x / g.unit_workers;
    const int blocks = static_cast<int>(g.vector_stride / kBlockBytes);
    count_ = kw < g.k_workers && kw < blocks ? (blocks - kw + g.k_workers - 1) / g.k_workers : 0;
    vector_offset_ = kw * kBlockBytes;
    const int part = g.unit_workers < 32 ? threadIdx.x / 32 : kw;
    const bool writes =
        kw < g.k_workers && (g.unit_workers >= 32 || int(threadIdx.x % 32) < g.unit_workers);
    part_offset_ = writes ? part * g.rows * g.part_stride + uw : -1;
    const int step = vector_step(g);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int unit = uw + j * g.unit_workers;
      const Element* row = static_cast<const Element*>(matrix) + (first_unit + unit) * stride;
#pragma unroll
      for (int i = 0; i < kRegisterBlocks; ++i) {
        if (i < count_) read(row, i * step, unit < units, weight_[j][i]);
      }
#pragma unroll 1
      for (int i = kRegisterBlocks; i < count_; ++i) {
        Element w[kPer];
        read(row, i * step, unit < units, w);
        Element* to = reinterpret_cast<Element*>(shared + spill_offset(g, i) + j * kThreads * 16);
        store16(to, w);
      }
    }
  }

  __device__ void product(const unsigned char* vectors, int rows, const Geometry& g,
                          Element* parts) const {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) tile<kTileRows>(vectors, r, g, parts);
    for (; r < rows; ++r) tile<1>(vectors, r, g, parts);
  }

  __device__ static Element operand(Element x) { return x; }

 private:
  // As in MatrixEngine.
  __device__ static int vector_step(const Geometry& g) { return g.k_workers * kBlockBytes; }
  __device__ static int spill_offset(const Geometry& g, int i) {
    return g.weight_offset + (i - kRegisterBlocks) * kSpillBytes + unknown(threadIdx.x) * 16;
  }

  template <int Rows>
  __device__ void tile(const unsigned char* vectors, int r0, const Geometry& g,
                       Element* parts) const {
    const unsigned char* v = vectors + r0 * g.vector_stride + vector_offset_;
    Element sum[Rows][2] = {};
#pragma unroll
    for (int i = 0; i < kRegisterBlocks; ++i) {
      if (i < count_) multiply<Rows>(sum, weight_[0][i], weight_[1][i], v + i * vector_step(g), g);
    }
#pragma unroll 1
    for (int i = kRegisterBlocks; i < count_; ++i) {
      const unsigned char* from = shared_memory() + spill_offset(g, i);
      Element w0[kPer], w1[kPer];
      load16(from, w0);
      load16(from + kThreads * 16, w1);
      multiply<Rows>(sum, w0, w1, v + i * vector_step(g), g);
    }
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

  template <int Rows>
  __device__ static void multiply(Element (&sum)[Rows][2], const Element (&w0)[kPer],
                                  const Element (&w1)[kPer], const unsigned char* v,
                                  const Geometry& g) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      Element x[kPer];
      load16(v + r * g.vector_stride, x);
#pragma unroll
      for (int k = 0; k < kPer; ++k) {
        sum[r][0] += w0[k] * x[k];
        sum[r][1] += w1[k] * x[k];
      }
    }
  }

  __device__ void read(const Element* row, int offset, bool inside, Element (&w)[kPer]) const {
    if (inside) {
      load16(reinterpret_cast<const unsigned char*>(row) + vector_offset_ + offset, w);
    } else {
#pragma unroll
      for (int k = 0; k < kPer; ++k) w[k] = 0;
    }
  }

  __device__ static void load16(const unsigned char* from, float (&x)[4]) {
    const float4 q = *reinterpret_cast<const float4*>(from);
    x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
  }
  __device__ static void load16(const unsigned char* from, double (&x)[2]) {
    const double2 q = *reinterpret_cast<const double2*>(from);
    x[0] = q.x, x[1] = q.y;
  }
  __device__ static void store16(float* to, const float (&x)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  }
  __device__ static void store16(double* to, const double (&x)[2]) {
    *reinterpret_cast<double2*>(to) = make_double2(x[0], x[1]);
  }

  Element weight_[2][kRegisterBlocks][kPer];
  int count_, vector_offset_;
  int part_offset_;  // -1: another lane writes
};

}  // namespace rnnext::cuda
