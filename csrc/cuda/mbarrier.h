// mbarriers in shared memory, and stores into other blocks of a cluster that complete on them: from
// sm_90 on.
//
//   barrier_init(b, arrivals), barrier_init_fence(), barrier_arrive(b, bytes), barrier_wait(b, odd)
//                              a phase of barrier b is over when all have arrived and all bytes
//                              that they expect have landed
//   store_async(to, x, b)      16 bytes into a block of the cluster, counted by its barrier b
//   peer_address(p, rank)      p of this block's shared memory, for store_async
#pragma once

#include "cuda/device.h"

namespace rnnext::cuda {

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Before other blocks of the cluster may complete anything on the barriers.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier, int expected_bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(expected_bytes)
      : "memory");
}

// Waits for the end of a phase; `odd`: of the 2nd, 4th, ... The bytes arrive with release at the
// cluster's scope, and this wait acquires at the block's, its default. The cluster's scope would
// add an invalidation of L1 (CCTL.IVALL) to every step and nothing else; what is read afterwards
// lies in this block's shared memory, which has no cache before it.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, bool odd) {
  await("bytes or arrivals of an mbarrier", [&] {
    unsigned over;
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}\n"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(unsigned(odd))
        : "memory");
    return over == 1;
  });
  __syncwarp();  // lanes may have left the loop at different turns
}

// An address in the shared memory of the cluster.
using PeerAddress = uint32_t;
template <typename T>
__device__ __forceinline__ PeerAddress peer_address(T* mine, unsigned rank) {
  PeerAddress address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(mine)), "r"(rank));
  return address;
}

__device__ __forceinline__ void store_async(PeerAddress to, const uint4& x, PeerAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
      : "memory");
}

}  // namespace rnnext::cuda
