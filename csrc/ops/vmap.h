// vmap of the ops, as one call of an op, whatever is mapped. Here: how mapped tensors are
// unwrapped, and results wrapped.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <utility>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

// The dimension of a tensor that is mapped, if one is.
using Dim = std::optional<int64_t>;

// The innermost vmap of torch.func; while it lives, calls of ops go to the level below.
class FuncTorch {
 public:
  explicit FuncTorch(const std::vector<Tensor>&) : level_(innermost()) {}

  std::pair<Tensor, Dim> take(const Tensor& t) const;
  Tensor give(const Tensor& t, int64_t dim) const;

 private:
  static int64_t innermost();

  c10::impl::ExcludeDispatchKeyGuard below_{c10::DispatchKey::FuncTorchBatched};
  int64_t level_;
};

// The other vmap, of torch.autograd.grad(is_grads_batched=True), at its tensors' innermost level.
class GradsBatched {
 public:
  explicit GradsBatched(const std::vector<Tensor>& tensors);

  std::pair<Tensor, Dim> take(const Tensor& t) const;
  Tensor give(const Tensor& t, int64_t dim) const;

 private:
  int64_t level_ = 0;
};

// Moves the mapped dimension of a tensor to `place`, or expands the tensor there to so many calls.
Tensor at_place(const Tensor& t, Dim dim, const c10::SymInt& calls, int64_t place);

// Indices, mapped at `place`, into one table that consists of each call's table of so many rows.
Tensor shifted(const Tensor& indices, const c10::SymInt& calls, int64_t place,
               const c10::SymInt& rows);

}  // namespace rnnext
