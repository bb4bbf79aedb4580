// Which steps each sequence of a call has, where their rows and inputs lie, and where a direction's
// pass through a sequence starts and ends: all that is known of ragged batches.
#pragma once

#include <cstdint>

#include "recurrence/nonlinearity.h"

namespace rnnext {

constexpr int kDirections = 2;  // at most

// One direction's way through a sequence: its steps are 0 to length - 1, backwards if reverse.
template <class Int>
struct Span {
  Int length;
  bool reverse;

  RNNEXT_BOTH bool inside(Int t) const { return t < length; }
  // Whether t is the step that it begins with, from hx, or ends with, in h_n.
  RNNEXT_BOTH bool starts(Int t) const { return t == (reverse ? length - 1 : 0); }
  RNNEXT_BOTH bool ends(Int t) const { return t == (reverse ? 0 : length - 1); }
  // Whether t is the step before the first.
  RNNEXT_BOTH bool precedes(Int t) const { return t == (reverse ? length : -1); }
};

// T steps of B sequences. A "row" is one step of one sequence; row (t, b) is number t * B + b, or,
// in a PackedSequence, step_row[t] + b.
struct Timeline {
  int64_t T = 0, B = 0;
  bool reverse[kDirections] = {false, false};
  const int64_t* step_row = nullptr;  // [T+1] of a PackedSequence: step t's first row
  const int64_t* lengths = nullptr;   // [B] steps of each sequence; null: all T
  // [T,B] whether an episode begins with a step: either direction, as it enters another episode
  // there, starts anew. A PackedSequence has none.
  const bool* reset = nullptr;

  RNNEXT_BOTH int64_t first_row(int64_t t) const { return step_row ? step_row[t] : t * B; }
  RNNEXT_BOTH int64_t row(int64_t t, int64_t b) const { return first_row(t) + b; }
  RNNEXT_BOTH int64_t rows() const { return first_row(T); }
  // Sequences that have a row in memory at step t.
  RNNEXT_BOTH int64_t batch(int64_t t) const {
    return step_row ? step_row[t + 1] - step_row[t] : B;
  }
  RNNEXT_BOTH int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }

  // Whether some sequence may lack a step that others have.
  RNNEXT_BOTH bool ragged() const { return lengths != nullptr; }
  // Whether each sequence goes from hx to h_n through all T steps.
  RNNEXT_BOTH bool plain() const { return !lengths && !reset; }
  RNNEXT_BOTH Span<int64_t> span(int d, int64_t b) const { return {length(b), reverse[d]}; }
  RNNEXT_BOTH bool inside(int64_t b, int64_t t) const { return t < length(b); }
  RNNEXT_BOTH bool starts(int d, int64_t b, int64_t t) const { return span(d, b).starts(t); }
  RNNEXT_BOTH bool ends(int d, int64_t b, int64_t t) const { return span(d, b).ends(t); }
  // Whether direction d begins an episode with step t of sequence b: it drops the state, even hx.
  RNNEXT_BOTH bool restarts(int d, int64_t b, int64_t t) const {
    return restarts(span(d, b), b, t);
  }
  RNNEXT_BOTH bool restarts(const Span<int64_t>& span, int64_t b, int64_t t) const {
    if (!reset) return false;
    const int64_t mark = span.reverse ? t + 1 : t;
    return mark < span.length && reset[mark * B + b];
  }
  // The step that direction d takes before t.
  RNNEXT_BOTH int64_t before(int d, int64_t t) const { return reverse[d] ? t + 1 : t - 1; }
};

// Rows of features, of precomputed pre-activations, or of a table. Strides count elements.
struct RowSource {
  const void* data = nullptr;      // null: zeros
  int64_t stride_t = 0;            // not used for PackedSequences and tables
  int64_t stride_b = 0;            // for PackedSequences and tables: from row to row
  const int64_t* index = nullptr;  // [N] the table's row of each row; null: no table

  // How many elements come before the row of sequence b at step t: row number time.row(t, b).
  RNNEXT_BOTH int64_t offset(const Timeline& time, int64_t t, int64_t b, int64_t row) const {
    if (index) return index[row] * stride_b;
    return time.step_row ? row * stride_b : t * stride_t + b * stride_b;
  }
  RNNEXT_BOTH int64_t offset(const Timeline& time, int64_t t, int64_t b) const {
    return offset(time, t, b, time.row(t, b));
  }
  // Whether rows of sequences [b0, b1) and steps [t, t + n) lie at one stride, and at which.
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
