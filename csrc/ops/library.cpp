// The library's ops: their schemas, and the ops without kernels of their own on a GPU.
#include <torch/library.h>

#include "ops/ensemble.h"
#include "ops/signatures.h"

namespace rnnext {

// rnnext/ops.py says what each argument means.
TORCH_LIBRARY(rnnext, m) {
  // Arguments may have any strides, so that torch's compiler need not copy them.
  const auto define = [&](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::flexible_layout});
  };
  // A list's items as in an op's schema, each after a comma.
#define RNNEXT_ITEM(type, name, ...) +", " + TypeOf<type>::schema + " " #name
#define RNNEXT_GRADIENT(type, name, ...) +", " + TypeOf<type>::schema + " grad_" #name
  const std::string none, call = none RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_ITEM),
                          results = none RNNEXT_BACKWARD_INPUTS(RNNEXT_ITEM),
                          gradients = none RNNEXT_RECURRENCE_GRADIENTS(RNNEXT_GRADIENT),
                          rnn = none RNNEXT_RNN_ARGUMENTS(RNNEXT_ITEM),
                          cell = none RNNEXT_CELL_ARGUMENTS(RNNEXT_ITEM);
#undef RNNEXT_GRADIENT
#undef RNNEXT_ITEM
  const auto list = [](const std::string& items) { return "(" + items.substr(2) + ")"; };
  const std::string forward =
      list(call + ", bool save") + " -> (Tensor output, Tensor h_n, Tensor[] saved)";
  define("recurrence" + forward);
  define("recurrence_stack" + forward);
  define("recurrence_ensemble" + forward);
  const std::string mask = std::to_string(std::tuple_size_v<Recurrences::Mask>);
  const std::string backward =
      list(results + call + ", bool[" + mask + "] output_mask") + " -> " + list(gradients);
  define("recurrence_backward" + backward);
  define("recurrence_ensemble_backward" + backward);
  define("occurring(Tensor tokens, int num_rows, int most) -> (Tensor rows, Tensor index)");
  define("noise(Tensor keys, SymInt T, SymInt B, int D, SymInt H) -> Tensor");
  define(
      "dropout_mask(Tensor key, SymInt T, SymInt B, SymInt H, float p, ScalarType dtype) -> "
      "Tensor");
  define(
      "embedding(Tensor weight, Tensor indices, int padding_idx=-1, "
      "bool scale_grad_by_freq=False, bool sparse=False) -> Tensor");
  define(
      "embedding_backward(Tensor grad, Tensor indices, SymInt num_weights, int padding_idx, "
      "bool scale_grad_by_freq) -> Tensor");
  define(
      "embedding_sparse_backward(Tensor grad, Tensor indices, SymInt num_weights, "
      "int padding_idx, bool scale_grad_by_freq) -> (Tensor rows, Tensor values)");
  define("rnn" + list(rnn) + " -> (Tensor output, Tensor[] states)");
  define("rnn_cell" + list(cell) + " -> Tensor[]");
}

// Ensembles run member by member on a GPU, and where vmap maps one. (The CPU has kernels of its
// own: cpu/binding/ensemble.cpp.)
static void implement_ensemble(torch::Library& m) {
  m.impl("recurrence_ensemble", Recurrences::forward<ensemble_in_turn>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<ensemble_backward_in_turn>);
}
TORCH_LIBRARY_IMPL(rnnext, CUDA, m) { implement_ensemble(m); }
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) { implement_ensemble(m); }
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement_ensemble(m); }

#ifndef RNNEXT_CUDA_ARCHS
// The error of ops on a GPU if the CUDA half was not built.
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
#endif

}  // namespace rnnext
