// The plan of a call that is never made, as names and values, for people and for tests.
#pragma once

#include <map>
#include <string>
#include <variant>

#include "cpu/rnn/plan.h"

namespace rnnext {

using Description = std::map<std::string, std::variant<bool, int64_t, double, std::string>>;

// Plans for `machine`, with the kernels in use on this CPU. layer_count is for calls without
// gradients.
Description describe_plan(const Recurrence& p, int layer_count, DType dtype, int most_threads,
                          bool train, const Machine& machine);

}  // namespace rnnext
