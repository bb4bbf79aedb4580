// Twin of torch's header: an error says what a kernel did wrong.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#define C10_CUDA_CHECK(call)                                                    \
  do {                                                                          \
    const cudaError_t code_of_call = (call);                                    \
    TORCH_CHECK(code_of_call == cudaSuccess, cudaGetErrorString(code_of_call)); \
  } while (false)
