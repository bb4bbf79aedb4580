// The contract between the CUDA binding of the recurrence and its kernels: plain structs of sizes
// and device pointers, and the launchers. No torch headers on this side.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/embedding/kernel.h"
#include "cuda/recurrence/choice.h"
#include "recurrence/call.h"

namespace rnnext::cuda {

// A call on this device: all pointers are to device memory, T is the element type of every `void*`.
// The products with W_ih, and in the backward pass those with the gradients of the pre-activations,
// are GEMMs outside of the kernels: `input` is ready pre-activations or a table of them, weight_ih
// and weight_hh are not read, and of `grad_out` the kernels write `pre`, in T, and `hx`.
struct DeviceCall : Recurrence {
  RecurrenceGrad grad;
  RecurrenceGradOut grad_out;

  bool paired = false;  // 16-bit types: H is even and all rows begin at multiples of 4 bytes

  // Resident kernels only. The stationary matrix of each direction, [H, matrix_stride]: W_hh
  // forward, its transpose backward. matrix_stride is H rounded up to 64 bytes, the columns past H
  // are zero, the pointers multiples of 16 bytes.
  const void* matrix[kDirections] = {nullptr, nullptr};
  int64_t matrix_stride = 0;
  // Grid path only, zeroed by the caller: flags [groups, blocks], and the vectors that travel
  // through L2, [2, groups, rows, vector_stride bytes] (geometry.exchange_bytes and flag_count).
  unsigned* flags = nullptr;
  unsigned char* exchange = nullptr;
};

// A step of the step path.
struct Step {
  int64_t number = 0;             // in the order of the pass
  const void* product = nullptr;  // [D,B,H] M v of the step before; null: zeros
  void* v = nullptr;              // [D,B,H] in and out
};

// The resident kernels: one launch runs every step. `geometry` comes from choose().
cudaError_t launch_resident(const DeviceCall& call, const Geometry& geometry, Compute compute,
                            bool backward, cudaStream_t stream);

// The kernel that launch_resident launches; null for Path::step.
using Kernel = void (*)(DeviceCall, Geometry);
Kernel resident_kernel(Path path, Compute compute, Nonlinearity nonlinearity, bool backward);

// The step path's cell: one launch a step.
cudaError_t launch_step(const DeviceCall& call, const Step& step, Compute compute, bool backward,
                        cudaStream_t stream);

// previous[row, d*H + u] = the state before row's step: the neighbouring output, or hx, or zero.
cudaError_t launch_previous_state(const DeviceCall& call, void* previous, Compute compute,
                                  cudaStream_t stream);

// rows[i] = index i, or 0 where it is out of range, which is reported. count > 0.
cudaError_t launch_table_rows(const EmbeddingIndices& indices, int64_t* rows, cudaStream_t stream);

// How many clusters of 2, 4, 8, 16 blocks with that shared memory fit on the current device at
// once.
void count_clusters(int shared_bytes, int (&clusters)[4]);

// Writes n host values to device memory as kernel arguments, so that a captured graph holds them.
cudaError_t launch_write_constants(int64_t* destination, const int64_t* values, int64_t n,
                                   cudaStream_t stream);

}  // namespace rnnext::cuda
