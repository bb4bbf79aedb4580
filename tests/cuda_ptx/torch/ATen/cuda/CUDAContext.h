// Twin of torch's header, as far as csrc/cuda/binding uses it.
#pragma once

#include <cuda_runtime.h>

namespace at::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace at::cuda
