// Each wrapper of device.h alone, for test_wrappers.py: kernels that do what the wrapper's comment
// says and nothing else. One warp a block. Their waits are bounded, as those of cuda-check's build
// are.
#define RNNEXT_CUDA_BOUNDED 500
#include "cuda/device.h"

using namespace rnnext::cuda;

// The divisor comes behind the numbers.
extern "C" __global__ void divide_kernel(const int64_t* x, int64_t* out) {
  out[threadIdx.x] = divide(x[threadIdx.x], x[32]);
}

template <typename T>
__global__ void round_kernel(const float* in, T* out) {
  out[threadIdx.x] = from_float<T>(in[threadIdx.x]);
}

// out[i] = in[i], by copies of so many bytes.
template <int Bytes>
__global__ void copy_kernel(const unsigned char* in, unsigned char* out) {
  unsigned char* mine = shared_memory() + threadIdx.x * Bytes;
  copy_async<Bytes>(mine, in + threadIdx.x * Bytes);
  copy_async_commit();
  copy_async_wait<0>();
  for (int i = 0; i < Bytes; ++i) out[threadIdx.x * Bytes + i] = mine[i];
}

// Two copies, of which the first must be there after a wait for all but one.
extern "C" __global__ void two_copies_kernel(const int* in, int* out) {
  int* mine = reinterpret_cast<int*>(shared_memory()) + 2 * threadIdx.x;
  copy_async<4>(mine, in + threadIdx.x);
  copy_async_commit();
  copy_async<4>(mine + 1, in + 32 + threadIdx.x);
  copy_async_commit();
  copy_async_wait<1>();
  out[threadIdx.x] = mine[0];
  copy_async_wait<0>();
  out[32 + threadIdx.x] = mine[1];
}

// d [16, 8] = a [16, 16] b [16, 8] (TF32: a [16, 8], b [8, 8]), row-major, from 32-bit words of a's
// rows and, behind them, b's columns, as the manual hands them to lanes.
template <typename T>
__global__ void mma_kernel(const uint32_t* a, float* d) {
  constexpr int Words = 8;
  const uint32_t* b = a + 16 * Words;
  const int g = threadIdx.x / 4, q = threadIdx.x % 4, k = Words / 2;
  const uint4 of_a = {a[g * Words + q], a[(g + 8) * Words + q], a[g * Words + q + k],
                      a[(g + 8) * Words + q + k]};
  const uint2 of_b = {b[g * Words + q], b[g * Words + q + k]};
  float sums[4] = {1, 1, 1, 1};
  mma<T>(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = sums[i];
}

extern "C" __global__ void tf32_kernel(const float* in, float* out) {
  out[threadIdx.x] = __uint_as_float(to_tf32(in[threadIdx.x]));
}

// Each block reads what its neighbour in the cluster of 4 wrote, after a barrier.
extern "C" __global__ void neighbours_kernel(const int* in, int* out) {
  int* here = reinterpret_cast<int*>(shared_memory());
  cluster_sync();
  peer_shared(here, (blockIdx.x + 1) % 4)[threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x];
  cluster_sync();
  out[blockIdx.x * 32 + threadIdx.x] = here[threadIdx.x];
  cluster_sync();
}

// Block 0 hands 32 numbers to block 1 by a flag. What it passes on lies behind out.
extern "C" __global__ void flag_kernel(const int* in, int* out) {
  int* passed = out + 32;
  unsigned* flag = reinterpret_cast<unsigned*>(out + 64);
  if (blockIdx.x == 0) {
    passed[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) store_release(flag, 1);
  } else {
    await_flag(flag, 1);
    out[threadIdx.x] = passed[threadIdx.x];
  }
}

template __global__ void round_kernel<__half>(const float*, __half*);
template __global__ void round_kernel<__nv_bfloat16>(const float*, __nv_bfloat16*);
template __global__ void copy_kernel<4>(const unsigned char*, unsigned char*);
template __global__ void copy_kernel<8>(const unsigned char*, unsigned char*);
template __global__ void copy_kernel<16>(const unsigned char*, unsigned char*);
template __global__ void mma_kernel<__half>(const uint32_t*, float*);
template __global__ void mma_kernel<__nv_bfloat16>(const uint32_t*, float*);
template __global__ void mma_kernel<Tf32>(const uint32_t*, float*);
