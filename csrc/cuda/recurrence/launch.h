// The contract between the CUDA binding of the recurrence and its kernels: plain structs of sizes
// and device pointers, and the launchers. No torch headers on this side.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/embedding/kernel.h"
#include "cuda/recurrence/choice.h"

namespace rnnext::cuda {

enum class CellKind { tanh, relu };

// One layer, D directions, one pass. T is the element type of every `void*` unless a line says
// otherwise. A "row" is one step of one sequence; N = T*B rows, or packed, the sum of the batch
// sizes. Row (t, b) is number t*B + b, or packed, step_row[t] + b.
struct RecurrenceParams {
  int64_t T, B, H;
  int D;
  bool reverse[2];
  CellKind cell;
  bool paired;              // 16-bit types: H is even and all rows begin at multiples of 4 bytes
  const int64_t* step_row;  // [T+1] device: the first row of step t; null: not packed
  const int64_t* lengths;   // [B] device: steps of each sequence, 0..T, packed too; null: all T

  // Stationary matrix of each direction, [H, weight_stride]: W_hh forward, its transpose backward.
  // weight_stride is H rounded up to 64 bytes, the columns past H are zero, the pointers multiples
  // of 16 bytes. (The step path has its GEMM outside and ignores them.)
  const void* weight[2];
  int64_t weight_stride;

  // Forward: the row that the accumulator starts from, and the state before the first step.
  // Row (t, b) of `input` begins at t*input_stride_t + b*input_stride_b; packed, at
  // row*input_stride_b; with an index, at index[row]*input_stride_b. It has D*H columns.
  const void* input;
  int64_t input_stride_t, input_stride_b;
  const int64_t* index;    // [N], within the table, or null
  const void* bias_ih[2];  // [H] or null
  const void* bias_hh[2];  // [H] or null
  const void* h0;          // [D,B,H] or null: zeros
  void* h_n;               // [D,B,H] written by the forward pass

  void* output;             // [N, D*H] written by the forward pass, read by the backward pass
  const void* grad_output;  // [N, D*H] or null: zeros
  const void* grad_h_n;     // [D,B,H] or null: zeros
  void* grad_pre;           // [N, D*H] gradient of the pre-activations, written
  void* grad_h0;            // [D,B,H] written, or null: not wanted

  // Grid path only, zeroed by the caller: flags [groups, blocks], and the vectors that travel
  // through L2, [2, groups, rows, vector_stride bytes] (geometry.exchange_bytes and flag_count).
  unsigned* flags;
  unsigned char* exchange;
};

// What the step path's cell kernels work on beside RecurrenceParams: step s of the pass, for each
// direction at its own t.
struct StepParams {
  int64_t step;          // 0..T-1 in the order of the pass
  const void* product;   // forward: [D, B, H] W_hh h_{t-1}
  void* state;           // [D,B,H] forward: h, in and out. Backward: dh, in; 0 or kept, out
  void* grad_step;       // backward: [D,B,H] dG of this step, 0 where a sequence is inactive
  int64_t first_row[2];  // first row of this direction's step t
  int64_t batch[2];      // sequences that have a row at step t
};

// The resident kernels: one launch runs every step. `geometry` comes from choose().
cudaError_t launch_resident(const RecurrenceParams& params, const Geometry& geometry,
                            Compute compute, bool backward, cudaStream_t stream);

// The kernel that launch_resident launches; null for Path::step.
using Kernel = void (*)(RecurrenceParams, Geometry);
Kernel resident_kernel(Path path, Compute compute, CellKind cell, bool backward);

// The step path's cell: one launch a step.
cudaError_t launch_step(const RecurrenceParams& params, const StepParams& step, Compute compute,
                        bool backward, cudaStream_t stream);

// previous[row, d*H + u] = the state before row's step: the neighbouring output, or h0, or zero.
cudaError_t launch_previous_state(const RecurrenceParams& params, void* previous, Compute compute,
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
