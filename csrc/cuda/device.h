// The CUDA vocabulary of the kernels; mbarrier.h has the rest. What C++ cannot spell is wrapped
// here:
//
//   shared_memory()                        the block's dynamic shared memory (never static arrays)
//   copy_async<Bytes>(shared, global)      4, 8 or 16 bytes, both addresses so aligned
//   copy_async_commit(), copy_async_wait<Pending>()
//   mma<T>(d, a, b)                        d += a b, one warp; T = __half, __nv_bfloat16
//                                          (m16n8k16) or Tf32 (m16n8k8); PTX fragment layouts
//   to_tf32(x)                             round to nearest; the bits as mma<Tf32> wants them
//   cluster_arrive(), cluster_wait(), cluster_sync()
//   peer_shared(p, rank)                   p of this block's shared memory, seen in block `rank`
//   load_acquire(p), store_release(p, v)   unsigned flags in global memory
//   load_relaxed(p), store_relaxed(p, v)   16 bytes in global memory as one access, in no order
//                                          with others
//   pause(ns)                              inside a spin
//   to_float(x), from_float<T>(x), Accumulate<T>
//   launch(kernel, LaunchShape{...}, stream, args...) -> cudaError_t
//
// tests/cuda_ptx runs the PTX that these become. It knows the instructions that occur, and refuses
// others.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace rnnext::cuda {

// What is compiled for, as __CUDA_ARCH__ counts; of the host, where all has to compile, no limit.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 1 << 30;
#endif

struct Tf32 {};  // names the format in mma<Tf32>; its values travel as uint32_t bits

template <typename T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateType<T>::type;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(Accumulate<T> x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double from_float<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// x / n, where `divisor` is 2^32 / n rounded up, n > 1 and x n below 2^32.
__device__ __forceinline__ int divide(unsigned x, unsigned divisor) { return __umulhi(x, divisor); }

// x, of which the compiler knows nothing: what is made of it is made where it is used, and not kept
// in a register from before a loop.
__device__ __forceinline__ int unknown(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;      // blocks per cluster along x; above 1 needs sm_90
  bool cooperative = false;  // the whole grid resident at once
};

// Lets a kernel have all the shared memory that a block may, and clusters of 16 blocks; once for
// each kernel and device. The limits do not follow a launch's size: one launch would lower them
// while another thread launches more.
inline cudaError_t raise_limits(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;
  int device = 0, capability = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (error != cudaSuccess || raised.count({kernel, device}) > 0) return error;
  error = cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (error == cudaSuccess && capability >= 9) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) raised.insert({kernel, device});
  return error;
}

// Starts `kernel(args...)`. Raises the kernel's limits where the shape needs it (shared memory
// above 48 KiB, clusters above 8 blocks). Returns the first error.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   Args&&... args) {
  if (shape.shared_bytes > 48 * 1024 || shape.cluster > 8) {
    const cudaError_t error = raise_limits(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(Bytes)
                 : "memory");
  }
#else
  if constexpr (Bytes == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  if constexpr (Bytes == 8) *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
  if constexpr (Bytes == 4) *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Pending` of this thread's committed groups are in flight.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Older cards have no such instruction: there the launcher takes the step path, and the kernels
// only have to compile.
#if __CUDA_ARCH__ >= 800
#define RNNEXT_SM80(...) __VA_ARGS__
#else
#define RNNEXT_SM80(...) __trap()
#endif
#define RNNEXT_MMA(type, shape_and_types)                                                \
  template <>                                                                            \
  __device__ __forceinline__ void mma<type>(float (&d)[4], const uint32_t (&a)[4],       \
                                            const uint32_t (&b)[2]) {                    \
    RNNEXT_SM80(asm volatile(                                                            \
        "mma.sync.aligned." shape_and_types                                              \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), \
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
        "r"(b[0]), "r"(b[1])));                                                          \
  }
RNNEXT_MMA(__half, "m16n8k16.row.col.f32.f16.f16.f32")
RNNEXT_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RNNEXT_MMA(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RNNEXT_MMA

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits = 0;
  RNNEXT_SM80(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x)));
  return bits;
}
#undef RNNEXT_SM80

// Clusters exist from sm_90 on; below, a block is its own cluster, so that one kernel source serves
// every architecture (the launcher never asks an older card for a cluster).
//
// Every thread of the cluster arrives, then waits; what it wrote before the arrival is visible to
// the others after their wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // `.aligned` wants the whole warp here, which loops may have left in parts
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

template <typename T>
__device__ __forceinline__ T* peer_shared(T* mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return mine;
#endif
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// 16 bytes as one access need the type b128: of vectors only each element is one access.
__device__ __forceinline__ uint4 load_relaxed(const uint4* p) {
  uint64_t low, high;
  asm volatile(
      "{\n"
      ".reg .b128 x;\n"
      "ld.relaxed.gpu.global.b128 x, [%2];\n"
      "mov.b128 {%0, %1}, x;\n"
      "}\n"
      : "=l"(low), "=l"(high)
      : "l"(p)
      : "memory");
  return make_uint4(static_cast<unsigned>(low), static_cast<unsigned>(low >> 32),
                    static_cast<unsigned>(high), static_cast<unsigned>(high >> 32));
}

__device__ __forceinline__ void store_relaxed(uint4* p, const uint4& x) {
  asm volatile(
      "{\n"
      ".reg .b128 x;\n"
      "mov.b128 x, {%1, %2};\n"
      "st.relaxed.gpu.global.b128 [%0], x;\n"
      "}\n" ::"l"(p),
      "l"(x.x | uint64_t(x.y) << 32), "l"(x.z | uint64_t(x.w) << 32)
      : "memory");
}

__device__ __forceinline__ void pause(unsigned nanoseconds) { __nanosleep(nanoseconds); }

}  // namespace rnnext::cuda
