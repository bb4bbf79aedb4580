// The recurrence's ops under vmap. Where no weight is mapped, the mapped calls are more sequences:
// the batch grows. Where weights are, they are an ensemble.
#include "ops/vmap.h"

#include <ATen/functorch/BatchedTensorImpl.h>
// Included last, or its own calls would find these functions by their arguments.
#include <ATen/LegacyBatchedTensorImpl.h>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/zeros_like.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "ops/signatures.h"

namespace rnnext {
namespace py = pybind11;

// Asked of torch's Python, since the C++ header needs another one that torch does not ship.
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
    dim -= each.dim() < batched->bdims().back().dim();  // the tensor below lacks that dimension
  }
  return {outer.empty() ? batched->value() : at::makeBatched(batched->value(), outer), dim};
}

Tensor GradsBatched::give(const Tensor& t, int64_t dim) const {
  // First in memory too, so that torch can lay a tangent out like the tensor that it belongs to.
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

namespace {

using Dims = std::vector<Dim>;  // of a list's tensors

// The mapped dimensions of an argument.
template <class T>
struct Mapped {
  using Type = std::monostate;
};
template <>
struct Mapped<Tensor> {
  using Type = Dim;
};
template <>
struct Mapped<OptionalTensor> {
  using Type = Dim;
};
template <>
struct Mapped<TensorList> {
  using Type = Dims;
};
template <class T>
using DimsOf = typename Mapped<T>::Type;

bool maps(const Dim& dim) { return dim.has_value(); }
bool maps(const Dims& dims) {
  return std::any_of(dims.begin(), dims.end(), [](const Dim& dim) { return maps(dim); });
}

// Calls of one op and its backward op that are mapped at a level.
template <class Op, class Level>
class MappedCalls {
 public:
  explicit MappedCalls(const Level& level, const RecurrenceArguments& a)
      : level_(level), call_(kept(a)) {
    rows_ = kLead + !given(a.batch_sizes);
    const Tensor& rows = given(a.index) ? *a.index : a.input;
    if (rows.dim() > rows_) one_ = rows.sym_size(rows_);
    zip(call_, dims_, [&](auto& value, auto& dims) { take(value, dims); });
  }

  typename Op::Results forward(bool save) const {
    if (!mapped_) return call_forward<Op>(call_, save);
    if (maps_weights()) {
      auto [output, h_n, saved] = call_forward<EnsembleOp>(ensemble(), save);
      return {back(output), back(h_n), back(saved)};
    }
    auto [output, h_n, saved] = call_forward<Op>(batch(), save);
    for (Tensor& each : saved) each = unfold(each, rows_);
    return {unfold(output, rows_), unfold(h_n, kStates), std::move(saved)};
  }

  RecurrenceGradients backward(const RecurrenceResults& results, const Wanted& wanted) {
    KeptResults r = kept(results);
    Results<DimsOf> dims;
    zip(r, dims, [&](auto& value, auto& dim) { take(value, dim); });
    using Backward = typename Op::Backward;
    if (!mapped_) return call_backward<Backward>(r, call_, wanted);
    const bool leak = !call_.alpha.empty();
    if (maps_weights() || wanted.weight_ih || wanted.weight_hh || wanted.bias ||
        (wanted.alpha && leak) || (wanted.input && given(call_.index))) {
      if (maps_weights() || kLead > 0 || leak || given(call_.lengths) || given(call_.batch_sizes) ||
          given(call_.reset) || given(call_.index)) {
        RecurrenceGradients g =
            call_backward<EnsembleBackwardOp>(members(r, dims), ensemble(), wanted);
        return spread(g, [&](auto&... each) { return RecurrenceGradients{back(each)...}; });
      }
      return of_each(folded(r, dims), wanted);
    }
    const RecurrenceGradients g = call_backward<Backward>(folded(r, dims), batch(), wanted);
    RecurrenceGradients own;
    if (wanted.input) own.input = unfold(g.input, rows_);
    if (wanted.hx) own.hx = unfold(g.hx, kStates);
    if (wanted.reset_state && given(call_.reset)) own.reset_state = unfold(g.reset_state, kStates);
    return own;
  }

 private:
  // How many dimensions the members take, where an ensemble is mapped.
  static constexpr int64_t kLead = std::is_same_v<Op, EnsembleOp>;
  static constexpr int64_t kStates = kLead + 1;  // the batch's dimension in hx, h_n and reset

  bool maps_weights() const {
    return maps(dims_.weight_ih) || maps(dims_.weight_hh) || maps(dims_.bias_ih) ||
           maps(dims_.bias_hh) || maps(dims_.alpha);
  }

  void take(Tensor& t, Dim& dim) {
    if (!t.defined()) return;
    std::tie(t, dim) = level_.take(t);
    if (!dim) return;
    mapped_ = true;
    calls_ = t.sym_size(*dim);
  }
  void take(OptionalTensor& t, Dim& dim) {
    if (given(t)) take(*t, dim);
  }
  void take(std::vector<Tensor>& list, Dims& dims) {
    dims.resize(list.size());
    for (size_t i = 0; i < list.size(); ++i) take(list[i], dims[i]);
  }
  void take(const std::string&, std::monostate) {}
  void take(const c10::List<bool>&, std::monostate) {}

  // Makes the mapped dimension that of an ensemble's members, or the outer part of it.
  Tensor member(const Tensor& t, Dim dim) const {
    const Tensor first = at_place(t, dim, calls_, 0);
    return kLead > 0 ? first.flatten(0, 1) : first;
  }
  OptionalTensor member(const OptionalTensor& t, Dim dim) const {
    return given(t) ? OptionalTensor(member(*t, dim)) : t;
  }
  std::vector<Tensor> member(std::vector<Tensor> list, const Dims& dims) const {
    for (size_t i = 0; i < list.size(); ++i) list[i] = member(list[i], dims[i]);
    return list;
  }
  template <class Other>
  const Other& member(const Other& value, std::monostate) const {
    return value;
  }
  template <class Struct, class DimsOfIt>
  Struct members(const Struct& s, const DimsOfIt& of) const {
    return spread(s, [&](const auto&... value) {
      return spread(of, [&](const auto&... dims) { return Struct{member(value, dims)...}; });
    });
  }
  KeptArguments ensemble() const {
    TORCH_CHECK_VALUE(calls_ != 0,
                      "vmap must map a call at least where weights are mapped, or their gradients "
                      "are, of a leak, an index, lengths or resets");
    KeptArguments own = members(call_, dims_);
    own.batch_sizes = call_.batch_sizes;
    return own;
  }
  // A result of an ensemble, mapped.
  Tensor back(const Tensor& t) const {
    return level_.give(kLead > 0 ? t.unflatten_symint(0, {calls_, t.sym_size(0) / calls_}) : t, 0);
  }
  std::vector<Tensor> back(std::vector<Tensor> list) const {
    for (Tensor& t : list) t = back(t);
    return list;
  }

  // Makes the mapped dimension the inner part of another: [.., n, ..] to [.., n * calls, ..].
  Tensor fold(const Tensor& t, Dim dim, int64_t place) const {
    return at_place(t, dim, calls_, place + 1).flatten(place, place + 1);
  }
  OptionalTensor fold(const OptionalTensor& t, Dim dim, int64_t place) const {
    return given(t) ? OptionalTensor(fold(*t, dim, place)) : t;
  }
  // The inverse, for results. (Those of no calls do not say how large one is.)
  Tensor apart(const Tensor& t, int64_t place) const {
    const c10::SymInt one = calls_ == 0 ? one_ : t.sym_size(place) / calls_;
    return t.unflatten_symint(place, {one, calls_});
  }
  Tensor unfold(const Tensor& t, int64_t place) const {
    return level_.give(apart(t, place), place + 1);
  }

  // One call with the batches of all calls.
  KeptArguments batch() const {
    KeptArguments own = call_;
    if (!given(call_.index)) {
      own.input = fold(call_.input, dims_.input, rows_);
    } else {
      Tensor index = at_place(*call_.index, dims_.index, calls_, rows_ + 1);
      if (dims_.input) {
        const Tensor tables = call_.input.movedim(*dims_.input, kLead);
        index = shifted(index, calls_, rows_ + 1, tables.sym_size(kLead + 1));
        own.input = tables.flatten(kLead, kLead + 1);
      }
      own.index = index.flatten(rows_, rows_ + 1);
    }
    own.hx = fold(call_.hx, dims_.hx, kStates);
    own.lengths = fold(call_.lengths, dims_.lengths, kLead);
    if (given(call_.batch_sizes)) {
      TORCH_CHECK_VALUE(calls_ != 0, "vmap must map a call at least of a packed sequence");
      own.batch_sizes = call_.batch_sizes->mul(calls_);
    }
    own.reset = fold(call_.reset, dims_.reset, kStates);
    own.reset_state = fold(call_.reset_state, dims_.reset_state, kStates);
    return own;
  }
  KeptResults folded(KeptResults r, const Results<DimsOf>& dims) const {
    r.grad_output = fold(r.grad_output, dims.grad_output, rows_);
    r.grad_h_n = fold(r.grad_h_n, dims.grad_h_n, kStates);
    r.output = fold(r.output, dims.output, rows_);
    for (size_t i = 0; i < r.saved.size(); ++i) r.saved[i] = fold(r.saved[i], dims.saved[i], rows_);
    return r;
  }

  // The states before the steps of a direction whose outputs are h.
  static Tensor before(const KeptArguments& all, const Tensor& h, int64_t d) {
    if (h.sym_size(0) == 0) return h;
    const Tensor start =
        given(all.hx) ? all.hx->narrow(0, d, 1) : at::zeros_like(h.narrow(0, 0, 1));
    const c10::SymInt others = h.sym_size(0) - 1;
    return all.reverse[d] ? at::cat({h.narrow_symint(0, 1, others), start})
                          : at::cat({start, h.narrow_symint(0, 0, others)});
  }

  // The gradients of weights that all calls share, for each call: those of all pre-activations
  // come from one call of the backward op, and those of the weights from products over each call's
  // own rows.
  RecurrenceGradients of_each(const KeptResults& r, const Wanted& wanted) const {
    const KeptArguments all = batch();
    KeptArguments ready = all;
    ready.input = r.output;  // which the op does not read
    ready.weight_ih = {};
    Wanted of_rows;
    of_rows.input = true;
    of_rows.hx = wanted.hx;
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(r, ready, of_rows);

    RecurrenceGradients each;
    if (wanted.input) {
      const bool projected = !all.weight_ih.empty();
      each.input = unfold(projected ? g.input.matmul(at::cat(all.weight_ih)) : g.input, 1);
    }
    if (wanted.hx) each.hx = unfold(g.hx, 1);
    const auto product = [&](const Tensor& grad, const Tensor& rows) {
      return level_.give(at::einsum("tbni,tbnj->nij", {apart(grad, 1), apart(rows, 1)}), 0);
    };
    const int64_t D = static_cast<int64_t>(all.weight_hh.size());
    for (int64_t d = 0; d < D; ++d) {
      const Tensor grad = g.input.chunk(D, -1)[d], h = r.output.chunk(D, -1)[d];
      if (wanted.weight_hh) each.weight_hh.push_back(product(grad, before(all, h, d)));
      if (wanted.weight_ih && !all.weight_ih.empty())
        each.weight_ih.push_back(product(grad, all.input));
      if (wanted.bias)
        each.bias.push_back(level_.give(apart(grad, 1).sum(at::IntArrayRef{0, 1}), 0));
    }
    return each;
  }

  const Level& level_;
  KeptArguments call_;
  Arguments<DimsOf> dims_;
  bool mapped_ = false;  // anything, at this level
  c10::SymInt calls_ = 0;
  int64_t rows_;         // the batch's dimension in input and output
  c10::SymInt one_ = 0;  // its size in one call
};

template <class Op, class Level>
typename Op::Results recurrence(const RecurrenceArguments& a, bool save) {
  const Level level = spread(a, [](const auto&... each) { return Level(each...); });
  return MappedCalls<Op, Level>(level, a).forward(save);
}
template <class Op, class Level>
RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  const Level level = spread(r, [&](const auto&... result) {
    return spread(a, [&](const auto&... each) { return Level(result..., each...); });
  });
  return MappedCalls<Op, Level>(level, a).backward(r, wanted);
}

template <class Level>
void implement_recurrence(torch::Library& m) {
  m.impl("recurrence", Recurrences::forward<recurrence<RecurrenceOp, Level>>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward<RecurrenceOp, Level>>);
  m.impl("recurrence_ensemble", Recurrences::forward<recurrence<EnsembleOp, Level>>);
  m.impl("recurrence_ensemble_backward",
         Recurrences::backward<recurrence_backward<EnsembleOp, Level>>);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatched, m) { implement_recurrence<FuncTorch>(m); }
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement_recurrence<GradsBatched>(m); }

}  // namespace rnnext
