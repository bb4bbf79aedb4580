#pragma once

#include "cpu/rnn/tuning.h"

namespace rnnext {

// An embedding's indices in the order of their values: a row of its gradient sums over one run.
struct Runs {
  int64_t* order;  // [length] positions of the indices, equal ones in their own order
  int64_t* row;    // [count] the index that a run consists of
  int64_t* begin;  // [count+1] where each run begins in `order`
  int64_t count = 0, length = 0;
};

// Fetches a row that will be read.
[[gnu::always_inline]] inline void prefetch_row(const void* row, int64_t bytes) {
#pragma GCC unroll 1
  for (int64_t at = 0; at < bytes && at < 1024; at += 64)
    __builtin_prefetch(static_cast<const char*>(row) + at);
}

}  // namespace rnnext
