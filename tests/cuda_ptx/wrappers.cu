// Wrappers of device.h alone, for test_wrappers.py. Blocks of one warp; waits are bounded.
#define RNNEXT_CUDA_BOUNDED 500
#include "cuda/device.h"

using namespace rnnext::cuda;

template <typename T>
__global__ void round_kernel(const float* in, T* out) {
  out[threadIdx.x] = from_float<T>(in[threadIdx.x]);
}

extern "C" __global__ void tf32_kernel(const float* in, float* out) {
  out[threadIdx.x] = __uint_as_float(to_tf32(in[threadIdx.x]));
}

// Block 1 waits for a flag that block 0 raises.
extern "C" __global__ void flag_kernel(const void*, unsigned* flag) {
  if (blockIdx.x == 1) {
    await_flag(flag, 1);
  } else if (threadIdx.x == 0) {
    store_release(flag, 1);
  }
}

template __global__ void round_kernel<__half>(const float*, __half*);
template __global__ void round_kernel<__nv_bfloat16>(const float*, __nv_bfloat16*);
