// The embedding gather on the CPU and its gradient. The indices are sorted once, stably, so that
// each row of the gradient is a sum over one run: no atomics, the same bits on any thread count.
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/embedding/sort.h"
#include "cpu/isa/dispatch.h"
#include "cpu/runtime/memory.h"
#include "ops/check.h"

namespace rnnext {
namespace {

template <class F>
void parallel(int64_t bytes, const F& f) {
  const int threads =
      static_cast<int>(std::clamp<int64_t>(bytes / kBytesPerThread, 1, max_threads()));
  run_team(threads, [&](Worker& worker) { f(worker.rank, worker.size); });
}

// Raises an IndexError that names the first index that is no row.
template <class Index>
void check_bounds(const Index* index, const Tensor& indices, int64_t rows) {
  // One comparison: as an unsigned number, a negative one is too large.
  const Index* const end = index + indices.numel();
  const Index* const found = std::find_if(index, end, [&](int64_t row) {
    return static_cast<uint64_t>(row) >= static_cast<uint64_t>(rows);
  });
  if (found == end) return;
  std::vector<int64_t> at(indices.dim());
  for (int64_t d = indices.dim() - 1, position = found - index; d >= 0; --d) {
    at[d] = position % indices.size(d);
    position /= indices.size(d);
  }
  const std::string where = at.empty() ? "" : c10::str(" at [", c10::Join(", ", at), "]");
  TORCH_CHECK_INDEX(false, "index out of range in self: ", *found, where,
                    ", expected 0 <= index < ", rows);
}

template <class Index>
void gather(const Index* index, const Tensor& weight, const Tensor& indices, const Tensor& out) {
  check_bounds(index, indices, weight.size(0));
  if (out.numel() == 0) return;  // it may have no memory
  const int64_t n = indices.numel(), D = weight.size(1), size = weight.element_size();
  const int64_t row_stride = weight.stride(0) * size, column_stride = weight.stride(1) * size;
  const char* from = static_cast<const char*>(weight.const_data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  parallel(2 * n * D * size, [&](int rank, int threads) {
    const int64_t end = n * (rank + 1) / threads;
    for (int64_t i = n * rank / threads; i < end; ++i) {
      if (i + kGatherAhead < end)
        prefetch_row(from + index[i + kGatherAhead] * row_stride, D * size);
      const char* row = from + index[i] * row_stride;
      char* dst = to + i * D * size;
      if (column_stride == size) {
        std::memcpy(dst, row, D * size);
      } else {
        for (int64_t j = 0; j < D; ++j) std::memcpy(dst + j * size, row + j * column_stride, size);
      }
    }
  });
}

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t, bool, bool) {
  check_embedding(weight, indices);
  std::vector<int64_t> shape = indices.sizes().vec();
  shape.push_back(weight.size(1));
  const Tensor out = empty_large(shape, weight.options());
  const Tensor index = indices.contiguous();
  AT_DISPATCH_INDEX_TYPES(index.scalar_type(), "embedding",
                          [&] { gather(index.const_data_ptr<index_t>(), weight, index, out); });
  return out;
}

// Writes the rows of a table that occur among n tokens, ascending, to rows [most], and for each
// token which of these it is to index [n]. Returns how many occur, or -1 if more than `most` do.
// (Rows are marked first: a branch on whether a row is new, unpredictable, takes twice as long.)
template <class Index>
int64_t number_rows(const Index* token, int64_t n, int64_t num_rows, int64_t most, int64_t* rows,
                    int64_t* index) {
  const int64_t words = num_rows / 64 + 1;
  const Tensor marks = at::zeros({words}, at::kLong), numbers = empty_large({num_rows}, at::kInt);
  auto* const mark = reinterpret_cast<uint64_t*>(marks.mutable_data_ptr<int64_t>());
  int32_t* const number = numbers.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<uint64_t>(token[i]);
    mark[row / 64] |= uint64_t{1} << row % 64;
  }
  int64_t count = 0;
  for (int64_t word = 0; word < words; ++word)
    for (uint64_t left = mark[word]; left != 0; left &= left - 1) {
      if (count == most) return -1;
      const int64_t row = 64 * word + __builtin_ctzll(left);
      number[row] = static_cast<int32_t>(count);
      rows[count++] = row;
    }
  for (int64_t i = 0; i < n; ++i) index[i] = number[token[i]];
  return count;
}

std::tuple<Tensor, Tensor> occurring(const Tensor& tokens, int64_t num_rows, int64_t most) {
  check_index_dtype(tokens);
  TORCH_CHECK_VALUE(num_rows >= 0 && num_rows < std::numeric_limits<int32_t>::max(),
                    "num_rows must be in 0..2^31 - 2, got ", num_rows);
  TORCH_CHECK_VALUE(most >= 0, "most must not be negative, got ", most);
  const Tensor from = tokens.contiguous();
  const int64_t n = from.numel();
  most = std::min({most, n, num_rows});
  const Tensor index = empty_large(tokens.sizes(), tokens.options().dtype(at::kLong));
  const Tensor rows = at::empty({most}, index.options());
  const int64_t count = AT_DISPATCH_INDEX_TYPES(from.scalar_type(), "occurring", [&] {
    const auto* const token = from.const_data_ptr<index_t>();
    check_bounds(token, from, num_rows);
    return number_rows(token, n, num_rows, most, rows.mutable_data_ptr<int64_t>(),
                       index.mutable_data_ptr<int64_t>());
  });
  if (count < 0) return {at::empty({0}, index.options()), index.fill_(-1)};
  return {rows.narrow(0, 0, count).clone(), index};
}

// The runs of indices, and the memory that they lie in.
struct SortedIndices {
  Tensor memory;  // from the pool, whose pages need no page faults
  Runs runs;
};

template <class Word, class Index>
SortedIndices sort_indices(const Index* index, int64_t n, int64_t rows, int64_t padding_idx) {
  const Digits digits(n, rows);
  const int threads = static_cast<int>(std::clamp<int64_t>(n / kSortedPerThread, 1, max_threads()));
  const int64_t scratch =
      2 * n * sizeof(Sorted<Word>) / sizeof(int64_t) + 2 * threads * digits.values();
  SortedIndices sorted{empty_large({3 * n + 1 + scratch}, at::kLong), {}};
  Runs& runs = sorted.runs;
  runs.order = sorted.memory.mutable_data_ptr<int64_t>();
  runs.row = runs.order + n;
  runs.begin = runs.row + n;
  run_team(threads, [&](Worker& worker) {
    sort_runs<Word>(index, n, rows, padding_idx, digits, runs.begin + n + 1, runs, worker);
  });
  return sorted;
}

SortedIndices runs_of(const Tensor& grad, const Tensor& indices, int64_t rows,
                      int64_t padding_idx) {
  check_embedding_gradient(grad, indices);
  TORCH_CHECK_VALUE(rows >= 0, "num_weights must not be negative, got ", rows);
  const Tensor index = indices.contiguous();
  return AT_DISPATCH_INDEX_TYPES(index.scalar_type(), "embedding_backward", [&] {
    const auto* const values = index.const_data_ptr<index_t>();
    const int64_t n = index.numel();
    check_bounds(values, index, rows);
    return std::max(n, rows) <= std::numeric_limits<uint32_t>::max()
               ? sort_indices<uint32_t>(values, n, rows, padding_idx)
               : sort_indices<uint64_t>(values, n, rows, padding_idx);
  });
}

SumRuns sum_runs_of(const Tensor& grad) {
  return kernels().complete().sum_runs[static_cast<int>(parse_dtype(grad, "grad"))];
}

Tensor embedding_backward(const Tensor& grad, const Tensor& indices, int64_t num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  const SumRuns sum = sum_runs_of(grad);
  const SortedIndices sorted = runs_of(grad, indices, num_weights, padding_idx);
  const Runs& runs = sorted.runs;
  const Tensor rows = grad.contiguous();
  const int64_t D = rows.size(-1), row_bytes = D * rows.element_size();
  const Tensor out = empty_large({num_weights, D}, rows.options());
  char* to = static_cast<char*>(out.data_ptr());
  // A share is a range of table rows: sums for those that were picked, zeros for the others, so
  // every byte of the output is written once. Shares have equal numbers of rows written and read.
  const auto boundary = [&](int64_t share, int64_t shares) {
    const int64_t target = (num_weights + runs.length) * share / shares;
    const auto before = [&](const int64_t& row, int64_t end) {
      return row + runs.begin[&row - runs.row] < end;
    };
    const int64_t u = std::lower_bound(runs.row, runs.row + runs.count, target, before) - runs.row;
    return std::max(target - runs.begin[u], u > 0 ? runs.row[u - 1] + 1 : 0);
  };
  parallel((num_weights + runs.length) * row_bytes, [&](int rank, int threads) {
    int64_t v = boundary(rank, threads);
    const int64_t end = boundary(rank + 1, threads);
    int64_t u = std::lower_bound(runs.row, runs.row + runs.count, v) - runs.row;
    while (v < end) {
      const int64_t picked = u < runs.count ? std::min(runs.row[u], end) : end;
      std::fill_n(to + v * row_bytes, (picked - v) * row_bytes, char{0});
      if (picked == end) break;
      sum(runs, u, u + 1, rows.const_data_ptr(), D, scale_grad_by_freq, true, to);
      v = picked + 1;
      ++u;
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> embedding_sparse_backward(const Tensor& grad, const Tensor& indices,
                                                     int64_t num_weights, int64_t padding_idx,
                                                     bool scale_grad_by_freq) {
  const SumRuns sum = sum_runs_of(grad);
  const SortedIndices sorted = runs_of(grad, indices, num_weights, padding_idx);
  const Runs& runs = sorted.runs;
  const Tensor rows = grad.contiguous();
  const int64_t D = rows.size(-1), row_bytes = D * rows.element_size(), U = runs.count;
  // With stride 2, which ops/embedding.cpp wants for the Autograd key.
  const Tensor row = at::detail::empty_strided_cpu({U}, {2}, rows.options().dtype(at::kLong));
  int64_t* const numbers = row.mutable_data_ptr<int64_t>();
  for (int64_t u = 0; u < U; ++u) numbers[2 * u] = runs.row[u];
  const Tensor values = empty_large({U, D}, rows.options());
  // Shares of equal numbers of rows read, cut where a run begins.
  const auto boundary = [&](int64_t share, int64_t shares) {
    return std::lower_bound(runs.begin, runs.begin + U, runs.length * share / shares) - runs.begin;
  };
  parallel((runs.length + U) * row_bytes, [&](int rank, int threads) {
    sum(runs, boundary(rank, threads), boundary(rank + 1, threads), rows.const_data_ptr(), D,
        scale_grad_by_freq, false, values.data_ptr());
  });
  return {row, values};
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CPU, m) {
  m.impl("embedding", embedding);
  m.impl("occurring", occurring);
  m.impl("embedding_backward", embedding_backward);
  m.impl("embedding_sparse_backward", embedding_sparse_backward);
}

}  // namespace rnnext
