// The rows in which a group keeps what its steps hand on, in either pass.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/work_items.h"

namespace rnnext::RNNEXT_ISA {

// Each group's buffers of rows of T.
template <class T>
struct RowBuffers {
  int64_t stride, rows;  // of a group, whose rows are rounded up to whole blocks of row_block
  int count;
  Arrays<T> arrays;

  RowBuffers(const Plan& plan, int64_t width, int count, Arena& arena, int64_t row_block = 1)
      : stride(scratch_stride<T>(width)),
        rows(divide_up(plan.group_rows, row_block) * row_block),
        count(count),
        arrays(arena.take_padded<T>(count > 0 ? plan.groups : 0, count * rows * stride)) {}
  // The row of the work item's i-th sequence.
  T* row(const WorkItem& item, int buffer, int64_t i = 0) const {
    return arrays[item.group] + (buffer * rows + i) * stride;
  }
  Rows<T> all(const WorkItem& item, int buffer) const { return {row(item, buffer), stride}; }
};

// The output that belongs to a state, which W_hh multiplies.
template <class S>
Vec<Compute<S>> output_of(const Recurrence& p, Vec<Compute<S>> state) {
  if (p.cell != Cell::voltage) return state;
  for_nonlinearity(p.nonlinearity, ForwardVectors<S>{&state, 1});
  return as_stored<S>(state);
}

// Clears the work item's part of the rows of step t, at least those past their sequence's end. A
// row has `parts` times H numbers.
template <class S>
void clear_rows(const Recurrence& p, const WorkItem& item, int64_t t, int64_t present, void* rows,
                int parts = 1) {
  using C = Compute<S>;
  const int64_t from = item.u0 * kPanel<C>, to = min_of(item.u1 * kPanel<C>, p.H);
  const int64_t width = parts * p.H;
  const auto row = [&](int64_t b) {
    return static_cast<S*>(rows) + (p.row(t, b) * p.D + item.d) * width;
  };
  if (p.D == 1 && to - from == p.H) {
    __builtin_memset(row(item.b0), 0, item.size * width * sizeof(S));
  } else if (present < item.size) {
    for (int64_t b = item.b0; b < item.b0 + item.size; ++b)
      for (int k = 0; !p.inside(b, t) && k < parts; ++k)
        __builtin_memset(row(b) + k * p.H + from, 0, (to - from) * sizeof(S));
  }
}

}  // namespace rnnext::RNNEXT_ISA
