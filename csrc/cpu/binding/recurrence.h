// A call of the recurrence on the CPU, for ops, ensembles and the Stepper: the choice of kernels
// and threads, the checked call, its memory and its run; and its plan in words, for explain.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <map>
#include <string>
#include <variant>

#include "cpu/isa/dispatch.h"
#include "cpu/runtime/memory.h"
#include "ops/parse.h"

namespace rnnext {

// The kernels for a call's dtype and sizes. torch.set_float32_matmul_precision lets products of
// float32 take bfloat16 operands, where that is faster.
const RnnKernels& kernels_for(DType dtype, const Recurrence& p,
                              const Machine& machine = this_machine());

// Plans for each team that a call may get, of 1 to `threads` threads, since fewer may come than
// were asked for, and how much memory the largest of them needs.
template <class Plan>
struct Teams {
  c10::SmallVector<Plan, 2> plans;
  size_t bytes = 0;

  template <class PlanOf, class BytesOf>
  Teams(int threads, const PlanOf& plan_of, const BytesOf& bytes_of) {
    for (int size = 1; size <= threads; ++size) {
      plans.push_back(plan_of(size));
      bytes = std::max(bytes, bytes_of(plans.back(), size));
    }
  }
  int threads() const { return static_cast<int>(plans.size()); }
  const Plan& of(const Worker& worker) const { return plans[worker.size - 1]; }
  template <class Task>
  void run(int n, const Task& task) const {
    run_team(n, task, plans[n - 1].waits);
  }
};
Teams<ForwardPlan> forward_teams(const Recurrence& p, const RnnKernels& kernel, int threads);

// A call whose arguments have been checked, and the struct that its kernel takes.
struct CpuCall : ParsedCall {
  Recurrence p;

  explicit CpuCall(const RecurrenceArguments& a);
  auto teams(const RnnKernels& kernel, int threads) const {
    return forward_teams(p, kernel, threads);
  }
  void run(const RnnKernels& kernel, const ForwardPlan& plan, char* workspace,
           Worker& worker) const {
    kernel.forward(p, plan, workspace, worker);
  }
};

// A backward call with memory for its results. Run it, unless empty, then call gradients() once.
struct CpuBackwardCall : CpuCall {
  RecurrenceGrad g;
  RecurrenceGradOut out;

  CpuBackwardCall(const BackwardInputs& r, const RecurrenceArguments& a, const Wanted& wanted);
  Teams<BackwardPlan> teams(const RnnKernels& kernel, int threads) const;
  void run(const RnnKernels& kernel, const BackwardPlan& plan, char* workspace,
           Worker& worker) const {
    kernel.backward(p, g, out, plan, workspace, worker);
  }
  RecurrenceGradients gradients(const RecurrenceArguments& a);

 private:
  RecurrenceGradients grad_;
  Tensor grad_pre_;  // defined if the input is pre-activations, and its gradient is wanted
};

// Memory for one call. Small calls, such as one step, take it from the stack.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    if (bytes > sizeof small_) large_ = empty_large({static_cast<int64_t>(bytes)}, at::kByte);
  }
  char* data() { return large_.defined() ? static_cast<char*>(large_.data_ptr()) : small_; }

 private:
  alignas(64) char small_[32 << 10];
  Tensor large_;
};

template <class Call>
void run_call(const Call& call, const RnnKernels& kernel, int threads) {
  const auto teams = call.teams(kernel, threads);
  Workspace workspace(teams.bytes);
  teams.run(threads,
            [&](Worker& worker) { call.run(kernel, teams.of(worker), workspace.data(), worker); });
}

// The plan of a call that is never made, as names and values, for people and for tests: for
// `machine`, with the kernels in use on this CPU. layer_count is for calls without gradients.
using Description = std::map<std::string, std::variant<bool, int64_t, double, std::string>>;
Description describe_plan(const Recurrence& p, int layer_count, DType dtype, int most_threads,
                          bool train, const Machine& machine);

}  // namespace rnnext
