// The embedding's ops under vmap and autograd: gather and scatter-add are each other's backward.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "ops/autograd.h"
#include "ops/signatures.h"
#include "ops/vmap.h"

namespace rnnext {
namespace {

struct EmbeddingFunction {
  static constexpr const char* name = "EmbeddingBackward";
  static constexpr bool is_traceable = false;

  static void save(AutogradContext& ctx, const Tensor& weight, int64_t padding_idx,
                   bool scale_grad_by_freq, bool sparse) {
    // The size, not the table, which may change in place before the backward pass, as in torch.
    ctx.saved_data["num_weights"] = weight.sym_size(0);
    ctx.saved_data["padding_idx"] = padding_idx;
    ctx.saved_data["scale_grad_by_freq"] = scale_grad_by_freq;
    ctx.saved_data["sparse"] = sparse;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    if (!grad[0].defined()) return {Tensor()};
    const Tensor indices = ctx->get_saved_variables()[0];
    const c10::SymInt num_weights = ctx->saved_data["num_weights"].toSymInt();
    const int64_t padding_idx = ctx->saved_data["padding_idx"].toInt();
    const bool scale = ctx->saved_data["scale_grad_by_freq"].toBool();
    if (!ctx->saved_data["sparse"].toBool())
      return {call_op<EmbeddingBackwardOp>(grad[0], indices, num_weights, padding_idx, scale)};
    TORCH_CHECK_NOT_IMPLEMENTED(!is_recorded(grad[0]),
                                "a sparse embedding gradient has no second derivative: use "
                                "sparse=False with create_graph=True");
    TORCH_CHECK_NOT_IMPLEMENTED(!is_dual(grad[0]),
                                "a sparse embedding gradient has no forward-mode derivative: use "
                                "sparse=False");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [rows, values] =
        call_op<EmbeddingSparseBackwardOp>(grad[0], indices, num_weights, padding_idx, scale);
    // A strided row of indices: torch's AccumulateGrad then clones the gradient, which stays marked
    // as coalesced. With a contiguous row it would rebuild the gradient without the mark.
    Tensor strided = rows.unsqueeze(0);
    if (rows.sym_stride(0) == 1)
      strided =
          at::empty_strided_symint({1, rows.sym_size(0)}, {1, 2}, rows.options()).copy_(strided);
    return {at::_sparse_coo_tensor_unsafe_symint(strided, values, {num_weights, values.sym_size(1)},
                                                 values.scalar_type(), at::kSparse, values.device(),
                                                 std::nullopt, /*is_coalesced=*/true)};
  }
};

struct EmbeddingBackwardFunction {
  static constexpr const char* name = "EmbeddingBackwardBackward";
  static constexpr bool is_traceable = false;

  static void save(AutogradContext& ctx, const Tensor&, const c10::SymInt&, int64_t padding_idx,
                   bool scale_grad_by_freq) {
    ctx.saved_data["padding_idx"] = padding_idx;
    ctx.saved_data["scale_grad_by_freq"] = scale_grad_by_freq;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    if (!grad[0].defined()) return {Tensor()};
    const Tensor indices = ctx->get_saved_variables()[0];
    const int64_t padding_idx = ctx->saved_data["padding_idx"].toInt();
    Tensor result = call_op<EmbeddingOp>(grad[0], indices, -1, false, false);
    if (padding_idx >= 0) result = result.masked_fill((indices == padding_idx).unsqueeze(-1), 0);
    if (ctx->saved_data["scale_grad_by_freq"].toBool()) {
      const Tensor flat = indices.flatten();
      const auto options = flat.options().dtype(at::kDouble);  // 16 bits do not count to 257
      const Tensor count = at::zeros_symint({grad[0].sym_size(0)}, options)
                               .index_add(0, flat, at::ones_like(flat, options));
      const Tensor scale = count.index_select(0, flat).reciprocal().to(result.scalar_type());
      result = result * scale.view_as(indices).unsqueeze(-1);
    }
    return {result};
  }
};

// An op that is linear in its first argument: its tangent is the op of the argument's tangent. It
// is recorded as Function, which saves what its backward pass needs besides the indices.
template <class Op, class Function, class... Rest>
Tensor linear(const Tensor& of, const Tensor& indices, Rest... rest) {
  const Tensor plain = primal(of);
  const bool recorded = is_recorded(of);
  const auto node = recorded ? node_of<Function>({plain}) : nullptr;
  Tensor result = below_autograd([&] { return call_op<Op>(plain, indices, rest...); });
  if (recorded) {
    Function::save(node->ctx_, plain, rest...);
    record(node, {result}, {indices});
  }
  if (is_dual(of)) set_tangent(result, call_op<Op>(tangent(of), indices, rest...));
  return result;
}

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                 bool scale_grad_by_freq, bool sparse) {
  TORCH_CHECK(!(is_recorded(weight) && weight.is_complex()),
              "embedding does not support automatic differentiation for outputs with complex "
              "dtype.");
  return linear<EmbeddingOp, EmbeddingFunction>(weight, indices, padding_idx, scale_grad_by_freq,
                                                sparse);
}

// Under vmap. Mapped tables become one table, and each call's indices are shifted to its own part.
template <class Level>
Tensor mapped_embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                        bool scale_grad_by_freq, bool sparse) {
  const Level level({weight, indices});
  const auto [table, of_table] = level.take(weight);
  const auto [rows, of_rows] = level.take(indices);
  if (!of_table) {
    const Tensor result =
        call_op<EmbeddingOp>(table, rows, padding_idx, scale_grad_by_freq, sparse);
    return of_rows ? level.give(result, *of_rows) : result;
  }
  const c10::SymInt calls = table.sym_size(*of_table);
  const Tensor tables = table.movedim(*of_table, 0), each = at_place(rows, of_rows, calls, 0);
  // This is the gradient of a part of a tensor, so it is not sparse.
  Tensor result =
      call_op<EmbeddingOp>(tables.flatten(0, 1), shifted(each, calls, 0, tables.sym_size(1)),
                           /*padding_idx=*/-1, scale_grad_by_freq, /*sparse=*/false);
  if (padding_idx >= 0) {
    // Taken as a table's only row, its padding row, the result keeps tangents and has no gradient.
    const Tensor padding = call_op<EmbeddingOp>(result.flatten().unsqueeze(0),
                                                at::zeros({1}, each.options()), 0, false, false);
    result = at::where(each.eq(padding_idx).unsqueeze(-1), padding.view_as(result), result);
  }
  return level.give(result, 0);
}

template <class Level>
Tensor mapped_backward(const Tensor& grad, const Tensor& indices, c10::SymInt num_weights,
                       int64_t padding_idx, bool scale_grad_by_freq) {
  const Level level({grad, indices});
  const auto [sums, of_sums] = level.take(grad);
  const auto [rows, of_rows] = level.take(indices);
  if (!of_sums && !of_rows)
    return call_op<EmbeddingBackwardOp>(sums, rows, num_weights, padding_idx, scale_grad_by_freq);
  const c10::SymInt calls = of_rows ? rows.sym_size(*of_rows) : sums.sym_size(*of_sums);
  const Tensor own = shifted(at_place(rows, of_rows, calls, 0), calls, 0, num_weights);
  Tensor result = call_op<EmbeddingBackwardOp>(at_place(sums, of_sums, calls, 0), own,
                                               num_weights * calls, -1, scale_grad_by_freq)
                      .unflatten_symint(0, {calls, num_weights});
  if (padding_idx >= 0) result = result.index_fill(1, at::full({1}, padding_idx, own.options()), 0);
  return level.give(result, 0);
}

std::tuple<Tensor, Tensor> refuse_mapped(const Tensor&, const Tensor&, c10::SymInt, int64_t, bool) {
  TORCH_CHECK_NOT_IMPLEMENTED(false,
                              "vmap cannot map a sparse embedding gradient, which has as many rows "
                              "as occur: use sparse=False");
}

template <class Level>
void implement_embedding(torch::Library& m) {
  m.impl("embedding", mapped_embedding<Level>);
  m.impl("embedding_backward", mapped_backward<Level>);
  m.impl("embedding_sparse_backward", refuse_mapped);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("embedding", embedding);
  m.impl("embedding_backward",
         linear<EmbeddingBackwardOp, EmbeddingBackwardFunction, c10::SymInt, int64_t, bool>);
}
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatched, m) { implement_embedding<FuncTorch>(m); }
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement_embedding<GradsBatched>(m); }

}  // namespace rnnext
