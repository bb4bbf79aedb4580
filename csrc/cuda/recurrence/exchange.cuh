// The groups of the second generation: a step's vector goes around without a fence and without a
// barrier of the cluster. What makes them right is told in docs/cuda.md.
#pragma once

#include "cuda/mbarrier.h"
#include "cuda/recurrence/group.cuh"

namespace rnnext::cuda {

// The same word of Lanes neighbouring lanes, whose first is a multiple of Lanes.
template <int Lanes>
__device__ __forceinline__ unsigned from_lane(unsigned x, int lane) {
  const unsigned first = threadIdx.x % 32 / Lanes * Lanes;
  return __shfl_sync(((1u << Lanes) - 1) << first, x, lane, Lanes);
}

template <typename Word>
__device__ __forceinline__ uint2 bits_of(const Word& x) {
  uint2 bits = {0, 0};
  memcpy(&bits, &x, sizeof(Word));
  return bits;
}

// Each block has two buffers and an mbarrier for each. A phase of the barrier is one step's vector
// coming in: it is over when the bytes of all words have landed, and all warps of the block are
// done with the partial sums. Words are stored asynchronously, 16 bytes at a time, by every block
// to every block, itself included. So a block that has all of buffer(n) knows that every thread of
// the group is done with buffer(n - 1): the words of step n were stored after the product, and
// after the reads, of step n - 1.
class AsyncClusterGroup : public GroupBase {
 public:
  using GroupBase::GroupBase;
  static constexpr int kArchitecture = 900;
  static constexpr bool kGathers = true;

  __device__ void start() {
    if (threadIdx.x < 2) barrier_init(barrier(threadIdx.x), kWarps);
    barrier_init_fence();
    cluster_sync();
  }
  __device__ void receive(unsigned n, bool first, int) {
    if (first) {
      __syncthreads();
    } else {
      wait(n);
    }
  }
  template <typename Word>
  __device__ void publish(unsigned n, const Destination& to, const Word& x) {
    constexpr int kLanes = 16 / sizeof(Word);
    const uint2 mine = bits_of(x);
    // Part k of the lanes' 16 bytes.
    const auto part = [&](int k) {
      return from_lane<kLanes>(k % (4 / kLanes) == 0 ? mine.x : mine.y, k * kLanes / 4);
    };
    const uint4 all = {part(0), part(1), part(2), part(3)};
    if (to.at / 16 * 16 >= g.row_bytes) return;  // past the vector's end
    const int offset = to.row * g.vector_stride + to.at / 16 * 16;
#pragma unroll 1
    for (int peer = threadIdx.x % kLanes; peer < g.active_blocks; peer += kLanes) {
      store_async(peer_address(buffer(n + 1) + offset, peer), all,
                  peer_address(barrier(n + 1), peer));
    }
  }
  __device__ void finish(unsigned n, int rows) {
    __syncwarp();
    if (threadIdx.x % 32 > 0) return;
    barrier_arrive(barrier(n + 1), threadIdx.x == 0 ? rows * g.row_bytes : 0);
  }
  __device__ void close(unsigned n, int) { wait(n); }

 private:
  // For the vectors of step n.
  __device__ uint64_t* barrier(unsigned n) const {
    return reinterpret_cast<uint64_t*>(shared + g.barrier_offset) + n % 2;
  }
  // The phases of step n's barrier, n >= 1, are steps n, n + 2, ...
  __device__ void wait(unsigned n) { barrier_wait(barrier(n), (n - 1) / 2 % 2 == 1); }
};

// Through L2 in words of 16 bytes: 12 of a vector, and the number of the step as a tag. A word is
// stored and loaded in one access, so whoever sees the tag has the 12 bytes: nothing else needs an
// order. Two buffers, for step n + 1 is published by those alone who have seen all of step n.
class TaggedGridGroup : public GroupBase {
 public:
  using GroupBase::GroupBase;
  static constexpr bool kGathers = true;

  __device__ unsigned char* buffer(unsigned) const { return shared; }
  __device__ void receive(unsigned n, bool first, int rows) {
    if (!first) {
      __syncthreads();  // finish() reads the states that wait, of the vector before
      collect(n, rows);
    }
    __syncthreads();
  }
  template <typename Word>
  __device__ void publish(unsigned n, const Destination& to, const Word& x) {
    const uint2 mine = bits_of(x);
    uint4* row = travelling(n + 1) + to.row * g.row_words;
    if constexpr (sizeof(Word) == 8) {
      const int word = to.at / 8;
      if (word < g.row_words) store_relaxed(row + word, make_uint4(mine.x, mine.y, 0, n + 1));
    } else {
      // Words 3 k, 3 k + 1, 3 k + 2 of eight, for lanes k = 0, 1, 2.
      const int lane = threadIdx.x % 8, from = 3 * min(lane, 2);
      uint4 all;
      all.x = from_lane<8>(mine.x, from);
      all.y = from_lane<8>(mine.x, from + 1);
      all.z = from_lane<8>(mine.x, min(from + 2, 7));
      all.w = n + 1;
      const int word = to.at / 32 * 3 + lane;
      if (lane < 3 && word < g.row_words) store_relaxed(row + word, all);
    }
  }
  // Whoever goes on without the vectors of step n may not overwrite what others still wait for.
  __device__ void close(unsigned n, int rows) {
    const uint4* from = travelling(n);
    for (int i = threadIdx.x; i < rows * g.row_words; i += kThreads) await_word(from + i, n);
    __syncthreads();
  }

 private:
  static constexpr int kAtOnce = 2;  // loads under way

  __device__ uint4* travelling(unsigned n) const {
    return reinterpret_cast<uint4*>(p.exchange) +
           int64_t(n % 2 * g.groups + index) * (g.rows * g.row_words);
  }
  __device__ void collect(unsigned n, int rows) {
    const uint4* from = travelling(n);
    const int words = rows * g.row_words;
#pragma unroll 1
    for (int first = threadIdx.x; first < words; first += kThreads * kAtOnce) {
      uint4 x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * kThreads;
        if (i < words) x[j] = load_relaxed(from + i);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * kThreads;
        if (i >= words) break;
        if (x[j].w != n) x[j] = await_word(from + i, n);
        put(i, x[j]);
      }
    }
  }
  // Word i of all rows, to the vectors.
  __device__ void put(int i, const uint4& x) {
    const int row = divide(i, g.row_divisor), word = i - row * g.row_words;
    unsigned char* to = shared + row * g.vector_stride;
    if (g.wide_words) {
      *reinterpret_cast<uint2*>(to + word * 8) = make_uint2(x.x, x.y);
      return;
    }
    const int at = word / 3 * 32 + word % 3 * 12;
    unsigned* at_words = reinterpret_cast<unsigned*>(to + at);
    if (at < g.vector_stride) at_words[0] = x.x;  // the last words may end past the vector
    if (at + 4 < g.vector_stride) at_words[1] = x.y;
    if (at + 8 < g.vector_stride && word % 3 < 2) at_words[2] = x.z;
  }
};

}  // namespace rnnext::cuda
