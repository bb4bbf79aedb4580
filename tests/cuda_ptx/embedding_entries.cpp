// Entry points of the embedding's launchers for tests/cuda/test_embedding.py.
#include "cuda/embedding/kernel.h"

using namespace rnnext;
using namespace rnnext::cuda;

namespace {
EmbeddingIndices make_indices(const void* data, int64_t is_int64, int64_t count, int64_t rows,
                              void* error) {
  return {data, is_int64 != 0, count, rows, static_cast<IndexErrorRecord*>(error)};
}
}  // namespace

extern "C" {

cudaError_t embedding_gather(const void* indices, int64_t is_int64, int64_t count, int64_t rows,
                             const void* weight, int64_t stride_bytes, int64_t row_bytes,
                             void* output, void* error) {
  return launch_embedding_gather({make_indices(indices, is_int64, count, rows, error), weight,
                                  stride_bytes, row_bytes, output},
                                 nullptr);
}

cudaError_t embedding_keys(const void* indices, int64_t is_int64, int64_t count, int64_t rows,
                           int64_t padding_idx, int32_t* keys, int32_t* positions, void* error) {
  return launch_embedding_keys(
      {make_indices(indices, is_int64, count, rows, error), padding_idx, keys, positions}, nullptr);
}

cudaError_t embedding_gaps(const int32_t* keys, int64_t count, int64_t rows, int64_t row_bytes,
                           void* output) {
  return launch_embedding_gaps({keys, count, rows, row_bytes, output}, nullptr);
}

cudaError_t embedding_heads(const int32_t* keys, int64_t count, int64_t rows, int32_t* heads) {
  return launch_embedding_heads(keys, count, rows, heads, nullptr);
}

cudaError_t embedding_rows(const int32_t* keys, const int32_t* slots, int64_t count, int64_t rows,
                           int64_t* unique) {
  return launch_embedding_rows(keys, slots, count, rows, unique, nullptr);
}

// The size of the scratch is an answer, so it comes through memory of the caller's.
cudaError_t embedding_partial_size(int64_t count, int64_t columns, int64_t dtype, int64_t* bytes) {
  *bytes = embedding_partial_bytes(count, columns, DType(dtype));
  return cudaSuccess;
}

cudaError_t embedding_reduce(int64_t dtype, const int32_t* keys, const int32_t* positions,
                             const int32_t* slots, int64_t count, int64_t rows, int64_t columns,
                             int64_t by_frequency, const void* grad, void* output, void* partial) {
  return launch_embedding_reduce({DType(dtype), keys, positions, slots, count, rows, columns,
                                  by_frequency != 0, grad, output, partial},
                                 nullptr);
}
}
