// Ensembles on the CPU: each member is a call of its own, mostly on one thread.
#include "ops/ensemble.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "cpu/binding/recurrence.h"

namespace rnnext {
namespace {

// Runs the calls of all members, each of so many products as plan_threads has it.
template <class Call>
void run_members(const std::deque<Call>& calls, int products) {
  const RnnKernels& kernel = kernels_for(calls[0].dtype, calls[0].p);
  const auto M = static_cast<int64_t>(calls.size());
  const int threads = max_threads(), alone = plan_threads(calls[0].p, products, threads);
  // In a round each thread has a member of its own. The members left over are a round too, or, if
  // that is faster, run one after the other on all threads.
  int64_t apart = M / threads * threads;
  if (4 * (M - apart) > 3 * alone) apart = M;
  if (apart > 0) {
    std::vector<decltype(calls[0].teams(kernel, 1))> teams;
    size_t each = 0;
    for (int64_t m = 0; m < apart; ++m)
      each = std::max(each, teams.emplace_back(calls[m].teams(kernel, 1)).bytes);
    each = each / 128 * 128 + kFalseSharing;
    const int team = static_cast<int>(std::min<int64_t>(threads, apart));
    Workspace workspace(team * each);
    std::atomic<int64_t> next{0};
    run_team(team, [&](Worker& worker) {
      for (int64_t m = next++; m < apart; m = next++) {
        Count counts[2];
        Worker own(counts, 0, 1);
        calls[m].run(kernel, teams[m].of(own), workspace.data() + worker.rank * each, own);
      }
    });
  }
  for (int64_t m = apart; m < M; ++m) run_call(calls[m], kernel, alone);
}

RecurrenceOp::Results ensemble(const RecurrenceArguments& a, bool save) {
  const auto M = check_members<int64_t>(a);
  const std::vector<KeptArguments> members = members_of(a, M);
  std::deque<CpuCall> calls;  // they stay where they are made
  for (const KeptArguments& member : members) calls.emplace_back(member);
  const CpuCall& first = calls[0];
  const auto [output, h_n, saved] = first.s.results(save, [&](auto shape) {
    shape.insert(shape.begin(), M);
    return empty_large(shape, a.weight_hh[0].options());
  });
  if (first.s.empty()) {
    copy_hx(h_n, a.hx);
    return {output, h_n, saved};
  }
  const auto part = [&](const Tensor& of, int64_t m) {
    return static_cast<char*>(of.data_ptr()) + m * static_cast<int64_t>(of.nbytes()) / M;
  };
  for (int64_t m = 0; m < M; ++m) {
    Recurrence& p = calls[m].p;
    p.output = part(output, m);
    p.h_n = part(h_n, m);
    if (!saved.empty()) p.saved = part(saved[0], m);
  }
  run_members(calls, 1);
  return {output, h_n, saved};
}

RecurrenceGradients ensemble_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                                      const Wanted& wanted) {
  const auto M = check_members<int64_t>(a);
  const std::vector<KeptArguments> members = members_of(a, M);
  const std::vector<KeptBackwardInputs> results = members_of(r, M);
  std::deque<CpuBackwardCall> calls;
  for (int64_t m = 0; m < M; ++m) calls.emplace_back(results[m], members[m], wanted);
  if (!calls[0].s.empty()) run_members(calls, kBackwardProducts);
  std::vector<RecurrenceGradients> gradients;
  for (int64_t m = 0; m < M; ++m) gradients.push_back(calls[m].gradients(members[m]));
  return stacked(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CPU, m) {
  m.impl("recurrence_ensemble", Recurrences::forward<ensemble>);
  m.impl("recurrence_ensemble_backward", Recurrences::backward<ensemble_backward>);
}

}  // namespace rnnext
