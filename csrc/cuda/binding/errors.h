// How bindings raise errors of launches, and of indices out of range, reported by IndexErrorRecord.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>

#include "cuda/indices.h"

#ifndef RNNEXT_CUDA_ARCHS
#define RNNEXT_CUDA_ARCHS "unknown architectures"
#endif

namespace rnnext::cuda {

inline void check_launch(cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    TORCH_CHECK(false,
                "rnnext was built for CUDA architectures " RNNEXT_CUDA_ARCHS
                ", and has no code for this device, of ",
                major, ".", minor, ": build it again with TORCH_CUDA_ARCH_LIST=", major, ".",
                minor);
  }
  C10_CUDA_CHECK(error);
}

// The device's record. Raises IndexError if an earlier call on the device met an index out of
// range; does not wait for calls that still run.
IndexErrorRecord* index_errors(c10::DeviceIndex device);

// Indices as kernels take them, from contiguous int32 or int64 on CUDA. Raises as index_errors.
TableIndices checked_indices(const at::Tensor& indices, int64_t rows);

}  // namespace rnnext::cuda
