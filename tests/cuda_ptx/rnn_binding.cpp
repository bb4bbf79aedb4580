// csrc/cuda/binding/recurrence.cpp and call.cpp over the stand-in of the runtime: the ops, under
// the dispatch key PrivateUse1 so that those of a real CUDA build stay as they are, take tensors of
// the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cuda/binding/call.cpp"
#include "cuda/binding/index_check.h"

#define CUDA PrivateUse1
#include "cuda/binding/recurrence.cpp"
#undef CUDA

namespace rnnext::cuda {

EmbeddingIndices checked_indices(const at::Tensor& indices, int64_t rows) {
  return {indices.const_data_ptr(), indices.scalar_type() == at::kLong, indices.numel(), rows,
          nullptr};
}

}  // namespace rnnext::cuda
