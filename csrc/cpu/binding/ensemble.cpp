// Ensembles on the CPU: each member is a call of its own, a member a thread.
#include "ops/ensemble.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "cpu/binding/recurrence.h"

namespace rnnext {
namespace {

// run(m) for each of M members, one of which takes `alone` threads if it runs by itself.
template <class Run>
void run_members(int64_t M, int alone, const Run& run) {
  const int threads = max_threads();
  // Rounds in which each thread has a member of its own. Those that are left are a round as well,
  // or, where they are sooner done so, share all threads one after the other.
  int64_t apart = M / threads * threads;
  if (4 * (M - apart) > 3 * alone) apart = M;
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> errors(apart);  // which a team cannot throw
  run_team(static_cast<int>(std::clamp<int64_t>(apart, 1, threads)), [&](const Worker&) {
    const Alone without_team;
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (int64_t m = next++; m < apart; m = next++) {
      try {
        run(m);
      } catch (...) {
        errors[m] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  for (int64_t m = apart; m < M; ++m) run(m);
}

RecurrenceOp::Results ensemble(const RecurrenceArguments& a, bool save) {
  const std::vector<KeptArguments> members = members_of(a);
  const auto M = static_cast<int64_t>(members.size());
  const RecurrenceArguments one = passed(members[0]);
  const Call first(one);
  const auto results = empty_results(first, one, save, M);
  run_members(M, threads_for(first.p, 1), [&](int64_t m) {
    const auto& [output, h_n, saved] = results;
    const RecurrenceArguments own = passed(members[m]);
    Call call(own);
    run_call(call, own,
             {output[m], h_n[m], saved.empty() ? saved : std::vector<Tensor>{saved[0][m]}});
  });
  return results;
}

RecurrenceGradients ensemble_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                      const Wanted& wanted) {
  const std::vector<KeptArguments> members = members_of(a);
  const auto M = static_cast<int64_t>(members.size());
  const std::vector<KeptResults> results = members_of(r, M);
  std::vector<RecurrenceGradients> gradients(M);
  run_members(M, threads_for(Call(passed(members[0])).p, 3), [&](int64_t m) {
    gradients[m] = recurrence_backward(passed(results[m]), passed(members[m]), wanted);
  });
  return stacked(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CPU, m) {
  m.impl("recurrence_ensemble", Recurrences::forward<ensemble>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<ensemble_backward>);
}

}  // namespace rnnext
