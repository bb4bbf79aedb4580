// Wrappers of what C++ cannot express for a GPU. Kernels that need what an architecture lacks are
// not compiled for it: the groups of the recurrence say what they need. tests/cuda_ptx interprets
// the PTX of these wrappers; it knows the instructions that occur, and refuses others.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#undef NDEBUG  // without which there is no __assert_fail
#include <cassert>
#include <cstdint>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

namespace rnnext::cuda {

// The architecture that is compiled for, as __CUDA_ARCH__ counts; for the host, no limit.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 1 << 30;
#endif

struct Tf32 {};  // names the format in mma<Tf32>; its values travel as uint32_t bits, of to_tf32()

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(Accumulate<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// N neighbouring elements.
template <typename T, int N>
struct alignas(N * sizeof(T)) Word {
  T x[N];
};

// x / n, where `divisor` is 2^32 / n rounded up, n > 1 and x n below 2^32.
__device__ __forceinline__ int divide(unsigned x, unsigned divisor) { return __umulhi(x, divisor); }

// x, hidden from the compiler: what is computed from it is computed where it is used, and does not
// occupy a register through a loop.
__device__ __forceinline__ int unknown(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks per cluster along x; above 1 needs sm_90
  bool cooperative = false;  // the whole grid resident at once
};

// Lets a kernel use all shared memory that a block may, and clusters of 16 blocks; once for a
// kernel and device. (Limits by launch could be lowered while another thread launches more.)
inline cudaError_t raise_limits(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;
  int device = 0, capability = 0, shared_bytes = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto error = cudaGetDevice(&device)) return error;
  if (raised.count({kernel, device}) > 0) return cudaSuccess;
  cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  constexpr auto kSharedBytes = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (const auto error = cudaFuncSetAttribute(kernel, kSharedBytes, shared_bytes)) return error;
  if (capability >= 9) {
    constexpr auto kClusters = cudaFuncAttributeNonPortableClusterSizeAllowed;
    if (const auto error = cudaFuncSetAttribute(kernel, kClusters, 1)) return error;
  }
  raised.insert({kernel, device});
  return cudaSuccess;
}

// A LaunchShape as the runtime takes it.
struct LaunchConfig : cudaLaunchConfig_t {
  explicit LaunchConfig(const LaunchShape& shape, cudaStream_t on = nullptr)
      : cudaLaunchConfig_t{shape.grid, shape.block, shape.shared_bytes, on, attributes_, 0} {
    if (shape.cluster > 1) {
      add(cudaLaunchAttributeClusterDimension).clusterDim = {shape.cluster, 1, 1};
    }
    if (shape.cooperative) add(cudaLaunchAttributeCooperative).cooperative = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;  // it points into itself

 private:
  cudaLaunchAttributeValue& add(cudaLaunchAttributeID id) {
    attributes_[numAttrs].id = id;
    return attributes_[numAttrs++].val;
  }
  cudaLaunchAttribute attributes_[2] = {};
};

// Starts `kernel(args...)`. Raises the kernel's limits where the shape needs it (shared memory
// above 48 KiB, clusters above 8 blocks). Returns the first error.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   Args&&... args) {
  if (shape.shared_bytes > 48 * 1024 || shape.cluster > 8) {
    const cudaError_t error = raise_limits(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  const LaunchConfig config(shape, stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Both addresses are multiples of Bytes.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(Bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `Pending` of this thread's committed groups are in flight.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// d += a b by one warp, in PTX's layouts of fragments: m16n8k16, of TF32 m16n8k8.
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint4& a, const uint2& b);

#define RNNEXT_MMA(type, shape_and_types)                                                    \
  template <>                                                                                \
  __device__ __forceinline__ void mma<type>(float (&d)[4], const uint4& a, const uint2& b) { \
    asm volatile("mma.sync.aligned." shape_and_types                                         \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                            \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));              \
  }
RNNEXT_MMA(__half, "m16n8k16.row.col.f32.f16.f16.f32")
RNNEXT_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RNNEXT_MMA(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RNNEXT_MMA

// Rounded to nearest; the bits as mma<Tf32> wants them.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits = 0;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Every thread of the cluster arrives, then waits; what it wrote before the arrival is visible to
// the others after their wait.
__device__ __forceinline__ void cluster_arrive() {
  __syncwarp();  // `.aligned` wants the whole warp here, which loops may have left in parts
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address in block `rank` of the cluster of what is `mine` in this block's shared memory.
template <typename T>
__device__ __forceinline__ T* peer_shared(T* mine, unsigned rank) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
  return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Cycles after which a wait for other blocks gives up: it prints what it waited for, and ends the
// kernel, instead of hanging for ever. 0: never. (`make cuda-check` builds with a bound.)
#ifndef RNNEXT_CUDA_BOUNDED
#define RNNEXT_CUDA_BOUNDED 0
#endif

// Returns once a flag that another block releases is at least n.
__device__ __forceinline__ void await_flag(const unsigned* flag, unsigned n) {
  constexpr long long kBound = RNNEXT_CUDA_BOUNDED;
  const long long begin = kBound > 0 ? clock64() : 0;
  while (load_acquire(flag) < n) {
    __nanosleep(16);
    if (kBound > 0 && clock64() - begin > kBound) {
      __assert_fail("a flag that another block releases", __FILE__, __LINE__, __func__);
    }
  }
}

}  // namespace rnnext::cuda
