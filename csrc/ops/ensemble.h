// Calls of several members at once, taken apart and put together.
#pragma once

#include <vector>

#include "ops/signatures.h"

namespace rnnext {

// RecurrenceResults of a member.
struct MemberResults {
  OptionalTensor grad_output, grad_h_n;
  Tensor output;
  std::vector<Tensor> saved;
  Recurrences::Mask output_mask;

  RecurrenceResults passed() const { return {grad_output, grad_h_n, output, saved, output_mask}; }
};

// What each member's call is given.
std::vector<KeptArguments> members_of(const RecurrenceArguments& a);
std::vector<MemberResults> members_of(const RecurrenceResults& r, int64_t M);

// What the call of all members returns, from what each one's returned.
RecurrenceOp::Results stacked(const std::vector<RecurrenceOp::Results>& each);
RecurrenceGradients stacked(const std::vector<RecurrenceGradients>& each);

template <class Call>
RecurrenceOp::Results member_by_member(const RecurrenceArguments& a, const Call& call) {
  std::vector<RecurrenceOp::Results> each;
  for (const KeptArguments& member : members_of(a)) each.push_back(call(passed(member)));
  return stacked(each);
}
template <class Call>
RecurrenceGradients member_by_member(const RecurrenceResults& r, const RecurrenceArguments& a,
                                     const Call& call) {
  const std::vector<KeptArguments> members = members_of(a);
  const std::vector<MemberResults> results = members_of(r, static_cast<int64_t>(members.size()));
  std::vector<RecurrenceGradients> each;
  for (size_t m = 0; m < members.size(); ++m)
    each.push_back(call(results[m].passed(), passed(members[m])));
  return stacked(each);
}

}  // namespace rnnext
