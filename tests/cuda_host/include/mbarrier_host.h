// The twins of the wrappers in csrc/cuda/mbarrier.h, which says what each one does.
#pragma once

#include "../execution.h"

namespace rnnext::cuda {

inline void barrier_init(uint64_t* barrier, int arrivals) {
  cuda_host::barrier_init(barrier, arrivals);
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint64_t* barrier, int expected_bytes) {
  cuda_host::barrier_arrive(barrier, expected_bytes);
}
inline void barrier_wait(uint64_t* barrier, bool odd) { cuda_host::barrier_wait(barrier, odd); }
using PeerAddress = void*;
template <typename T>
PeerAddress peer_address(T* mine, unsigned rank) {
  return cuda_host::peer_shared(mine, rank);
}
inline void store_async(PeerAddress to, const uint4& x, PeerAddress barrier) {
  cuda_host::store_async(to, &x, static_cast<uint64_t*>(barrier));
}

}  // namespace rnnext::cuda
