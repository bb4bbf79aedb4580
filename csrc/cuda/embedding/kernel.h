// The contract between the CUDA binding of the embedding and its kernels. No torch headers on this
// side; pointers are device pointers, arrays contiguous unless a stride says otherwise.
#pragma once

#include <cuda_runtime.h>

#include "cuda/indices.h"
#include "recurrence/call.h"

namespace rnnext::cuda {

// output[i] = weight[indices[i]]; zeros where the index is out of range.
struct EmbeddingGather {
  TableIndices indices;
  const void* weight;  // [V, row_bytes]
  int64_t weight_stride_bytes;
  int64_t row_bytes;
  void* output;  // [count, row_bytes]
};
cudaError_t launch_embedding_gather(const EmbeddingGather& params, cudaStream_t stream);

// keys[i] = indices[i], or V where it is padding_idx (-1: none) or out of range; positions[i] = i.
// Sorting the pairs by key (stably) prepares the reduction; count and V are at most 2^31 - 1.
cudaError_t launch_embedding_keys(const TableIndices& indices, int64_t padding_idx, int32_t* keys,
                                  int32_t* positions, cudaStream_t stream);

// output[row] = the sum of grad[positions[p]] over the run of keys[p] == row, in the order of p;
// divided by the length of the run if `by_frequency`. Rows without a run are not touched. The order
// of summation depends on `count` and the keys alone.
struct EmbeddingReduce {
  DType dtype;
  const int32_t* keys;       // [count] sorted; rows or more: no gradient
  const int32_t* positions;  // [count]
  const int32_t* slots;      // [count] or null: run p goes to output row slots[p], not to its key
  int64_t count, rows;
  int64_t columns;  // D
  bool by_frequency;
  const void* grad;  // [count, D]
  void* output;      // [V, D], or with slots [U, D]
  void* partial;     // scratch of embedding_partial_bytes()
};
int64_t embedding_partial_bytes(int64_t count, int64_t columns, DType dtype);
cudaError_t launch_embedding_reduce(const EmbeddingReduce& params, cudaStream_t stream);

}  // namespace rnnext::cuda
