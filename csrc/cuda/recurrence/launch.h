// The contract between the CUDA binding of the recurrence and its kernels: plain structs of sizes
// and device pointers, and the launchers. No torch headers on this side.
#pragma once

#include <cuda_runtime.h>

#include "cuda/indices.h"
#include "cuda/recurrence/choice.h"
#include "recurrence/call.h"

namespace rnnext::cuda {

// A call on this device: all pointers are to device memory, T is the element type of every `void*`.
// The products with W_ih, and in the backward pass those with the gradients of the pre-activations,
// are GEMMs outside of the kernels: `input` is ready pre-activations or a table of them, weight_ih
// and weight_hh are not read, and of `grad_out` the kernels write `pre`, in T, and `hx`. In the
// backward pass `output` is what f' is computed from: of rate, what the forward pass saved.
//
// With resets or a leak, StateKernel::prologue comes first, and `hx` is what it wrote. alpha[0] is
// the whole of [D*H].
struct DeviceCall : Recurrence {
  RecurrenceGrad grad;
  RecurrenceGradOut grad_out;

  bool paired = false;  // H is even: two 16-bit elements of what is written fill 4 aligned bytes
  // Elements between the directions in the rows that a step reads: H, or, where resident kernels
  // read 16-bit types, H rounded up to even. Their words of 4 bytes are all aligned.
  int64_t source_step = 0;

  const int* marks = nullptr;    // [T,B] reset, in words that cp.async can copy
  void* reset_output = nullptr;  // [D,B,H] what enters W_hh after a reset
  // Of the backward pass of a leak. What goes past W_hh to the state before a step: [D,B,H] in
  // Accumulate<T>, zeroed by the caller. And the gradient of what is mixed, [N, D*H], or null: not
  // wanted. (Of it, and of `saved`, rows past a sequence's end are left alone.)
  void *carry = nullptr, *mixed = nullptr;

  // Resident kernels only. The stationary matrix of each direction, [H, matrix_stride]: W_hh
  // forward, its transpose backward. matrix_stride is H rounded up to 64 bytes, the columns past H
  // are zero, the pointers multiples of 16 bytes.
  const void* matrix[kDirections] = {nullptr, nullptr};
  int64_t matrix_stride = 0;
  // Grid path only, zeroed by the caller: flags [groups, blocks], and the vectors that travel
  // through L2, [2, groups, rows, ..] (geometry.exchange_bytes and flag_count).
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

using Kernel = void (*)(DeviceCall, Geometry);
// The cells that resident kernels are compiled for. tanh and relu alone have kernels of their own.
// All other nonlinearities, leaks, and calls with resets share theirs, which branch at run time.
enum class CellKind { tanh, relu, any };
// Each micro-kernel (micro_kernel.cuh) has a kernel_<type>.cu, so that they compile side by side.
template <class MicroKernel>
Kernel kernel_of(const Geometry& geometry, CellKind cell, bool backward);

// The step path's cell: one launch a step.
cudaError_t launch_step(const DeviceCall& call, const Step& step, Compute compute, bool backward,
                        cudaStream_t stream);

// The kernels around the steps. Each writes `to`, [D,B,H] unless it says otherwise, and some read
// `from`, of the same shape.
enum class StateKernel {
  // Writes the operands of W_hh in the first step of each sequence: the output of hx. Unless they
  // are null, it also writes call.reset_output, which W_hh multiplies after a reset, and call.h_n,
  // the states before the first steps.
  prologue,
  // The sums over resets of the gradients of the pre-activations.
  reset_sums,
  // The gradient of reset_state, from those sums' product with W_hh. A leak's reads `mixed`.
  reset_gradient,
  // [N, D*H] the state before each row's step: of `from`, or in hx or reset_output (null: zeros).
  previous_state,
};
cudaError_t launch_state_kernel(StateKernel what, const DeviceCall& call, const void* from,
                                void* to, Compute compute, cudaStream_t stream);

// rows[i] = index i, or 0 where it is out of range, which the kernel reports. count > 0.
cudaError_t launch_table_rows(const TableIndices& indices, int64_t* rows, cudaStream_t stream);

// Describes the current device for choose(). Its capability is at most that of the code it runs,
// which is older where only PTX, or code of the same major version, was built.
cudaError_t describe(Device* device);

// Writes n host values to device memory as kernel arguments, so that a captured graph holds them.
cudaError_t launch_write_constants(int64_t* destination, const int64_t* values, int64_t n,
                                   cudaStream_t stream);

}  // namespace rnnext::cuda
