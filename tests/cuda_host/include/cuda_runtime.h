// CUDA's language and runtime as far as the kernels use them (the list is in csrc/cuda/device.h),
// for a plain C++ compiler. Kernels compiled against this run on the CPU: see ../execution.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "../execution.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// __shared__ and __constant__ stay undefined on purpose: kernels use shared_memory() and
// parameters.

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define CUDA_HOST_VECTORS(scalar, name)                                \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct alignas(16) name##4 { scalar x, y, z, w; };                   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned, uint)
CUDA_HOST_VECTORS(float, float)
#undef CUDA_HOST_VECTORS
struct alignas(16) double2 {
  double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace cuda_host {
// threadIdx and its like: read from the fiber that runs.
template <const Index& (*Read)()>
struct Coordinates {
  template <unsigned Index::* Axis>
  struct On {
    operator unsigned() const { return Read().*Axis; }
  };
  On<&Index::x> x;
  On<&Index::y> y;
  On<&Index::z> z;
};
inline const Index& read_thread() { return current()->thread_index; }
inline const Index& read_block() { return current()->block->index; }
inline const Index& read_block_size() { return current()->block->dimensions; }
inline const Index& read_grid_size() { return current()->block->grid; }
}  // namespace cuda_host
inline constexpr cuda_host::Coordinates<cuda_host::read_thread> threadIdx{};
inline constexpr cuda_host::Coordinates<cuda_host::read_block> blockIdx{};
inline constexpr cuda_host::Coordinates<cuda_host::read_block_size> blockDim{};
inline constexpr cuda_host::Coordinates<cuda_host::read_grid_size> gridDim{};
constexpr int warpSize = 32;

inline void __syncthreads() { cuda_host::block_barrier(0, 0); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_host::warp_sync(mask); }
inline void __threadfence() { cuda_host::maybe_yield(); }
inline void __threadfence_block() {}
inline void __threadfence_system() { cuda_host::maybe_yield(); }
inline void __nanosleep(unsigned) { cuda_host::yield(); }
[[noreturn]] inline void __trap() { cuda_host::fail("__trap()"); }

inline int __ballot_sync(unsigned mask, int predicate) {
  return int(cuda_host::warp_ballot(mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return unsigned(__ballot_sync(mask, predicate)) == mask;
}

namespace cuda_host {
template <typename T>
T shuffle(unsigned mask, T value, int source_lane) {
  static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_shuffle(mask, bits, source_lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace cuda_host

// The source lane of each shuffle, as the CUDA guide defines it; a lane whose source lies outside
// its segment keeps its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int lane = cuda_host::lane();
  return cuda_host::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  int lane = cuda_host::lane(), source = lane ^ lane_mask;
  bool beyond = (source & ~(width - 1)) > (lane & ~(width - 1));
  return cuda_host::shuffle(mask, value, beyond ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = cuda_host::lane(), source = lane + int(delta);
  return cuda_host::shuffle(mask, value, (lane & (width - 1)) + int(delta) < width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = cuda_host::lane(), source = lane - int(delta);
  return cuda_host::shuffle(mask, value, (lane & (width - 1)) >= int(delta) ? source : lane);
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
inline unsigned atomicCAS(unsigned* p, unsigned expected, unsigned desired) {
  return cuda_host::compare_and_swap(p, expected, desired);
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// The runtime.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorInvalidClusterSize = 912,
};
inline const char* cudaGetErrorString(cudaError_t) { return cuda_host::last_error(); }
using cudaStream_t = void*;
constexpr unsigned cudaOccupancyDefault = 0;

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
union cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxRegistersPerMultiprocessor = 82,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

struct cudaFuncAttributes {
  int maxDynamicSharedSizeBytes, ptxVersion, binaryVersion;
};
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cuda_host_occupancy(int* blocks, const void* kernel, int threads, size_t shared_bytes);
cudaError_t cuda_host_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);
cudaError_t cuda_host_launch(const cudaLaunchConfig_t* config, const void* kernel,
                             const std::function<void()>& thread);

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t shared_bytes) {
  return cuda_host_occupancy(blocks, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel* kernel,
                                           const cudaLaunchConfig_t* config) {
  return cuda_host_clusters(clusters, reinterpret_cast<const void*>(kernel), config);
}
// Runs the whole grid before it returns.
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  return cuda_host_launch(config, reinterpret_cast<const void*>(kernel), [&] { kernel(args...); });
}
