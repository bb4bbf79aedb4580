// The embedding's ops under vmap. Tables lie one below the other, and each call's indices are moved
// to its own.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/signatures.h"
#include "ops/vmap.h"

namespace rnnext {
namespace {

template <class Level>
Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                 bool scale_grad_by_freq, bool sparse) {
  const Level level(weight, indices);
  const auto [table, of_table] = level.take(weight);
  const auto [rows, of_rows] = level.take(indices);
  if (!of_table) {
    const Tensor result =
        call_op<EmbeddingOp>(table, rows, padding_idx, scale_grad_by_freq, sparse);
    return of_rows ? level.give(result, *of_rows) : result;
  }
  const c10::SymInt calls = table.sym_size(*of_table);
  const Tensor tables = table.movedim(*of_table, 0), each = at_place(rows, of_rows, calls, 0);
  // The gradient is that of a part of a tensor, so it is not sparse.
  Tensor result =
      call_op<EmbeddingOp>(tables.flatten(0, 1), shifted(each, calls, 0, tables.sym_size(1)),
                           /*padding_idx=*/-1, scale_grad_by_freq, /*sparse=*/false);
  if (padding_idx >= 0)
    result = at::where(each.eq(padding_idx).unsqueeze(-1), result.detach(), result);
  return level.give(result, 0);
}

template <class Level>
Tensor embedding_backward(const Tensor& grad, const Tensor& indices, c10::SymInt num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  const Level level(grad, indices);
  const auto [sums, of_sums] = level.take(grad);
  const auto [rows, of_rows] = level.take(indices);
  const auto call = [&](const Tensor& of, const Tensor& to, const c10::SymInt& tables,
                        int64_t padding) {
    return call_op<EmbeddingBackwardOp>(of, to, num_weights * tables, padding, scale_grad_by_freq);
  };
  if (!of_rows) {
    if (!of_sums) return call(sums, rows, 1, padding_idx);
    // Rows as wide as all of them: the indices are followed once.
    const c10::SymInt calls = sums.sym_size(*of_sums);
    const Tensor wide = at_place(sums, of_sums, calls, sums.dim() - 2).flatten(-2);
    const Tensor result = call(wide, rows, 1, padding_idx);
    return level.give(result.unflatten_symint(1, {calls, grad.sym_size(-1)}), 1);
  }
  const c10::SymInt calls = rows.sym_size(*of_rows);
  const Tensor own = shifted(rows.movedim(*of_rows, 0), calls, 0, num_weights);
  Tensor result = call(at_place(sums, of_sums, calls, 0), own, calls, /*padding=*/-1)
                      .unflatten_symint(0, {calls, num_weights});
  if (padding_idx >= 0) result = result.index_fill(1, at::full({1}, padding_idx, own.options()), 0);
  return level.give(result, 0);
}

template <class Level>
std::tuple<Tensor, Tensor> embedding_sparse_backward(const Tensor& grad, const Tensor& indices,
                                                     c10::SymInt num_weights, int64_t padding_idx,
                                                     bool scale_grad_by_freq) {
  const Level level(grad, indices);
  TORCH_CHECK_NOT_IMPLEMENTED(!level.take(grad).second && !level.take(indices).second,
                              "vmap cannot map a sparse embedding gradient, which has as many rows "
                              "as occur: use sparse=False");
  return call_op<EmbeddingSparseBackwardOp>(grad, indices, num_weights, padding_idx,
                                            scale_grad_by_freq);
}

template <class Level>
void implement(torch::Library& m) {
  m.impl("embedding", embedding<Level>);
  m.impl("embedding_backward", embedding_backward<Level>);
  m.impl("embedding_sparse_backward", embedding_sparse_backward<Level>);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatched, m) { implement<FuncTorch>(m); }
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement<GradsBatched>(m); }

}  // namespace rnnext
