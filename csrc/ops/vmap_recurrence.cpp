// The recurrence's ops under vmap. Where no weight is mapped, the mapped calls are more sequences:
// the batch grows. Where weights are, they are an ensemble.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "ops/ensemble.h"
#include "ops/signatures.h"
#include "ops/vmap.h"

namespace rnnext {
namespace {

using Dims = std::vector<Dim>;  // of a list's tensors

// What is mapped of an argument.
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
    zip(call_, [&](auto& value, auto& dims) { take(value, dims); });
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

  RecurrenceGradients backward(const RecurrenceResults& results) {
    Results r{{results.grad_output, results.grad_h_n, results.output, results.saved.vec(),
               results.output_mask}};
    take(r.own.grad_output, r.grad_output);
    take(r.own.grad_h_n, r.grad_h_n);
    take(r.own.output, r.output);
    take(r.own.saved, r.saved);
    using Backward = typename Op::Backward;
    if (!mapped_) return call_backward<Backward>(r.own.passed(), call_);

    const auto [want_input, want_hx, want_weights, want_bias, want_reset_state, want_alpha] =
        results.output_mask;
    const bool leak = !call_.alpha.empty();
    if (maps_weights() || want_weights || want_bias || (want_alpha && leak) ||
        (want_input && given(call_.index))) {
      if (maps_weights() || kLead > 0 || leak || given(call_.lengths) || given(call_.batch_sizes) ||
          given(call_.reset) || given(call_.index))
        return of_ensemble(r);
      return of_each(r);
    }
    const RecurrenceGradients g = call_backward<Backward>(folded(r).passed(), batch());
    RecurrenceGradients own{g.input, g.hx, {}, {}, {}, g.reset_state, {}};
    if (want_input) own.input = unfold(g.input, rows_);
    if (want_hx) own.hx = unfold(g.hx, kStates);
    if (want_reset_state && given(call_.reset)) own.reset_state = unfold(g.reset_state, kStates);
    return own;
  }

 private:
  // How many dimensions the members take, where an ensemble is mapped.
  static constexpr int64_t kLead = std::is_same_v<Op, EnsembleOp>;
  static constexpr int64_t kStates = kLead + 1;  // the batch's dimension in hx, h_n and reset

  // What the backward op has beside the arguments, and what is mapped of it.
  struct Results {
    MemberResults own;
    Dim grad_output = {}, grad_h_n = {}, output = {};
    Dims saved = {};
  };

  bool maps_weights() const {
    return maps(dims_.weight_ih) || maps(dims_.weight_hh) || maps(dims_.bias_ih) ||
           maps(dims_.bias_hh) || maps(dims_.alpha);
  }

  // f(argument, what is mapped of it) of each.
  template <class F>
  void zip(KeptArguments& a, const F& f) {
    spread(a,
           [&](auto&... value) { spread(dims_, [&](auto&... dims) { (f(value, dims), ...); }); });
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

  // The mapped dimension as that of an ensemble's members, or as the outer part of it.
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
  KeptArguments ensemble() const {
    TORCH_CHECK_VALUE(calls_ != 0,
                      "vmap must map a call at least where weights are mapped, or their gradients "
                      "are, of a leak, an index, lengths or resets");
    KeptArguments own = spread(call_, [&](const auto&... value) {
      return spread(dims_,
                    [&](const auto&... dims) { return KeptArguments{member(value, dims)...}; });
    });
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

  // The mapped dimension as the inner part of another: [.., n, ..] to [.., n * calls, ..].
  Tensor fold(const Tensor& t, Dim dim, int64_t place) const {
    return at_place(t, dim, calls_, place + 1).flatten(place, place + 1);
  }
  OptionalTensor fold(const OptionalTensor& t, Dim dim, int64_t place) const {
    return given(t) ? OptionalTensor(fold(*t, dim, place)) : t;
  }
  // The inverse, and mapped. (A result of no calls does not say how large one is.)
  Tensor apart(const Tensor& t, int64_t place) const {
    const c10::SymInt one = calls_ == 0 ? one_ : t.sym_size(place) / calls_;
    return t.unflatten_symint(place, {one, calls_});
  }
  Tensor unfold(const Tensor& t, int64_t place) const {
    return level_.give(apart(t, place), place + 1);
  }

  // The call with a batch of all calls'.
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
  MemberResults folded(const Results& r) const {
    MemberResults own = r.own;
    own.grad_output = fold(own.grad_output, r.grad_output, rows_);
    own.grad_h_n = fold(own.grad_h_n, r.grad_h_n, kStates);
    own.output = fold(own.output, r.output, rows_);
    for (size_t i = 0; i < own.saved.size(); ++i)
      own.saved[i] = fold(own.saved[i], r.saved[i], rows_);
    return own;
  }

  RecurrenceGradients of_ensemble(const Results& r) const {
    const MemberResults own{member(r.own.grad_output, r.grad_output),
                            member(r.own.grad_h_n, r.grad_h_n), member(r.own.output, r.output),
                            member(r.own.saved, r.saved), r.own.output_mask};
    RecurrenceGradients g = call_backward<EnsembleBackwardOp>(own.passed(), ensemble());
    return spread_gradients(
        g, [&](auto&... each) { return RecurrenceGradients{back(std::move(each))...}; });
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
  RecurrenceGradients of_each(const Results& r) const {
    const auto [want_input, want_hx, want_weights, want_bias, _, __] = r.own.output_mask;
    const KeptArguments all = batch();
    MemberResults own = folded(r);
    own.output_mask = {true, want_hx, false, false, false, false};
    KeptArguments ready = all;
    ready.input = own.output;  // which is not read
    ready.weight_ih = {};
    const RecurrenceGradients g = call_backward<RecurrenceBackwardOp>(own.passed(), ready);

    const Tensor none = g.input.new_empty({0});
    RecurrenceGradients each{none, none, {}, {}, {}, none, {}};
    if (want_input) {
      const bool projected = !all.weight_ih.empty();
      each.input = unfold(projected ? g.input.matmul(at::cat(all.weight_ih)) : g.input, 1);
    }
    if (want_hx) each.hx = unfold(g.hx, 1);
    const auto product = [&](const Tensor& grad, const Tensor& rows) {
      return level_.give(at::einsum("tbni,tbnj->nij", {apart(grad, 1), apart(rows, 1)}), 0);
    };
    const int64_t D = static_cast<int64_t>(all.weight_hh.size());
    for (int64_t d = 0; d < D; ++d) {
      const Tensor grad = g.input.chunk(D, -1)[d], h = own.output.chunk(D, -1)[d];
      if (want_weights) {
        each.weight_hh.push_back(product(grad, before(all, h, d)));
        if (!all.weight_ih.empty()) each.weight_ih.push_back(product(grad, all.input));
      }
      if (want_bias) each.bias.push_back(level_.give(apart(grad, 1).sum(at::IntArrayRef{0, 1}), 0));
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
RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a) {
  const Level level = spread(a, [&](const auto&... each) {
    return Level(r.grad_output, r.grad_h_n, r.output, r.saved, each...);
  });
  return MappedCalls<Op, Level>(level, a).backward(r);
}

template <class Level>
void implement(torch::Library& m) {
  m.impl("recurrence", Recurrences::forward<recurrence<RecurrenceOp, Level>>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward<RecurrenceOp, Level>>);
  m.impl("recurrence_ensemble", Recurrences::forward<recurrence<EnsembleOp, Level>>);
  m.impl("recurrence_ensemble_backward",
         Recurrences::backward<recurrence_backward<EnsembleOp, Level>>);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatched, m) { implement<FuncTorch>(m); }
TORCH_LIBRARY_IMPL(rnnext, Batched, m) { implement<GradsBatched>(m); }

}  // namespace rnnext
