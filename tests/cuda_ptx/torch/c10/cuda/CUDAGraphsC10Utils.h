// Twin of torch's header: no stream is captured.
#pragma once

#include <cuda_runtime.h>

namespace c10::cuda {

struct CUDAStreamCaptureModeGuard {
  explicit CUDAStreamCaptureModeGuard(cudaStreamCaptureMode) {}
};

}  // namespace c10::cuda
