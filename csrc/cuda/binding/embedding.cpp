// The embedding gather on CUDA devices and its gradient. The indices are sorted once, stably, so
// that each row of the gradient is a sum over one run of them, in a fixed order: no atomics, and no
// wait for the device except where a sparse gradient must know its size.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/cub.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/binding/errors.h"
#include "cuda/embedding/kernel.h"
#include "ops/check.h"

namespace rnnext::cuda {
namespace {

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t, bool, bool) {
  check_embedding(weight, indices);
  const c10::cuda::CUDAGuard guard(weight.device());
  const Tensor index = indices.contiguous();
  const Tensor table = weight.stride(1) == 1 ? weight : weight.contiguous();
  std::vector<int64_t> shape = indices.sizes().vec();
  shape.push_back(weight.size(1));
  const Tensor output = at::empty(shape, weight.options());
  const int64_t size = weight.element_size();
  const EmbeddingGather params{.indices = checked_indices(index, weight.size(0)),
                               .weight = table.const_data_ptr(),
                               .weight_stride_bytes = table.stride(0) * size,
                               .row_bytes = weight.size(1) * size,
                               .output = output.data_ptr()};
  check_launch(launch_embedding_gather(params, at::cuda::getCurrentCUDAStream()));
  return output;
}

// Keys in ascending order and, for each, its position in the indices; equal keys keep their order.
struct SortedIndices {
  Tensor keys, positions;  // int32 [count]
  int64_t count, rows;
};

SortedIndices sort_indices(const Tensor& grad, const Tensor& indices, int64_t rows,
                           int64_t padding_idx) {
  check_embedding_gradient(grad, indices);
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  const int64_t count = indices.numel();
  TORCH_CHECK_NOT_IMPLEMENTED(
      count <= kLimit && rows < kLimit,
      "the gradient of an embedding takes fewer than 2^31 indices and rows");
  const auto numbers = [&] { return at::empty({count}, indices.options().dtype(at::kInt)); };
  const SortedIndices sorted{numbers(), numbers(), count, rows};
  if (count == 0) return sorted;
  const Tensor index = indices.contiguous(), keys = numbers(), positions = numbers();
  auto* const key = keys.mutable_data_ptr<int32_t>();
  auto* const position = positions.mutable_data_ptr<int32_t>();
  check_launch(launch_embedding_keys(checked_indices(index, rows), padding_idx, key, position,
                                     at::cuda::getCurrentCUDAStream()));
  at::cuda::cub::radix_sort_pairs<int32_t, int32_t>(
      key, sorted.keys.mutable_data_ptr<int32_t>(), position,
      sorted.positions.mutable_data_ptr<int32_t>(), count,
      /*descending=*/false, /*begin_bit=*/0, at::cuda::cub::get_num_bits(uint64_t(rows)));
  return sorted;
}

// Sums the rows of grad into output, whose rows are the table's, or, with slots, one for each run.
void reduce(const Tensor& grad, const SortedIndices& sorted, const int32_t* slots,
            bool scale_grad_by_freq, const Tensor& output) {
  const Tensor from = grad.contiguous();
  const DType dtype = parse_dtype(grad, "grad");
  const int64_t columns = grad.size(-1);
  const Tensor partial = at::empty({embedding_partial_bytes(sorted.count, columns, dtype)},
                                   grad.options().dtype(at::kByte));
  const EmbeddingReduce params{.dtype = dtype,
                               .keys = sorted.keys.const_data_ptr<int32_t>(),
                               .positions = sorted.positions.const_data_ptr<int32_t>(),
                               .slots = slots,
                               .count = sorted.count,
                               .rows = sorted.rows,
                               .columns = columns,
                               .by_frequency = scale_grad_by_freq,
                               .grad = from.const_data_ptr(),
                               .output = output.data_ptr(),
                               .partial = partial.data_ptr()};
  check_launch(launch_embedding_reduce(params, at::cuda::getCurrentCUDAStream()));
}

Tensor embedding_backward(const Tensor& grad, const Tensor& indices, int64_t num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const SortedIndices sorted = sort_indices(grad, indices, num_weights, padding_idx);
  const Tensor output = at::zeros({num_weights, grad.size(-1)}, grad.options());
  reduce(grad, sorted, nullptr, scale_grad_by_freq, output);
  return output;
}

std::tuple<Tensor, Tensor> embedding_sparse_backward(const Tensor& grad, const Tensor& indices,
                                                     int64_t num_weights, int64_t padding_idx,
                                                     bool scale_grad_by_freq) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const SortedIndices sorted = sort_indices(grad, indices, num_weights, padding_idx);
  // Waits for the device: the size of a sparse gradient is data.
  auto [rows, slots, _] = at::unique_consecutive(sorted.keys, /*return_inverse=*/true);
  int64_t size = rows.numel();
  if (size > 0 && rows[size - 1].item<int32_t>() == num_weights) --size;  // keys without a gradient
  const Tensor values = at::empty({size, grad.size(-1)}, grad.options());
  reduce(grad, sorted, slots.to(at::kInt).const_data_ptr<int32_t>(), scale_grad_by_freq, values);
  return {rows.narrow(0, 0, size).to(at::kLong), values};
}

}  // namespace

IndexErrorRecord* index_errors(c10::DeviceIndex device) {
  // In host memory that has the same address on the device; kept until the process ends.
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, IndexErrorRecord*> records;
  const std::lock_guard<std::mutex> lock(mutex);
  IndexErrorRecord*& record = records[device];
  if (record == nullptr) {
    const c10::cuda::CUDAGuard guard(device);
    // Allowed during the capture of a stream, since nothing is enqueued.
    c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
    void* host = nullptr;
    check_launch(cudaHostAlloc(&host, sizeof(IndexErrorRecord), cudaHostAllocMapped));
    record = new (host) IndexErrorRecord{};
  }
  if (__atomic_load_n(&record->ready, __ATOMIC_ACQUIRE) != 0) {
    const IndexErrorRecord error = *record;
    record->ready = 0;
    __atomic_store_n(&record->claimed, 0, __ATOMIC_RELEASE);
    TORCH_CHECK_INDEX(false, "index out of range in self: indices.flatten()[", error.position,
                      "] = ", error.value, ", expected 0 <= index < ", error.bound,
                      " (in an earlier call on cuda:", int(device), ")");
  }
  return record;
}

TableIndices checked_indices(const Tensor& indices, int64_t rows) {
  return {.data = indices.const_data_ptr(),
          .is_int64 = indices.scalar_type() == at::kLong,
          .count = indices.numel(),
          .rows = rows,
          .error = index_errors(indices.get_device())};
}

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("embedding", embedding);
  m.impl("embedding_backward", embedding_backward);
  m.impl("embedding_sparse_backward", embedding_sparse_backward);
}

}  // namespace rnnext::cuda
