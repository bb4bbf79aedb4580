#include "ops/vmap.h"

#include <ATen/functorch/BatchedTensorImpl.h>
// After it, or its calls would find these functions, too, by their argument.
#include <ATen/LegacyBatchedTensorImpl.h>

#include <torch/csrc/utils/pybind.h>

#include <algorithm>

namespace rnnext {

namespace py = pybind11;

// Only torch's Python tells: the header that would needs another that torch does not ship.
int64_t FuncTorch::innermost() {
  const py::gil_scoped_acquire lock;
  // Never deleted: the interpreter may be gone before the library.
  static const auto* const current =
      new py::object(py::module_::import("torch._C._functorch").attr("maybe_current_level"));
  const auto level = (*current)().cast<std::optional<int64_t>>();
  TORCH_CHECK(level, "a tensor that vmap maps was used after vmap had returned");
  return *level;
}

std::pair<Tensor, Dim> FuncTorch::take(const Tensor& t) const {
  const auto* const batched = at::functorch::maybeGetBatchedImpl(t);
  if (!batched || batched->level() != level_) return {t, std::nullopt};
  return {batched->value(), batched->bdim()};
}

Tensor FuncTorch::give(Tensor t, int64_t dim) const {
  return at::functorch::makeBatched(std::move(t), dim, level_);
}

void GradsBatched::see(const Tensor& t) {
  if (const auto* const batched = at::maybeGetBatchedImpl(t))
    level_ = std::max(level_, batched->bdims().back().level());
}

std::pair<Tensor, Dim> GradsBatched::take(const Tensor& t) const {
  const auto* const batched = at::maybeGetBatchedImpl(t);
  if (!batched || batched->bdims().back().level() != level_) return {t, std::nullopt};
  at::BatchDims outer;
  int64_t dim = batched->bdims().back().dim();
  for (const at::BatchDim& each : batched->bdims().slice(0, batched->bdims().size() - 1)) {
    outer.push_back(each);
    dim -= each.dim() < batched->bdims().back().dim();  // which the tensor below does not show
  }
  return {outer.empty() ? batched->value() : at::makeBatched(batched->value(), outer), dim};
}

Tensor GradsBatched::give(const Tensor& t, int64_t dim) const {
  // First in memory too, or torch could not lay a tangent out as what it belongs to.
  return at::addBatchDim(t.movedim(dim, 0).contiguous(), level_, 0);
}

Tensor at_place(const Tensor& t, Dim dim, const c10::SymInt& calls, int64_t place) {
  if (dim) return *dim == place ? t : t.movedim(*dim, place);
  std::vector<c10::SymInt> sizes = t.sym_sizes().vec();
  sizes.insert(sizes.begin() + place, calls);
  return t.unsqueeze(place).expand_symint(sizes);
}

Tensor shifted(const Tensor& indices, const c10::SymInt& calls, int64_t place,
               const c10::SymInt& rows) {
  std::vector<c10::SymInt> shape(indices.dim(), 1);
  shape[place] = calls;
  const Tensor first = at::arange(calls, indices.options().dtype(at::kLong)).mul(rows);
  return indices.to(at::kLong) + first.view_symint(shape);
}

}  // namespace rnnext
