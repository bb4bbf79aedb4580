// The twins of the wrappers in csrc/cuda/device.h, which says what each one does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../execution.h"

namespace rnnext::cuda {

inline unsigned char* shared_memory() { return cuda_host::current()->block->shared; }

template <int Bytes>
void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  cuda_host::copy_async(shared, global, Bytes);
}
inline void copy_async_commit() { cuda_host::copy_async_commit(); }
template <int Pending>
void copy_async_wait() {
  cuda_host::copy_async_wait(Pending);
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
inline void mma<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_host::warp_mma(cuda_host::MmaFormat::f16, d, a, b);
}
template <>
inline void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_host::warp_mma(cuda_host::MmaFormat::bf16, d, a, b);
}
template <>
inline void mma<Tf32>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_host::warp_mma(cuda_host::MmaFormat::tf32, d, a, b);
}

// Nearest with ties away from zero: 13 bits of the mantissa go.
inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000;
}

inline unsigned cluster_rank() { return cuda_host::current()->block->rank; }
inline unsigned cluster_size() { return cuda_host::cluster_size(); }
inline void cluster_arrive() { cuda_host::cluster_arrive(); }
inline void cluster_wait() { cuda_host::cluster_wait(); }
inline void cluster_sync() {
  cuda_host::cluster_arrive();
  cuda_host::cluster_wait();
}
template <typename T>
T* peer_shared(T* mine, unsigned rank) {
  return static_cast<T*>(
      cuda_host::peer_shared(const_cast<void*>(static_cast<const void*>(mine)), rank));
}

inline void named_barrier(int id, int threads) { cuda_host::block_barrier(id, threads); }

inline uint4 load_relaxed(const uint4* p) {
  uint4 x;
  cuda_host::load_relaxed(&x, p, 16);
  return x;
}
inline void store_relaxed(uint4* p, const uint4& x) { cuda_host::store_relaxed(p, &x, 16); }
// Not of device.h: what a kernel would do that stored a wide word in halves.
inline void store_relaxed(uint2* p, const uint2& x) { cuda_host::store_relaxed(p, &x, 8); }

inline unsigned load_acquire(const unsigned* flag) { return cuda_host::load_acquire(flag); }
inline void store_release(unsigned* flag, unsigned value) { cuda_host::store_release(flag, value); }
inline void pause(unsigned) { cuda_host::yield(); }

}  // namespace rnnext::cuda
