#include "ops/ensemble.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/parse.h"

namespace rnnext {
namespace {

// The parts of one tensor, for each member.
std::vector<Tensor> parts(const Tensor& t, int64_t M) {
  TORCH_CHECK(t.dim() > 0 && t.size(0) == M, "each tensor of an ensemble must be of ", M,
              " members, as weight_hh is, got shape ", t.sizes());
  return t.unbind(0);
}

// The same tensor of each member's results, as one.
template <class Results, class Get>
Tensor stack_of(const std::vector<Results>& each, const Get& get) {
  std::vector<Tensor> tensors;
  for (const Results& results : each) tensors.push_back(get(results));
  return at::stack(tensors);
}
template <class Results, class Get>
std::vector<Tensor> stacks_of(const std::vector<Results>& each, const Get& get) {
  std::vector<Tensor> stacks;
  for (size_t i = 0; i < get(each[0]).size(); ++i)
    stacks.push_back(stack_of(each, [&](const Results& results) { return get(results)[i]; }));
  return stacks;
}

}  // namespace

std::vector<KeptArguments> members_of(const RecurrenceArguments& a) {
  TORCH_CHECK(
      !a.weight_hh.empty() && a.weight_hh[0].dim() == 3 && a.weight_hh[0].size(0) > 0,
      "weight_hh of an ensemble must hold tensors of shape [M, H, H] with M > 0, got ",
      a.weight_hh.empty() ? std::string("none") : c10::str("shape ", a.weight_hh[0].sizes()));
  const int64_t M = a.weight_hh[0].size(0);
  const KeptArguments whole = kept(a);
  std::vector<std::vector<Tensor>> each;
  with_each(whole, [&](const Tensor& t) {
    each.push_back(parts(t, M));
    return t;
  });
  std::vector<KeptArguments> members;
  members.reserve(M);
  for (int64_t m = 0; m < M; ++m) {
    size_t i = 0;
    members.push_back(with_each(whole, [&](const Tensor&) { return each[i++][m]; }));
  }
  return members;
}

std::vector<MemberResults> members_of(const RecurrenceResults& r, int64_t M) {
  std::vector<MemberResults> members(M);
  const auto split = [&](const Tensor& t, const auto& put) {
    std::vector<Tensor> each = parts(t, M);
    for (int64_t m = 0; m < M; ++m) put(members[m], std::move(each[m]));
  };
  if (given(r.grad_output))
    split(*r.grad_output, [](MemberResults& own, Tensor t) { own.grad_output = std::move(t); });
  if (given(r.grad_h_n))
    split(*r.grad_h_n, [](MemberResults& own, Tensor t) { own.grad_h_n = std::move(t); });
  split(r.output, [](MemberResults& own, Tensor t) { own.output = std::move(t); });
  for (const Tensor& saved : r.saved)
    split(saved, [](MemberResults& own, Tensor t) { own.saved.push_back(std::move(t)); });
  for (MemberResults& own : members) own.output_mask = r.output_mask;
  return members;
}

RecurrenceOp::Results stacked(const std::vector<RecurrenceOp::Results>& each) {
  return {stack_of(each, [](const auto& results) { return std::get<0>(results); }),
          stack_of(each, [](const auto& results) { return std::get<1>(results); }),
          stacks_of(each, [](const auto& results) { return std::get<2>(results); })};
}

RecurrenceGradients stacked(const std::vector<RecurrenceGradients>& each) {
  return {stack_of(each, [](const RecurrenceGradients& g) { return g.input; }),
          stack_of(each, [](const RecurrenceGradients& g) { return g.hx; }),
          stacks_of(each, [](const RecurrenceGradients& g) { return g.weight_ih; }),
          stacks_of(each, [](const RecurrenceGradients& g) { return g.weight_hh; }),
          stacks_of(each, [](const RecurrenceGradients& g) { return g.bias; }),
          stack_of(each, [](const RecurrenceGradients& g) { return g.reset_state; }),
          stacks_of(each, [](const RecurrenceGradients& g) { return g.alpha; })};
}

namespace {

RecurrenceOp::Results ensemble(const RecurrenceArguments& a, bool save) {
  return member_by_member(
      a, [&](const RecurrenceArguments& one) { return call_forward<RecurrenceOp>(one, save); });
}
RecurrenceGradients ensemble_backward(const RecurrenceResults& r, const RecurrenceArguments& a) {
  return member_by_member(r, a, call_backward<RecurrenceBackwardOp, RecurrenceArguments>);
}

}  // namespace

// The CPU has kernels of its own (cpu/binding/ensemble.cpp).
TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("recurrence_ensemble", Recurrences::forward<ensemble>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<ensemble_backward>);
}

}  // namespace rnnext
