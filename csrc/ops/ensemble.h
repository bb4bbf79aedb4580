// Calls of several members at once: split into members' calls, and results joined.
#pragma once

#include <ATen/ops/stack.h>

#include <vector>

#include "ops/check.h"

namespace rnnext {

// The arguments, or the results, of each of M members.
template <class Struct>
std::vector<typename Struct::AsKept> members_of(const Struct& of, int64_t M) {
  const auto whole = kept(of);
  std::vector<std::vector<Tensor>> each;
  with_each(whole, [&](const Tensor& t) {
    check_member(t, M);
    each.push_back(t.unbind(0));
    return t;
  });
  std::vector<typename Struct::AsKept> members;
  members.reserve(M);
  for (int64_t m = 0; m < M; ++m) {
    size_t i = 0;
    members.push_back(with_each(whole, [&](const Tensor&) { return each[i++][m]; }));
  }
  return members;
}

// The results of all members' calls as those of one call.
template <class Struct>
Struct stacked(const std::vector<Struct>& each) {
  std::vector<std::vector<Tensor>> tensors(each.size());  // of each member
  for (size_t m = 0; m < each.size(); ++m)
    with_each(each[m], [&](const Tensor& t) { return tensors[m].emplace_back(t); });
  size_t i = 0;
  return with_each(each[0], [&](const Tensor& t) {
    std::vector<Tensor> all;
    for (const std::vector<Tensor>& own : tensors) all.push_back(own[i]);
    ++i;
    return t.defined() ? at::stack(all) : t;
  });
}

// The ensemble's ops as calls of one member after the other.
inline RecurrenceOp::Results ensemble_in_turn(const RecurrenceArguments& a, bool save) {
  std::vector<RecurrenceOp::Results> each;
  for (const KeptArguments& member : members_of(a, check_members<int64_t>(a)))
    each.push_back(call_forward<RecurrenceOp>(member, save));
  return stacked(each);
}
inline RecurrenceGradients ensemble_backward_in_turn(const BackwardInputs& r,
                                                     const RecurrenceArguments& a,
                                                     const Wanted& wanted) {
  const auto M = check_members<int64_t>(a);
  const std::vector<KeptArguments> members = members_of(a, M);
  const std::vector<KeptBackwardInputs> results = members_of(r, M);
  std::vector<RecurrenceGradients> each;
  for (int64_t m = 0; m < M; ++m)
    each.push_back(call_backward<RecurrenceBackwardOp>(results[m], members[m], wanted));
  return stacked(each);
}

}  // namespace rnnext
