// What comes before the gradient's reduction: keys to be sorted.
#include "cuda/embedding/common.cuh"
#include "cuda/recurrence/elements.cuh"

namespace rnnext::cuda {
namespace {

__global__ void __launch_bounds__(kEmbeddingThreads)
    make_keys(const EmbeddingIndices indices, int64_t padding_idx, int32_t* keys,
              int32_t* positions) {
  const int64_t i = element();
  if (i >= indices.count) return;
  const int64_t index = checked_index(indices, i);
  keys[i] = int32_t(index < 0 || index == padding_idx ? indices.rows : index);
  positions[i] = int32_t(i);
}

}  // namespace

cudaError_t launch_embedding_keys(const EmbeddingIndices& indices, int64_t padding_idx,
                                  int32_t* keys, int32_t* positions, cudaStream_t stream) {
  return launch(make_keys, elements(indices.count), stream, indices, padding_idx, keys, positions);
}

}  // namespace rnnext::cuda
