// What a binding does about the error of a launch.
#pragma once

#include <c10/cuda/CUDAException.h>

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

}  // namespace rnnext::cuda
