// The sort of the embedding's indices, by a team.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/embedding/runs.h"
#include "cpu/runtime/team.h"

namespace rnnext {

// How numbers in 0..rows are split into digits. Wide digits take fewer passes, but more counts.
struct Digits {
  int bits, passes;
  Digits(int64_t n, int64_t rows) {
    int width = 1;
    while (rows >> width > 0) ++width;
    const int widest = n < 2048 ? 7 : 11;
    passes = (width + widest - 1) / widest;
    bits = (width + passes - 1) / passes;
  }
  int64_t values() const { return int64_t{1} << bits; }
};

// An index in the sort. Word holds any number in 0..rows, and any position.
template <class Word>
struct Sorted {
  Word row, position;
};

// A radix sort, least digit first, which is stable; n indices in [0, rows), of which those equal to
// padding_idx are left out. Each worker has a share of every pass. Runs has memory for n indices;
// scratch: 2 n entries, and for each worker two counts for each digit.
template <class Word, class Index>
void sort_runs(const Index* index, int64_t n, int64_t rows, int64_t padding_idx,
               const Digits& digits, void* scratch, Runs& runs, Worker& worker) {
  using Entry = Sorted<Word>;
  Entry *from = static_cast<Entry*>(scratch), *to = from + n;
  const int64_t values = digits.values();
  int64_t* const counts = reinterpret_cast<int64_t*>(to + n);
  int64_t *const own = counts + 2 * worker.rank * values, *const place = own + values;
  const int64_t begin = n * worker.rank / worker.size, end = n * (worker.rank + 1) / worker.size;
  for (int pass = 0; pass < digits.passes; ++pass) {
    const auto digit = [&](const Entry& entry) {
      return static_cast<int64_t>(entry.row >> (pass * digits.bits)) & (values - 1);
    };
    std::fill_n(own, values, 0);
    for (int64_t i = begin; i < end; ++i) {
      if (pass == 0) {
        const int64_t row = index[i] == padding_idx ? rows : index[i];  // padding comes last
        from[i] = {static_cast<Word>(row), static_cast<Word>(i)};
      }
      ++own[digit(from[i])];
    }
    worker.wait();
    int64_t before = 0;
    for (int64_t d = 0; d < values; ++d)
      for (int other = 0; other < worker.size; ++other) {
        if (other == worker.rank) place[d] = before;
        before += counts[2 * other * values + d];
      }
    for (int64_t i = begin; i < end; ++i) to[place[digit(from[i])]++] = from[i];
    worker.wait();
    std::swap(from, to);
  }

  const int64_t length =
      std::ranges::lower_bound(from, from + n, static_cast<Word>(rows), {}, &Entry::row) - from;
  const int64_t stop = std::min(end, length);
  const auto first = [&](int64_t i) { return i == 0 || from[i].row != from[i - 1].row; };
  *own = 0;
  const bool last = worker.rank + 1 == worker.size;
  for (int64_t i = begin; i < stop && !last; ++i) *own += first(i);
  worker.wait();
  int64_t run = 0;
  for (int other = 0; other < worker.rank; ++other) run += counts[2 * other * values];
  for (int64_t i = begin; i < stop; ++i) {
    runs.order[i] = static_cast<int64_t>(from[i].position);
    if (!first(i)) continue;
    runs.row[run] = static_cast<int64_t>(from[i].row);
    runs.begin[run++] = i;
  }
  if (!last) return;
  runs.count = run;
  runs.length = runs.begin[run] = length;
}

}  // namespace rnnext
