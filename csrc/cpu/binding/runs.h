// Indices sorted once, so that each row of a gradient is a sum over one run of equal ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/binding/memory.h"

namespace rnnext {

// Positions of the indices in the order of their values, equal ones in their own order, and where
// each run of equal values begins.
struct Runs {
  at::Tensor memory;         // of what follows; from the pool, whose pages are there already
  int64_t* order = nullptr;  // [N without padding]
  int64_t* row = nullptr;    // [count] table row of each run
  int64_t* begin = nullptr;  // [count+1] into order
  int64_t count = 0;

  int64_t length() const { return begin[count]; }
};

// A radix sort, least digit first, which is stable. Word holds an index or a position.
template <class Word, class Index>
void sort_runs(Runs& runs, const Index* index, int64_t n, int64_t rows, int64_t padding_idx) {
  struct Entry {
    Word row, position;
  };
  const auto bytes = static_cast<int64_t>(2 * n * sizeof(Entry));
  const at::Tensor scratch = empty_large({bytes}, at::kByte);
  Entry *entries = static_cast<Entry*>(scratch.data_ptr()), *other = entries + n;
  int64_t length = 0;
  for (int64_t i = 0; i < n; ++i) {
    entries[length] = {static_cast<Word>(index[i]), static_cast<Word>(i)};
    length += index[i] != padding_idx;
  }

  int width = 1;
  while (((rows - 1) >> width) > 0) ++width;
  const int widest = n < 2048 ? 7 : 11;  // wide digits take fewer passes, but more counts
  const int passes = (width + widest - 1) / widest, bits = (width + passes - 1) / passes;
  const Word mask = (Word{1} << bits) - 1;
  std::vector<int64_t> place(size_t{1} << bits);
  for (int shift = 0; shift < width; shift += bits) {
    std::fill(place.begin(), place.end(), 0);
    for (int64_t i = 0; i < length; ++i) ++place[(entries[i].row >> shift) & mask];
    int64_t before = 0;
    for (int64_t& count : place) before += std::exchange(count, before);
    for (int64_t i = 0; i < length; ++i)
      other[place[(entries[i].row >> shift) & mask]++] = entries[i];
    std::swap(entries, other);
  }

  for (int64_t i = 0; i < length; ++i) {
    runs.order[i] = static_cast<int64_t>(entries[i].position);
    const bool first = i == 0 || entries[i].row != entries[i - 1].row;
    runs.row[runs.count] = static_cast<int64_t>(entries[i].row);
    runs.begin[runs.count] = i;
    runs.count += first;
  }
  runs.begin[runs.count] = length;
}

// Every index must be in [0, rows); those equal to padding_idx are left out.
template <class Index>
Runs sort_runs(const Index* index, int64_t n, int64_t rows, int64_t padding_idx) {
  Runs runs;
  runs.memory = empty_large({3 * n + 1}, at::kLong);
  runs.order = runs.memory.mutable_data_ptr<int64_t>();
  runs.row = runs.order + n;
  runs.begin = runs.row + n;
  if (std::max(n, rows) <= std::numeric_limits<uint32_t>::max()) {
    sort_runs<uint32_t>(runs, index, n, rows, padding_idx);
  } else {
    sort_runs<uint64_t>(runs, index, n, rows, padding_idx);
  }
  return runs;
}

}  // namespace rnnext
