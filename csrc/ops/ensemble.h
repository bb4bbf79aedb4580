// Calls of several members at once, taken apart and put together.
#pragma once

#include <ATen/ops/stack.h>

#include <vector>

#include "ops/check.h"

namespace rnnext {

// Each member's part of one tensor.
inline std::vector<Tensor> parts(const Tensor& t, int64_t M) {
  check_member(t, M);
  return t.unbind(0);
}

// The arguments, or the results, of each member.
template <class Struct>
std::vector<Struct> apart(const Struct& whole, int64_t M) {
  std::vector<std::vector<Tensor>> each;
  with_each(whole, [&](const Tensor& t) {
    each.push_back(parts(t, M));
    return t;
  });
  std::vector<Struct> members;
  members.reserve(M);
  for (int64_t m = 0; m < M; ++m) {
    size_t i = 0;
    members.push_back(with_each(whole, [&](const Tensor&) { return each[i++][m]; }));
  }
  return members;
}

// Joins the same tensor, or list, of all members' results.
template <class Results, class Get>
auto stack_of(const std::vector<Results>& each, const Get& get) {
  std::decay_t<decltype(get(each[0]))> all = get(each[0]);
  size_t i = 0;
  for (Tensor& t : tensors_of(all)) {
    std::vector<Tensor> tensors;
    for (const Results& results : each) {
      auto one = get(results);
      tensors.push_back(tensors_of(one)[i]);
    }
    t = t.defined() ? at::stack(tensors) : t;
    ++i;
  }
  return all;
}

// The arguments of each member's call.
inline std::vector<KeptArguments> members_of(const RecurrenceArguments& a) {
  return apart(kept(a), check_members<int64_t>(a));
}

inline std::vector<KeptResults> members_of(const RecurrenceResults& r, int64_t M) {
  return apart(kept(r), M);
}

// The results of the call of all members, from those of each one's.
inline RecurrenceOp::Results stacked(const std::vector<RecurrenceOp::Results>& each) {
  return {stack_of(each, [](const auto& results) { return std::get<0>(results); }),
          stack_of(each, [](const auto& results) { return std::get<1>(results); }),
          stack_of(each, [](const auto& results) { return std::get<2>(results); })};
}

inline RecurrenceGradients stacked(const std::vector<RecurrenceGradients>& each) {
#define RNNEXT_STACK(type, name, ...) stack_of(each, [](const auto& g) { return g.name; }),
  return {RNNEXT_RECURRENCE_GRADIENTS(RNNEXT_STACK)};
#undef RNNEXT_STACK
}

template <class Call>
RecurrenceOp::Results member_by_member(const RecurrenceArguments& a, const Call& call) {
  std::vector<RecurrenceOp::Results> each;
  for (const KeptArguments& member : members_of(a)) each.push_back(call(passed(member)));
  return stacked(each);
}
template <class Call>
RecurrenceGradients member_by_member(const RecurrenceResults& r, const RecurrenceArguments& a,
                                     const Wanted& wanted, const Call& call) {
  const std::vector<KeptArguments> members = members_of(a);
  const std::vector<KeptResults> results = members_of(r, static_cast<int64_t>(members.size()));
  std::vector<RecurrenceGradients> each;
  for (size_t m = 0; m < members.size(); ++m)
    each.push_back(call(passed(results[m]), passed(members[m]), wanted));
  return stacked(each);
}

}  // namespace rnnext
