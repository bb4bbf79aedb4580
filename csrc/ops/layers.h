// The parts of the composite ops: a layer's weights and projected input, and how sequences lie.
#pragma once

#include <c10/core/InferenceMode.h>
#include <c10/util/SmallVector.h>

#include "ops/autograd.h"
#include "ops/signatures.h"

namespace rnnext {

// Whether a transform of torch.func wraps a tensor.
inline bool transformed(const Tensor& t) {
  constexpr c10::DispatchKeySet wrappers(
      {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return t.key_set().has_any(wrappers);
}

// A view as a tensor that is not one, with the same memory and history: autograd refuses to detach
// a view in place (`h.detach_()`), as users do. Writes in place count as the view's, or apart.
inline Tensor as_result(const Tensor& view, bool apart = false) {
  if (!view.is_view() || transformed(view) || is_dual(view)) return view;
  // (A dispatch mode, as make_fx has, would record a detached tensor; fake tensors need no copy.)
  if (c10::impl::dispatch_mode_enabled() && !view.key_set().has(c10::DispatchKey::Python))
    return view.clone();
  Tensor result(apart ? view.variable_data() : view.tensor_data());
  result.unsafeGetTensorImpl()->set_allow_tensor_metadata_change(true);
  if (view.requires_grad())
    torch::autograd::impl::set_gradient_edge(result, torch::autograd::impl::gradient_edge(view));
  return result;
}

// Whether nothing but the tensor's memory counts: it is no subclass's, and autograd records
// nothing. Views and copies of such tensors need none of torch's operations, which take longer than
// the step of a small cell.
inline bool is_plain(const Tensor& t) {
  return (c10::InferenceMode::is_enabled() ||
          c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::ADInplaceOrView)) &&
         t.layout() == at::kStrided && !at::isTensorSubclassLike(t);
}
inline Tensor plain_view(const Tensor& t, at::IntArrayRef sizes, at::IntArrayRef strides,
                         int64_t skipped = 0) {
  const Tensor view(t.variable_data());
  at::TensorImpl& impl = *view.unsafeGetTensorImpl();
  impl.set_allow_tensor_metadata_change(true);
  impl.set_storage_offset(t.storage_offset() + skipped);
  impl.set_sizes_and_strides(sizes, strides);
  return view;
}
// With the first two dimensions swapped.
inline Tensor swapped(const Tensor& t) {
  if (!is_plain(t)) return t.transpose(0, 1);
  at::DimVector sizes(t.sizes()), strides(t.strides());
  std::swap(sizes[0], sizes[1]);
  std::swap(strides[0], strides[1]);
  return plain_view(t, sizes, strides);
}

// The states of a cell, [n, B, H] each, one after the other, `name` in errors; and one of them
// again, the s-th of n. As in torch.nn, a write to one in place is none to another.
Tensor joined(TensorList states, const char* name);
inline Tensor state_of(const Tensor& joined, int64_t s, int64_t n) {
  if (is_plain(joined))
    return plain_view(joined, {n, joined.size(1), joined.size(2)}, joined.strides(),
                      s * n * joined.stride(0));
  const Tensor view = joined.narrow(0, s * n, n);
  const bool copies = transformed(view) || is_dual(view) || at::isTensorSubclassLike(view);
  return copies ? view.clone() : as_result(view, /*apart=*/true);
}

// The weights of n directions from `first` on, of one layer or of several, as a list for each kind.
// `weights` must outlive it.
class DirectionWeights {
 public:
  DirectionWeights(TensorList weights, bool has_biases, int64_t first, int64_t n) {
    TensorList* const lists[] = {&ih, &hh, &bias_ih, &bias_hh};
    const size_t each = has_biases ? 4 : 2;
    for (size_t i = 0; i < each; ++i) {
      *lists[i] = weights.slice(first * each + i, 1);
      if (n == 1) continue;
      for (int64_t d = first; d < first + n; ++d) own_[i].push_back(weights[d * each + i]);
      *lists[i] = own_[i];
    }
  }
  DirectionWeights(const DirectionWeights&) = delete;

  TensorList ih, hh, bias_ih, bias_hh;

 private:
  c10::SmallVector<Tensor, 2> own_[4];
};

// A layer's precomputed input: its rows times W_ih and the biases, or, for a gated cell, b_ih.
Tensor project(const Tensor& x, const DirectionWeights& of, Cell cell);

// The sequences of a call, time first, as the ops of one layer take them.
struct Sequences {
  bool unbatched, batch_first;

  Tensor time_first(const Tensor& t) const {
    return unbatched ? t.unsqueeze(1) : batch_first ? swapped(t) : t;
  }
  OptionalTensor time_first(const OptionalTensor& t) const {
    return given(t) ? OptionalTensor(time_first(*t)) : t;
  }
  Tensor back(const Tensor& t) const {
    return unbatched ? as_result(t.squeeze(1)) : batch_first ? as_result(swapped(t)) : t;
  }
};

inline int64_t directions_of(const RnnArguments& a) { return a.bidirectional ? 2 : 1; }
inline bool drops(const RnnArguments& a) { return a.dropout > 0 && a.training; }

// Checks what the ops of one layer cannot, since they know neither layers nor batch_first.
Sequences check_layers(const RnnArguments& a);

}  // namespace rnnext
