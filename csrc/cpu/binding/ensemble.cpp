// Ensembles on the CPU: each member is a call of its own, and takes one thread.
#include "ops/ensemble.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "cpu/binding/recurrence.h"
#include "ops/autograd.h"

namespace rnnext {
namespace {

// Calls run(m, teams, workspace, worker) for each of M members. A member that does not share a
// round takes `alone` threads. teams_of(m, threads) gives its Teams.
template <class TeamsOf, class Run>
void run_members(int64_t M, int alone, const TeamsOf& teams_of, const Run& run) {
  const int threads = max_threads();
  // In a round each thread has a member of its own. The members left over are a round too, or, if
  // that is faster, run one after the other on all threads.
  int64_t apart = M / threads * threads;
  if (4 * (M - apart) > 3 * alone) apart = M;
  if (apart > 0) {
    std::vector<decltype(teams_of(0, 1))> teams;
    size_t each = 0;
    for (int64_t m = 0; m < apart; ++m)
      each = std::max(each, teams.emplace_back(teams_of(m, 1)).bytes);
    each = (each + 127) / 128 * 128;
    const int team = static_cast<int>(std::min<int64_t>(threads, apart));
    Workspace workspace(team * each);
    std::atomic<int64_t> next{0};
    run_team(team, [&](Worker& worker) {
      for (int64_t m = next++; m < apart; m = next++) {
        Count counts[2];
        Worker own(counts, 0, 1);
        run(m, teams[m], workspace.data() + worker.rank * each, own);
      }
    });
  }
  for (int64_t m = apart; m < M; ++m) {
    const auto teams = teams_of(m, alone);
    Workspace workspace(teams.bytes);
    run_team(alone, [&](Worker& worker) { run(m, teams, workspace.data(), worker); });
  }
}

RecurrenceOp::Results ensemble(const RecurrenceArguments& a, bool save) {
  const auto M = check_members<int64_t>(a);
  const std::vector<KeptArguments> members = members_of(a, M);
  std::deque<CpuCall> calls;  // they stay where they are made
  for (const KeptArguments& member : members) calls.emplace_back(member);
  const CpuCall& first = calls[0];
  const Recurrence& one = first.p;
  const auto options = a.weight_hh[0].options();
  const auto of_members = [&](auto shape) {
    shape.insert(shape.begin(), M);
    return shape;
  };
  const Tensor output = empty_large(of_members(first.s.output_shape()), options);
  const Tensor h_n = empty_large(of_members(first.s.states_shape()), options);
  std::vector<Tensor> saved;
  if (save && first.s.cell.saved > 0)
    saved.push_back(empty_large(of_members(first.s.saved_shape()), options));
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
  const RnnKernels& kernel = kernels_for(first.dtype, one);
  run_members(
      M, threads_for(one, 1),
      [&](int64_t m, int threads) { return forward_teams(calls[m].p, kernel, threads); },
      [&](int64_t m, const auto& teams, char* workspace, Worker& worker) {
        kernel.forward(calls[m].p, teams.of(worker), workspace, worker);
      });
  return {output, h_n, saved};
}

RecurrenceGradients ensemble_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                                      const Wanted& wanted) {
  const auto M = check_members<int64_t>(a);
  const std::vector<KeptArguments> members = members_of(a, M);
  const std::vector<KeptBackwardInputs> results = members_of(r, M);
  std::deque<CpuBackwardCall> calls;
  for (int64_t m = 0; m < M; ++m) calls.emplace_back(results[m], members[m], wanted);
  const CpuBackwardCall& first = calls[0];
  if (!first.s.empty()) {
    const RnnKernels& kernel = kernels_for(first.dtype, first.p);
    run_members(
        M, threads_for(first.p, 3),
        [&](int64_t m, int threads) {
          return backward_teams(calls[m].p, calls[m].out, kernel, threads);
        },
        [&](int64_t m, const auto& teams, char* workspace, Worker& worker) {
          kernel.backward(calls[m].p, calls[m].g, calls[m].out, teams.of(worker), workspace,
                          worker);
        });
  }
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
