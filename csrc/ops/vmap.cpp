// The recurrence's ops under vmap. Where weights are mapped, noise is added or gradients are wanted
// of what all calls share, the calls become an ensemble; else more sequences of one batch. (For a
// mapped ensemble see library.cpp.)
#include "ops/vmap.h"

#include <ATen/functorch/BatchedTensorImpl.h>
// After functorch's header, whose calls would else find this one's functions by their arguments.
#include <ATen/LegacyBatchedTensorImpl.h>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/padded_call.h"
#include "ops/signatures.h"

namespace rnnext {
namespace py = pybind11;

// Asks torch's Python, since the C++ header needs another one that torch does not ship.
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

Tensor FuncTorch::give(const Tensor& t, int64_t dim) const {
  return at::functorch::makeBatched(t.movedim(dim, 0), 0, level_);
}

GradsBatched::GradsBatched(const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors)
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
    dim -= each.dim() < batched->bdims().back().dim();  // the tensor below lacks that dimension
  }
  return {outer.empty() ? batched->value() : at::makeBatched(batched->value(), outer), dim};
}

Tensor GradsBatched::give(const Tensor& t, int64_t dim) const {
  // Also first in memory, so that torch can lay out a tangent like its tensor.
  return at::addBatchDim(t.movedim(dim, 0).contiguous(), level_, 0);
}

Tensor at_place(const Tensor& t, Dim dim, const c10::SymInt& calls, int64_t place) {
  if (dim) return *dim == place ? t : t.movedim(*dim, place);
  const Tensor one = t.unsqueeze(place);  // raises if t has too few dimensions
  std::vector<c10::SymInt> sizes = one.sym_sizes().vec();
  sizes[place] = calls;
  return one.expand_symint(sizes);
}

Tensor shifted(const Tensor& indices, const c10::SymInt& calls, int64_t place,
               const c10::SymInt& rows) {
  // (An index out of range is to be one of its own table, not a row of the next call's.)
  call_op<EmbeddingOp>(at::empty_symint({rows, 1}, indices.options().dtype(at::kFloat)), indices,
                       /*padding_idx=*/-1, /*scale_grad_by_freq=*/false, /*sparse=*/false);
  std::vector<c10::SymInt> shape(indices.dim(), 1);
  shape[place] = calls;
  const Tensor first = at::arange(calls, indices.options().dtype(at::kLong)).mul(rows);
  const Tensor found = indices.to(at::kLong) + first.view_symint(shape);
  if (indices.is_cpu()) return found;  // elsewhere the check above may raise later
  return at::where(indices.ge(0).logical_and(indices.lt(rows)), found, -1);
}

namespace {

// The mapped dimensions of the tensors in a field.
template <class>
using Dims = c10::SmallVector<Dim, 2>;

// Calls of the recurrence and its backward op that are mapped at a level.
template <class Level>
class MappedCalls {
 public:
  explicit MappedCalls(const Level& level, const RecurrenceArguments& a)
      : level_(level), call_(kept(a)) {
    rows_ = !given(a.batch_sizes);
    const Tensor& rows = given(a.index) ? *a.index : a.input;
    if (rows.dim() > rows_) one_ = rows.sym_size(rows_);
    take(call_, dims_);
    maps_shared_ = !call_.noise.empty();  // each call numbers its own sequences
    const auto see = [&](const auto& dims, Batch place) {
      for (const Dim& dim : dims) maps_shared_ |= place == Batch::shared && dim;
    };
    zip(see, dims_, kArgumentPlaces);
  }

  RecurrenceOp::Results forward(bool save) const {
    if (!mapped_) return call_forward<RecurrenceOp>(call_, save);
    if (maps_shared_) return by_call(call_forward<EnsembleOp>(ensemble(), save));
    auto [output, h_n, saved] = call_forward<RecurrenceOp>(batch(), save);
    for (Tensor& each : saved) each = unfold(each, Batch::rows);
    return {unfold(output, Batch::rows), unfold(h_n, Batch::states), std::move(saved)};
  }

  RecurrenceGradients backward(const BackwardInputs& results, Wanted wanted) {
    KeptBackwardInputs r = kept(results);
    BackwardFields<Dims> dims;
    take(r, dims);
    if (!mapped_) return call_backward<RecurrenceBackwardOp>(r, call_, wanted);
    bool wants_shared = wanted.input && given(call_.index);
    each_gradient([&](Batch place, bool want) { wants_shared |= want && place == Batch::shared; },
                  kArgumentPlaces, wanted);
    const bool plain = call_.cell == "elman" && !given(call_.index) && !given(call_.lengths) &&
                       !given(call_.batch_sizes) && !given(call_.reset);
    if (wants_shared && plain && !maps_shared_) return of_each(folded(r, dims), wanted);
    if (wants_shared || maps_shared_) {
      change(r, dims, kBackwardPlaces, &MappedCalls::part_of_members);
      return by_call(call_backward<EnsembleBackwardOp>(r, ensemble(), wanted));
    }
    RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(folded(r, dims), batch(), wanted);
    wanted.reset_state &= given(call_.reset);
    each_gradient(
        [&](Batch place, bool want, auto& gradient) {
          for (Tensor& t : tensors_of(gradient)) t = want ? unfold(t, place) : Tensor();
        },
        kArgumentPlaces, wanted, g);
    return g;
  }

 private:
  // The batch's dimension.
  int64_t dim_of(Batch place) const {
    return place == Batch::rows ? rows_ : place == Batch::states ? 1 : 0;
  }

  template <class Struct, class DimsOfIt>
  void take(Struct& s, DimsOfIt& dims) {
    const auto take_each = [&](auto& field, auto& of) {
      for (Tensor& t : tensors_of(field)) {
        of.emplace_back();
        if (!t.defined()) continue;
        std::tie(t, of.back()) = level_.take(t);
        if (!of.back()) continue;
        mapped_ = true;
        calls_ = t.sym_size(*of.back());
      }
    };
    zip(take_each, s, dims);
  }

  // Replaces each tensor by how(tensor, its mapped dimension, where its batch is).
  template <class Struct, class DimsOfIt, class Places>
  void change(Struct& s, const DimsOfIt& dims, const Places& places,
              Tensor (MappedCalls::*how)(const Tensor&, Dim, Batch) const) const {
    const auto change_each = [&](auto& field, const auto& of, Batch place) {
      const Dim* dim = of.begin();
      for (Tensor& t : tensors_of(field)) {
        if (t.defined()) t = (this->*how)(t, *dim, place);
        ++dim;
      }
    };
    zip(change_each, s, dims, places);
  }

  // Makes the mapped dimension that of an ensemble's members, who share batch_sizes. Without
  // calls, one member of ones (alpha may not be 0) and integers 0 is run, then dropped.
  Tensor part_of_members(const Tensor& t, Dim dim, Batch place) const {
    if (place == Batch::none) return t;
    const Tensor members = at_place(t, dim, calls_, 0);
    if (calls_ != 0) return members;
    std::vector<c10::SymInt> one = members.sym_sizes().vec();
    one[0] = 1;
    return at::cat({members, members.new_full_symint(one, members.is_floating_point())});
  }
  KeptArguments ensemble() const {
    KeptArguments own = call_;
    change(own, dims_, kArgumentPlaces, &MappedCalls::part_of_members);
    return own;
  }
  template <class Results>
  Results by_call(Results of_members) const {
    return with_each(std::move(of_members), [&](const Tensor& t) {
      return level_.give(calls_ == 0 ? t.slice(0, 0, 0) : t, 0);
    });
  }

  // Makes the mapped dimension the inner part of the batch: [.., n, ..] to [.., n * calls, ..].
  Tensor fold(const Tensor& t, Dim dim, Batch place) const {
    if (place == Batch::shared || place == Batch::none) return t;
    const int64_t at = dim_of(place);
    return at_place(t, dim, calls_, at + 1).flatten(at, at + 1);
  }
  // The inverse, for results. (If there are no calls, a result does not tell the size of one.)
  Tensor apart(const Tensor& t, int64_t at) const {
    const c10::SymInt one = calls_ == 0 ? one_ : t.sym_size(at) / calls_;
    return t.unflatten_symint(at, {one, calls_});
  }
  Tensor unfold(const Tensor& t, Batch place) const {
    return level_.give(apart(t, dim_of(place)), dim_of(place) + 1);
  }

  // One call with the batches of all calls.
  KeptArguments batch() const {
    KeptArguments own = call_;
    Arguments<BatchPlace> places = kArgumentPlaces;
    if (given(call_.index)) places.input = Batch::none;  // it is a table
    change(own, dims_, places, &MappedCalls::fold);
    if (given(call_.index) && dims_.input[0]) {
      const Tensor tables = call_.input.movedim(*dims_.input[0], 0);
      const Tensor index = shifted(apart(*own.index, rows_), calls_, rows_ + 1, tables.sym_size(1));
      own.index = index.flatten(rows_, rows_ + 1);
      own.input = tables.flatten(0, 1);
    }
    if (given(call_.batch_sizes)) {
      TORCH_CHECK_VALUE(calls_ != 0, "vmap must map a call at least of a packed sequence");
      own.batch_sizes = call_.batch_sizes->mul(calls_);
    }
    return own;
  }
  KeptBackwardInputs folded(KeptBackwardInputs r, const BackwardFields<Dims>& dims) const {
    change(r, dims, kBackwardPlaces, &MappedCalls::fold);
    return r;
  }

  // The gradients of weights that all calls share, for each call: those of all pre-activations
  // come from one call of the backward op, those of weights from products over each call's rows.
  RecurrenceGradients of_each(const KeptBackwardInputs& r, const Wanted& wanted) const {
    const KeptArguments all = batch();
    KeptArguments precomputed = all;
    precomputed.input = r.output;  // any rows will do: the op does not read these
    precomputed.weight_ih = {};
    const Wanted of_rows{.input = true, .hx = wanted.hx};
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(r, precomputed, of_rows);

    RecurrenceGradients each;
    if (wanted.input)
      each.input = unfold(all.weight_ih.empty() ? g.input : g.input.matmul(at::cat(all.weight_ih)),
                          Batch::rows);
    if (wanted.hx) each.hx = unfold(g.hx, Batch::states);
    const auto product = [&](const Tensor& grad, const Tensor& rows) {
      return level_.give(at::einsum("tbni,tbnj->nij", {apart(grad, 1), apart(rows, 1)}), 0);
    };
    const PaddedCall call(all);
    for (int64_t d = 0; d < call.D; ++d) {
      const Tensor grad = call.of(g.input, d);
      if (wanted.weight_hh)
        each.weight_hh.push_back(product(grad, call.output_before(r.output, d)));
      if (wanted.weight_ih && !all.weight_ih.empty())
        each.weight_ih.push_back(product(grad, all.input));
      const auto sum = [&] { return level_.give(apart(grad, 1).sum(at::IntArrayRef{0, 1}), 0); };
      if (wanted.bias_ih) each.bias_ih.push_back(sum());
      if (wanted.bias_hh) each.bias_hh.push_back(sum());
    }
    return each;
  }

  const Level& level_;
  KeptArguments call_;
  Arguments<Dims> dims_;
  bool mapped_ = false, maps_shared_ = false;  // at this level: anything; what sequences share
  c10::SymInt calls_ = 0;
  int64_t rows_;         // the batch's dimension in input and output
  c10::SymInt one_ = 0;  // its size in one call
};

template <class Level>
RecurrenceOp::Results mapped_recurrence(const RecurrenceArguments& a, bool save) {
  const Level level(flattened(a));
  return MappedCalls<Level>(level, a).forward(save);
}
template <class Level>
RecurrenceGradients mapped_recurrence_backward(const BackwardInputs& r,
                                               const RecurrenceArguments& a, const Wanted& wanted) {
  const Level level(flattened(r, a));
  return MappedCalls<Level>(level, a).backward(r, wanted);
}

// Each call has keys of its own, and NoiseOp takes keys of any shape.
Tensor mapped_noise(const Tensor& keys, c10::SymInt T, c10::SymInt B, int64_t D, c10::SymInt H) {
  const FuncTorch level({keys});
  const auto [values, dim] = level.take(keys);
  if (!dim) return call_op<NoiseOp>(values, T, B, D, H);
  return level.give(call_op<NoiseOp>(values.movedim(*dim, 0), T, B, D, H), 0);
}

template <class Level>
void implement_recurrence(torch::Library& m) {
  m.impl("recurrence", Recurrences::forward<mapped_recurrence<Level>>);
  m.impl("recurrence_backward", Recurrences::backward<mapped_recurrence_backward<Level>>);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatched, m) {
  implement_recurrence<FuncTorch>(m);
  m.impl("noise", mapped_noise);
}
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement_recurrence<GradsBatched>(m); }

}  // namespace rnnext
