// The plan of a call that is never made, in words and numbers, for people and for tests.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "cpu/rnn/plan.h"

namespace rnnext {

struct Question {
  int64_t T = 1, B = 1, I = 1, H = 1, D = 1, layers = 1;
  DType dtype = DType::f32;
  int threads = 1;  // at most
  bool train = false, hx = false;
  std::vector<int64_t> lengths;  // none: all T
};

using Description = std::map<std::string, std::variant<bool, int64_t, double, std::string>>;

// Of the kernels in use on this CPU, planned for `machine`. Throws std::invalid_argument for sizes
// below 1 and lengths that are not B numbers in 0..T.
Description describe_plan(const Question& question, const Machine& machine);

}  // namespace rnnext
