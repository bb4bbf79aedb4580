// What comes before the gradient's reduction: keys to be sorted.
#include "cuda/embedding/common.cuh"
#include "cuda/recurrence/elements.cuh"

namespace rnnext::cuda {
namespace {

__global__ void __launch_bounds__(kEmbeddingThreads) make_keys(EmbeddingKeys p) {
  const int64_t i = element();
  if (i >= p.indices.count) return;
  const int64_t index = checked_index(p.indices, i);
  p.keys[i] = int32_t(index < 0 || index == p.padding_idx ? p.indices.rows : index);
  p.positions[i] = int32_t(i);
}

}  // namespace

cudaError_t launch_embedding_keys(const EmbeddingKeys& p, cudaStream_t stream) {
  return launch(make_keys, elements(p.indices.count), stream, p);
}

}  // namespace rnnext::cuda
