// The Autograd key. First order runs on the backward ops; when the backward pass itself is recorded
// (create_graph=True) it is a short ATen loop over the saved output, differentiable to any order.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/signatures.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 is wrong about the vector<bool> of Function::apply.
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif

namespace rnnext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool needs_grad(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(t),
                              "rnnext has no forward-mode derivative");
  return t.requires_grad();
}
bool needs_grad(const OptionalTensor& t) { return given(t) && needs_grad(*t); }
bool needs_grad(TensorList list) {
  bool any = false;
  for (const Tensor& t : list) any = needs_grad(t) || any;
  return any;
}

// Looks at all of them: a forward-mode derivative is refused wherever it is.
template <class... T>
bool any_needs_grad(const T&... tensors) {
  return (needs_grad(tensors) | ...);
}

// What a call of `recurrence` is about, as the backward pass sees it.
struct Saved {
  Tensor output, input, index, h0, lengths, batch_sizes;
  variable_list weight_ih, weight_hh;
  std::string nonlinearity;
  c10::List<bool> reverse;
};

struct Grads {
  Tensor input, h0;
  variable_list weight_ih, weight_hh, bias;
};

// Between the rows of a packed sequence [N, ...] and [T, B, ...] with zeros where there is no row.
struct Packing {
  Tensor position;  // [N]: t * B + b of each row
  int64_t T = 0, B = 0;

  explicit Packing(const Tensor& batch_sizes, at::Device device) {
    const Tensor sizes = batch_sizes.contiguous();
    const int64_t* n = sizes.const_data_ptr<int64_t>();
    T = sizes.numel();
    B = T > 0 ? n[0] : 0;
    std::vector<int64_t> at;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < n[t]; ++b) at.push_back(t * B + b);
    position = at::tensor(at, at::kLong).to(device);
  }
  Tensor unpack(const Tensor& rows) const {
    std::vector<int64_t> shape = rows.sizes().vec();
    shape[0] = T * B;
    const Tensor flat = at::zeros(shape, rows.options()).index_copy(0, position, rows);
    shape[0] = B;
    shape.insert(shape.begin(), T);
    return flat.view(shape);
  }
  Tensor pack(const Tensor& padded) const { return padded.flatten(0, 1).index_select(0, position); }
  Tensor lengths() const { return unpack(at::ones_like(position)).sum(0); }
};

Grads differentiable_backward(Saved s, Tensor grad_output, const Tensor& grad_h_n) {
  std::optional<Packing> packing;
  if (s.batch_sizes.defined()) {
    packing.emplace(s.batch_sizes, s.output.device());
    s.output = packing->unpack(s.output);
    if (grad_output.defined()) grad_output = packing->unpack(grad_output);
    if (s.index.defined()) {
      s.index = packing->unpack(s.index);
    } else {
      s.input = packing->unpack(s.input);
    }
    s.lengths = packing->lengths();
  }
  const int64_t D = static_cast<int64_t>(s.weight_hh.size()), H = s.weight_hh[0].size(0);
  const int64_t T = s.output.size(0), B = s.output.size(1);
  const auto options = s.weight_hh[0].options();
  const Tensor step = at::arange(T, options.dtype(at::kLong)).view({T, 1, 1});
  Tensor active;  // [T, B, 1]
  if (s.lengths.defined()) {
    active = step < s.lengths.view({1, B, 1});
    // Whatever lies past a sequence's end, NaN too, has no part in the gradients.
    if (!s.weight_ih.empty()) s.input = at::where(active, s.input, 0);
    if (grad_output.defined()) grad_output = at::where(active, grad_output, 0);
  }

  Grads grads;
  variable_list pre, h0;
  for (int64_t d = 0; d < D; ++d) {
    const bool reverse = s.reverse[d];
    const Tensor& W = s.weight_hh[d];
    const Tensor h = s.output.narrow(-1, d * H, H);
    const Tensor derivative = s.nonlinearity == "tanh" ? 1 - h * h : (h > 0).to(h.scalar_type());
    Tensor carry = grad_h_n.defined() ? grad_h_n[d] : at::zeros({B, H}, options);
    variable_list steps(T);
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = reverse ? i : T - 1 - i;
      Tensor grad = carry;
      if (grad_output.defined()) grad = grad + grad_output[t].narrow(-1, d * H, H);
      grad = grad * derivative[t];
      if (active.defined()) grad = grad * active[t];
      const Tensor before = grad.matmul(W);
      carry = active.defined() ? at::where(active[t], before, carry) : before;
      steps[t] = grad;
    }
    const Tensor grad_pre = T > 0 ? at::stack(steps) : at::zeros({0, B, H}, options);
    Tensor start = s.h0.defined() ? s.h0[d] : at::zeros({B, H}, options);
    Tensor h_before;
    if (T == 0) {
      h_before = h;
    } else if (!reverse) {
      h_before = at::cat({start.unsqueeze(0), h.narrow(0, 0, T - 1)});
    } else {
      h_before = at::cat({h.narrow(0, 1, T - 1), start.unsqueeze(0)});
      if (s.lengths.defined())
        h_before = at::where(step == s.lengths.view({1, B, 1}) - 1, start.unsqueeze(0), h_before);
    }
    const Tensor flat = grad_pre.flatten(0, 1);
    grads.weight_hh.push_back(flat.t().matmul(h_before.flatten(0, 1)));
    grads.bias.push_back(flat.sum(0));
    if (!s.weight_ih.empty()) {
      grads.weight_ih.push_back(flat.t().matmul(s.input.flatten(0, 1)));
      const Tensor grad_input = grad_pre.matmul(s.weight_ih[d]);
      grads.input = grads.input.defined() ? grads.input + grad_input : grad_input;
    }
    pre.push_back(grad_pre);
    h0.push_back(carry);
  }
  grads.h0 = at::stack(h0);
  if (s.weight_ih.empty()) {
    grads.input = at::cat(pre, -1);
    if (s.index.defined()) {
      grads.input =
          at::zeros_like(s.input).index_add(0, s.index.flatten(), grads.input.flatten(0, 1));
      return grads;
    }
  }
  if (packing) grads.input = packing->pack(grads.input);
  return grads;
}

class RecurrenceFunction : public torch::autograd::Function<RecurrenceFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const OptionalTensor& index, TensorList weight_ih,
                               TensorList weight_hh, TensorList bias_ih, TensorList bias_hh,
                               const OptionalTensor& h0, const OptionalTensor& lengths,
                               const OptionalTensor& batch_sizes, std::string nonlinearity,
                               c10::List<bool> reverse) {
    static const auto op = find_op<RecurrenceOp>("rnnext::recurrence");
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, h_n] = op.call(input, index, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths,
                                 batch_sizes, nonlinearity, reverse);
    ctx->set_materialize_grads(false);
    variable_list saved{output,
                        input,
                        index.value_or(Tensor()),
                        h0.value_or(Tensor()),
                        lengths.value_or(Tensor()),
                        batch_sizes.value_or(Tensor())};
    saved.insert(saved.end(), weight_ih.begin(), weight_ih.end());
    saved.insert(saved.end(), weight_hh.begin(), weight_hh.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["nonlinearity"] = std::move(nonlinearity);
    ctx->saved_data["reverse"] = std::move(reverse);
    ctx->saved_data["features"] = !weight_ih.empty();
    ctx->saved_data["bias"] = !bias_ih.empty();
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list saved = ctx->get_saved_variables();
    Saved s{saved[0],
            saved[1],
            saved[2],
            saved[3],
            saved[4],
            saved[5],
            {},
            {},
            ctx->saved_data["nonlinearity"].toStringRef(),
            ctx->saved_data["reverse"].toBoolList()};
    const size_t D = s.reverse.size();
    const bool features = ctx->saved_data["features"].toBool();
    const bool bias = ctx->saved_data["bias"].toBool();
    if (features) s.weight_ih.assign(saved.begin() + 6, saved.begin() + 6 + D);
    s.weight_hh.assign(saved.end() - D, saved.end());

    // Positions of the forward's tensors: input, [index], weight_ih.., weight_hh.., bias.., [h0]
    const size_t ih = 2, hh = ih + (features ? D : 0), b = hh + D, h0 = b + (bias ? 2 * D : 0);
    // needs_input_grad counts given tensors alone; index and h0 may be missing.
    const size_t missing = s.index.defined() ? 0 : 1;
    const auto any = [&](size_t from, size_t to) {
      for (size_t i = from; i < to; ++i)
        if (ctx->needs_input_grad(i - missing)) return true;
      return false;
    };
    const std::array<bool, 4> mask{ctx->needs_input_grad(0), any(ih, b), any(b, h0),
                                   s.h0.defined() && any(h0, h0 + 1)};
    Grads g;
    if (at::GradMode::is_enabled()) {
      g = differentiable_backward(s, grad[0], grad[1]);
    } else {
      static const auto op = find_op<RecurrenceBackwardOp>("rnnext::recurrence_backward");
      at::AutoDispatchBelowADInplaceOrView guard;  // past torch's boxed fallback for autograd
      std::tie(g.input, g.weight_ih, g.weight_hh, g.bias, g.h0) =
          op.call(grad[0], grad[1], s.output, s.input, s.index, s.weight_ih, s.weight_hh, s.h0,
                  s.lengths, s.batch_sizes, s.nonlinearity, s.reverse, mask);
    }
    variable_list result(h0 + 5);  // ..., h0, lengths, batch_sizes, nonlinearity, reverse
    if (mask[0]) result[0] = g.input;
    for (size_t d = 0; d < D && mask[1]; ++d) {
      if (features) result[ih + d] = g.weight_ih[d];
      result[hh + d] = g.weight_hh[d];
    }
    for (size_t i = b; i < h0; ++i) {
      if (!ctx->needs_input_grad(i - missing)) continue;
      // Two tensors for the two biases, or work in place on one gradient would reach the other.
      Tensor& grad = g.bias[(i - b) % D];
      result[i] = i >= b + D && result[i - D].defined() ? grad.clone() : grad;
    }
    if (mask[3]) result[h0] = g.h0;
    return result;
  }
};

std::tuple<Tensor, Tensor> recurrence(const Tensor& input, const OptionalTensor& index,
                                      TensorList weight_ih, TensorList weight_hh,
                                      TensorList bias_ih, TensorList bias_hh,
                                      const OptionalTensor& h0, const OptionalTensor& lengths,
                                      const OptionalTensor& batch_sizes,
                                      c10::string_view nonlinearity,
                                      const c10::List<bool>& reverse) {
  const bool record = any_needs_grad(input, weight_ih, weight_hh, bias_ih, bias_hh, h0);
  if (!record || !at::GradMode::is_enabled()) {
    static const auto op = find_op<RecurrenceOp>("rnnext::recurrence");
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(input, index, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, batch_sizes,
                   nonlinearity, reverse);
  }
  const variable_list out =
      RecurrenceFunction::apply(input, index, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths,
                                batch_sizes, std::string(nonlinearity), reverse);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> recurrence_stack(const Tensor& input, TensorList weight_ih,
                                            TensorList weight_hh, TensorList bias_ih,
                                            TensorList bias_hh, const OptionalTensor& h0,
                                            const OptionalTensor& lengths,
                                            const OptionalTensor& batch_sizes,
                                            c10::string_view nonlinearity) {
  const bool record = any_needs_grad(input, weight_ih, weight_hh, bias_ih, bias_hh, h0);
  TORCH_CHECK_NOT_IMPLEMENTED(!(record && at::GradMode::is_enabled()),
                              "recurrence_stack has no gradient: call recurrence for each layer");
  static const auto op = find_op<RecurrenceStackOp>("rnnext::recurrence_stack");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(input, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, batch_sizes,
                 nonlinearity);
}

class EmbeddingFunction : public torch::autograd::Function<EmbeddingFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& indices,
                        int64_t padding_idx, bool scale_grad_by_freq, bool sparse) {
    static const auto op = find_op<EmbeddingOp>("rnnext::embedding");
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({indices});
    // The size, not the table: it may change in place before the backward pass, as in torch.
    ctx->saved_data["num_weights"] = weight.sym_size(0);
    ctx->saved_data["padding_idx"] = padding_idx;
    ctx->saved_data["scale_grad_by_freq"] = scale_grad_by_freq;
    ctx->saved_data["sparse"] = sparse;
    return op.call(weight, indices, padding_idx, scale_grad_by_freq, sparse);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const Tensor indices = ctx->get_saved_variables()[0];
    const c10::SymInt num_weights = ctx->saved_data["num_weights"].toSymInt();
    const int64_t padding_idx = ctx->saved_data["padding_idx"].toInt();
    const bool scale = ctx->saved_data["scale_grad_by_freq"].toBool();
    Tensor result;
    if (ctx->saved_data["sparse"].toBool()) {
      TORCH_CHECK_NOT_IMPLEMENTED(!(at::GradMode::is_enabled() && grad[0].requires_grad()),
                                  "a sparse embedding gradient has no second derivative: use "
                                  "sparse=False with create_graph=True");
      static const auto op =
          find_op<EmbeddingSparseBackwardOp>("rnnext::embedding_sparse_backward");
      at::AutoDispatchBelowADInplaceOrView guard;
      const auto [rows, values] = op.call(grad[0], indices, num_weights, padding_idx, scale);
      // A strided row of indices: torch's AccumulateGrad then clones the gradient, which keeps it
      // marked as coalesced; a contiguous one it takes apart and puts together without the mark.
      const Tensor strided =
          at::empty_strided_symint({1, rows.sym_size(0)}, {1, 2}, rows.options());
      strided.copy_(rows);
      result = at::_sparse_coo_tensor_unsafe_symint(
          strided, values, {num_weights, values.sym_size(1)}, values.scalar_type(), at::kSparse,
          values.device(), std::nullopt, /*is_coalesced=*/true);
    } else {
      static const auto op = find_op<EmbeddingBackwardOp>("rnnext::embedding_backward");
      result = op.call(grad[0], indices, num_weights, padding_idx, scale);
    }
    return {result, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                 bool scale_grad_by_freq, bool sparse) {
  if (needs_grad(weight) && at::GradMode::is_enabled()) {
    TORCH_CHECK(!weight.is_complex(),
                "embedding does not support automatic differentiation for outputs with complex "
                "dtype.");
    return EmbeddingFunction::apply(weight, indices, padding_idx, scale_grad_by_freq, sparse);
  }
  static const auto op = find_op<EmbeddingOp>("rnnext::embedding");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(weight, indices, padding_idx, scale_grad_by_freq, sparse);
}

// Gather and scatter-add are each other's backward.
class EmbeddingBackwardFunction : public torch::autograd::Function<EmbeddingBackwardFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& indices,
                        c10::SymInt num_weights, int64_t padding_idx, bool scale_grad_by_freq) {
    static const auto op = find_op<EmbeddingBackwardOp>("rnnext::embedding_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({indices});
    ctx->saved_data["padding_idx"] = padding_idx;
    ctx->saved_data["scale_grad_by_freq"] = scale_grad_by_freq;
    return op.call(grad, indices, std::move(num_weights), padding_idx, scale_grad_by_freq);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const Tensor indices = ctx->get_saved_variables()[0];
    const int64_t padding_idx = ctx->saved_data["padding_idx"].toInt();
    static const auto op = find_op<EmbeddingOp>("rnnext::embedding");
    Tensor result = op.call(grad[0], indices, -1, false, false);
    if (padding_idx >= 0) result = result.masked_fill((indices == padding_idx).unsqueeze(-1), 0);
    if (ctx->saved_data["scale_grad_by_freq"].toBool()) {
      const Tensor flat = indices.flatten();
      const auto options = flat.options().dtype(at::kDouble);  // 16 bits do not count to 257
      const Tensor count = at::zeros_symint({grad[0].sym_size(0)}, options)
                               .index_add(0, flat, at::ones_like(flat, options));
      const Tensor scale = count.index_select(0, flat).reciprocal().to(result.scalar_type());
      result = result * scale.view_as(indices).unsqueeze(-1);
    }
    return {result, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor embedding_backward(const Tensor& grad, const Tensor& indices, c10::SymInt num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  if (needs_grad(grad) && at::GradMode::is_enabled())
    return EmbeddingBackwardFunction::apply(grad, indices, std::move(num_weights), padding_idx,
                                            scale_grad_by_freq);
  static const auto op = find_op<EmbeddingBackwardOp>("rnnext::embedding_backward");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(grad, indices, std::move(num_weights), padding_idx, scale_grad_by_freq);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("recurrence", recurrence);
  m.impl("recurrence_stack", recurrence_stack);
  m.impl("embedding", embedding);
  m.impl("embedding_backward", embedding_backward);
}

}  // namespace rnnext
