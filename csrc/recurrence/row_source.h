// Where a step's input row comes from.
#pragma once

#include "recurrence/timeline.h"

namespace rnnext {

// Rows of features, of precomputed pre-activations, or of a table. Strides count elements.
struct RowSource {
  const void* data = nullptr;      // null: zeros
  int64_t stride_t = 0;            // not used for PackedSequences and tables
  int64_t stride_b = 0;            // for PackedSequences and tables: from row to row
  const int64_t* index = nullptr;  // [N] the table's row of each row; null: no table

  // How many elements come before the row of sequence b at step t, whose number `row` is
  // time.row(t, b).
  RNNEXT_BOTH int64_t offset(const Timeline& time, int64_t t, int64_t b, int64_t row) const {
    if (index) return index[row] * stride_b;
    return time.step_row ? row * stride_b : t * stride_t + b * stride_b;
  }
  RNNEXT_BOTH int64_t offset(const Timeline& time, int64_t t, int64_t b) const {
    return offset(time, t, b, time.row(t, b));
  }
  // Whether the rows of sequences [b0, b1) and steps [t, t + n) follow each other at one stride,
  // and at which.
  RNNEXT_BOTH bool direct(const Timeline& time, int64_t n, int64_t b0, int64_t b1,
                          int64_t* stride) const {
    if (index) return false;
    const bool one_sequence = time.B == 1 && !time.step_row;
    *stride = one_sequence ? stride_t : stride_b;
    const bool whole = b0 == 0 && b1 == time.B;
    return n == 1 || one_sequence || (whole && (time.step_row || stride_t == time.B * stride_b));
  }
};

}  // namespace rnnext
