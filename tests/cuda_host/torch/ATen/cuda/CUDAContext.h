// Twin of torch's header, as far as csrc/cuda/binding/recurrence.cpp uses it: the device of the host layer.
#pragma once

#include <cuda_runtime.h>

struct cudaDeviceProp {
  int major, minor, multiProcessorCount, regsPerMultiprocessor;
  size_t sharedMemPerBlockOptin;
};

namespace at::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

inline const cudaDeviceProp* getDeviceProperties(int) {
  static cudaDeviceProp device{};
  int shared = 0;
  cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, 0);
  cudaDeviceGetAttribute(&device.multiProcessorCount, cudaDevAttrMultiProcessorCount, 0);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  device.sharedMemPerBlockOptin = static_cast<size_t>(shared);
  device.regsPerMultiprocessor = 65536;
  return &device;
}

}  // namespace at::cuda
