// What the ops say on a GPU where the CUDA half was not built.
#ifndef RNNEXT_CUDA_ARCHS
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace rnnext {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      " got tensors on a GPU, but this build of rnnext has no CUDA kernels. Run "
      "`RNNEXT_CUDA=1 pip install .` in its sources: it builds them, or says what is missing (a "
      "CUDA build of torch, nvcc). Or move the model and its inputs to the CPU.");
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  for (const char* const name : {"recurrence", "recurrence_backward", "embedding",
                                 "embedding_backward", "embedding_sparse_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace rnnext
#endif
