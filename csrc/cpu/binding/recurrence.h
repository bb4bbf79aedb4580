// What every call of the recurrence on the CPU asks first: which kernels, how many threads, and
// whether its leak is one; and a call as it is prepared before it runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <map>
#include <string>
#include <variant>

#include "cpu/binding/memory.h"
#include "cpu/runtime/dispatch.h"
#include "ops/check.h"

namespace rnnext {

// torch.set_float32_matmul_precision("medium") lets products of float32 take bfloat16 factors.
const RnnKernels& kernels_for(DType dtype);

// products: matrix products of the call, 1 forward.
int threads_for(const Recurrence& p, int products);
// As many of these threads as the plan of a forward call has work for: one that finds none is not
// called.
int busy_threads(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                 int threads);

struct Call : ParsedCall {
  Recurrence p;

  Call() = default;
  explicit Call(const RecurrenceArguments& a);
};
// Memory for the results of a call, or of as many members' calls.
RecurrenceOp::Results empty_results(const Call& call, const RecurrenceArguments& a, bool save,
                                    at::IntArrayRef members = {});
void run_call(Call& call, const RecurrenceArguments& a, const RecurrenceOp::Results& results);
// The backward op.
RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                        const Wanted& wanted);

// The plan of a call that is never made, in words and numbers, for people and for tests: of the
// kernels in use on this CPU, planned for `machine`; layer_count is for calls without gradients.
using Description = std::map<std::string, std::variant<bool, int64_t, double, std::string>>;
Description describe_plan(Recurrence p, int layer_count, DType dtype, int most_threads, bool train,
                          const Machine& machine);

// Memory for one call: small calls, one step at a time, take it from the stack.
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

}  // namespace rnnext
