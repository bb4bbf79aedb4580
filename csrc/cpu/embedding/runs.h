#pragma once

#include <cstdint>

namespace rnnext {

// An embedding's indices in the order of their values, so that each row of its gradient is a sum
// over one run.
struct Runs {
  int64_t* order;  // [length] positions of the indices, equal ones in their own order
  int64_t* row;    // [count] the index that a run consists of
  int64_t* begin;  // [count+1] where each run begins in `order`
  int64_t count = 0, length = 0;
};

}  // namespace rnnext
