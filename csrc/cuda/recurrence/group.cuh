// The blocks that share the state of the resident recurrence, and how they exchange a step's
// vectors. A group is used as follows; n counts the steps of the whole launch.
//
//   start()                  once, after this block has zeroed its buffers
//   buffer(n)                where the vectors of step n lie in this block's shared memory
//   receive(n, first, rows)  returns when buffer(n) is complete; `first`: the block filled it by
//                            itself, and a barrier has followed
//   publish(n, to, x)        makes x part of every block's buffer(n + 1), `to` bytes into it
//   finish(n)                after the last publish of step n
//   close()                  where no receive(n) follows finish(n - 1)
//
// receive() is also the barrier that lets the threads reuse the partial sums of the step before.
// Cards from kArchitecture on have what the group needs.
#pragma once

#include "cuda/device.h"
#include "cuda/recurrence/launch.h"

namespace rnnext::cuda {

// The common part of the groups: their place in the launch, and two buffers of vectors at the
// beginning of this block's shared memory.
class GroupBase {
 public:
  static constexpr int kArchitecture = 800;
  __device__ GroupBase(const DeviceCall& p, const Geometry& g, int index, unsigned char* shared)
      : p(p), g(g), index(index), shared(shared) {}
  __device__ void start() {}
  __device__ unsigned char* buffer(unsigned n) const {
    return shared + n % 2 * (g.rows * g.vector_stride);
  }
  __device__ void finish(unsigned) {}
  __device__ void close() {}

 protected:
  const DeviceCall& p;
  const Geometry& g;
  const int index;  // of the group
  unsigned char* const shared;
};

struct BlockGroup : GroupBase {
  using GroupBase::GroupBase;
  __device__ void receive(unsigned, bool, int) { __syncthreads(); }
  template <typename Word>
  __device__ void publish(unsigned n, int to, const Word& x) {
    *reinterpret_cast<Word*>(buffer(n + 1) + to) = x;
  }
};

// A peer writes buffer(n + 1) while this block still reads buffer(n), and no block gets to step n +
// 1 before all have arrived at the end of step n.
struct ClusterGroup : GroupBase {
  using GroupBase::GroupBase;
  static constexpr int kArchitecture = 900;
  __device__ void start() { cluster_sync(); }  // a block must have begun before peers write to it
  __device__ void receive(unsigned, bool first, int) {
    if (!first) cluster_wait();
  }
  template <typename Word>
  __device__ void publish(unsigned n, int to, const Word& x) {
    Word* mine = reinterpret_cast<Word*>(buffer(n + 1) + to);
    for (int peer = 0; peer < g.blocks; ++peer) *peer_shared(mine, peer) = x;
  }
  __device__ void finish(unsigned) { cluster_arrive(); }
  __device__ void close() { cluster_wait(); }  // and must not end while they do
};

// Through L2: two buffers in global memory, copied into one in shared memory, and a flag per block
// that counts the steps it has published. A block that publishes for step n + 1 has seen every flag
// at n, so all blocks have copied what that buffer held before.
struct GridGroup : GroupBase {
  using GroupBase::GroupBase;
  __device__ unsigned char* buffer(unsigned) const { return shared; }
  __device__ void receive(unsigned n, bool first, int rows) {
    for (int block = threadIdx.x; block < g.blocks; block += kThreads) {
      await_flag(p.flags + index * g.blocks + block, n);
    }
    if (first) return;  // a barrier follows before this block publishes
    __syncthreads();
    const unsigned char* from = travelling(n);
    for (int i = threadIdx.x * 16; i < rows * g.vector_stride; i += kThreads * 16) {
      copy_async<16>(shared + i, from + i);  // bypasses L1, which may hold old values
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }
  template <typename Word>
  __device__ void publish(unsigned n, int to, const Word& x) {
    *reinterpret_cast<Word*>(travelling(n + 1) + to) = x;
  }
  __device__ void finish(unsigned n) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(p.flags + blockIdx.x, n + 1);
  }

 private:
  // This group's vectors of step n in global memory.
  __device__ unsigned char* travelling(unsigned n) const {
    return p.exchange + int64_t(n % 2 * g.groups + index) * (g.rows * g.vector_stride);
  }
};

}  // namespace rnnext::cuda
