// The embedding gather on CUDA devices and its gradient. The indices are sorted once, stably, so
// that each row of the gradient is a sum over one run of them, in a fixed order: no atomics, and no
// wait for the device except where a sparse gradient must know its size.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/cub.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>
#include <mutex>
#include <vector>

#include "cuda/binding/check_launch.h"
#include "cuda/binding/index_check.h"
#include "cuda/embedding/kernel.h"
#include "ops/parse.h"

namespace rnnext::cuda {
namespace {

// One record a device, in host memory that the device sees; kept until the process ends.
struct ErrorRecord {
  IndexErrorRecord* host;
  IndexErrorRecord* device;
};

ErrorRecord make_record() {
  // Allowed while a stream is captured: nothing is enqueued.
  c10::cuda::CUDAStreamCaptureModeGuard guard(cudaStreamCaptureModeRelaxed);
  ErrorRecord record{};
  C10_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&record.host), sizeof(IndexErrorRecord),
                               cudaHostAllocMapped | cudaHostAllocPortable));
  *record.host = IndexErrorRecord{};
  C10_CUDA_CHECK(
      cudaHostGetDevicePointer(reinterpret_cast<void**>(&record.device), record.host, 0));
  return record;
}

ErrorRecord record_of(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::vector<ErrorRecord> records;
  std::lock_guard<std::mutex> lock(mutex);
  if (records.size() <= size_t(device)) records.resize(device + 1);
  if (records[device].host == nullptr) {
    const c10::cuda::CUDAGuard guard(device);
    records[device] = make_record();
  }
  return records[device];
}

Tensor contiguous_indices(const Tensor& indices) {
  check_indices(indices);
  return indices.contiguous();
}

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t, bool, bool) {
  TORCH_CHECK(weight.dim() == 2, "'weight' must be 2-D");
  TORCH_CHECK(indices.device() == weight.device(), "indices must be on the device of weight, ",
              weight.device(), ", got ", indices.device());
  const c10::cuda::CUDAGuard guard(weight.device());
  const Tensor index = contiguous_indices(indices);
  const Tensor table = weight.stride(1) == 1 ? weight : weight.contiguous();
  std::vector<int64_t> shape = indices.sizes().vec();
  shape.push_back(weight.size(1));
  const Tensor output = at::empty(shape, weight.options());
  const int64_t size = weight.element_size();
  EmbeddingGather params{};
  params.indices = checked_indices(index, weight.size(0));
  params.weight = table.const_data_ptr();
  params.weight_stride_bytes = table.stride(0) * size;
  params.row_bytes = weight.size(1) * size;
  params.output = output.data_ptr();
  check_launch(launch_embedding_gather(params, at::cuda::getCurrentCUDAStream()));
  return output;
}

// Keys in ascending order and, for each, its position in the indices; equal keys keep their order.
struct SortedIndices {
  Tensor keys, positions;  // int32 [count]
};

SortedIndices sort_indices(const Tensor& grad, const Tensor& indices, int64_t rows,
                           int64_t padding_idx) {
  TORCH_CHECK(
      grad.dim() == indices.dim() + 1 && grad.sizes().slice(0, indices.dim()) == indices.sizes(),
      "grad must have the shape of indices and one more dimension, got ", grad.sizes(),
      " with indices of shape ", indices.sizes());
  TORCH_CHECK(indices.device() == grad.device(), "indices must be on the device of grad, ",
              grad.device(), ", got ", indices.device());
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_NOT_IMPLEMENTED(
      indices.numel() <= kLimit && rows < kLimit,
      "the gradient of an embedding takes fewer than 2^31 indices and rows");
  const Tensor index = contiguous_indices(indices);
  const int64_t count = index.numel();
  const auto options = index.options().dtype(at::kInt);
  SortedIndices sorted{at::empty({count}, options), at::empty({count}, options)};
  if (count == 0) return sorted;
  const auto stream = at::cuda::getCurrentCUDAStream();
  EmbeddingKeys params{};
  params.indices = checked_indices(index, rows);
  params.padding_idx = padding_idx;
  const Tensor keys = at::empty({count}, options), positions = at::empty({count}, options);
  params.keys = keys.mutable_data_ptr<int32_t>();
  params.positions = positions.mutable_data_ptr<int32_t>();
  check_launch(launch_embedding_keys(params, stream));
  at::cuda::cub::radix_sort_pairs<int32_t, int32_t>(
      keys.const_data_ptr<int32_t>(), sorted.keys.mutable_data_ptr<int32_t>(),
      positions.const_data_ptr<int32_t>(), sorted.positions.mutable_data_ptr<int32_t>(), count,
      /*descending=*/false, /*begin_bit=*/0, at::cuda::cub::get_num_bits(uint64_t(rows)));
  return sorted;
}

// Sums the rows of grad into output, whose rows are those of the table, or with slots of the runs.
void reduce(const Tensor& grad, const SortedIndices& sorted, const OptionalTensor& slots,
            int64_t rows, bool scale_grad_by_freq, const Tensor& output) {
  const Tensor from = grad.contiguous();
  EmbeddingReduce params{};
  params.dtype = parse_dtype(grad, "grad");
  params.keys = sorted.keys.const_data_ptr<int32_t>();
  params.positions = sorted.positions.const_data_ptr<int32_t>();
  params.slots = slots ? slots->const_data_ptr<int32_t>() : nullptr;
  params.count = sorted.keys.numel();
  params.rows = rows;
  params.columns = grad.size(-1);
  params.by_frequency = scale_grad_by_freq;
  params.grad = from.const_data_ptr();
  params.output = output.data_ptr();
  const Tensor partial =
      at::empty({embedding_partial_bytes(params.count, params.columns, params.dtype)},
                grad.options().dtype(at::kByte));
  params.partial = partial.data_ptr();
  check_launch(launch_embedding_reduce(params, at::cuda::getCurrentCUDAStream()));
}

Tensor embedding_backward(const Tensor& grad, const Tensor& indices, int64_t num_weights,
                          int64_t padding_idx, bool scale_grad_by_freq) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const SortedIndices sorted = sort_indices(grad, indices, num_weights, padding_idx);
  const Tensor output = at::empty({num_weights, grad.size(-1)}, grad.options());
  EmbeddingGaps gaps{};
  gaps.keys = sorted.keys.const_data_ptr<int32_t>();
  gaps.count = sorted.keys.numel();
  gaps.rows = num_weights;
  gaps.row_bytes = output.size(1) * output.element_size();
  gaps.output = output.data_ptr();
  check_launch(launch_embedding_gaps(gaps, at::cuda::getCurrentCUDAStream()));
  reduce(grad, sorted, std::nullopt, num_weights, scale_grad_by_freq, output);
  return output;
}

std::tuple<Tensor, Tensor> embedding_sparse_backward(const Tensor& grad, const Tensor& indices,
                                                     int64_t num_weights, int64_t padding_idx,
                                                     bool scale_grad_by_freq) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto stream = at::cuda::getCurrentCUDAStream();
  const SortedIndices sorted = sort_indices(grad, indices, num_weights, padding_idx);
  const int64_t count = sorted.keys.numel();
  const Tensor heads = at::empty_like(sorted.keys), slots = at::empty_like(sorted.keys);
  int64_t size = 0;
  if (count > 0) {
    const int32_t* keys = sorted.keys.const_data_ptr<int32_t>();
    check_launch(launch_embedding_heads(keys, count, num_weights, heads.mutable_data_ptr<int32_t>(),
                                        stream));
    at::cuda::cub::inclusive_sum(heads.const_data_ptr<int32_t>(), slots.mutable_data_ptr<int32_t>(),
                                 count);
    size = slots[count - 1].item<int32_t>();  // waits: the size of a sparse gradient is data
  }
  const Tensor rows = at::empty({size}, grad.options().dtype(at::kLong));
  const Tensor values = at::empty({size, grad.size(-1)}, grad.options());
  if (size > 0) {
    check_launch(launch_embedding_rows(sorted.keys.const_data_ptr<int32_t>(),
                                       slots.const_data_ptr<int32_t>(), count, num_weights,
                                       rows.mutable_data_ptr<int64_t>(), stream));
    reduce(grad, sorted, slots, num_weights, scale_grad_by_freq, values);
  }
  return {rows, values};
}

}  // namespace

IndexErrorRecord* index_errors(c10::DeviceIndex device) {
  const ErrorRecord record = record_of(device);
  IndexErrorRecord* const host = record.host;
  if (__atomic_load_n(&host->ready, __ATOMIC_ACQUIRE) != 0) {
    const IndexErrorRecord error = *host;
    host->ready = 0;
    __atomic_store_n(&host->claimed, 0, __ATOMIC_RELEASE);
    TORCH_CHECK_INDEX(false, "index out of range in self: indices.flatten()[", error.position,
                      "] = ", error.value, ", expected 0 <= index < ", error.bound,
                      " (in an earlier call on cuda:", int(device), ")");
  }
  return record.device;
}

EmbeddingIndices checked_indices(const Tensor& indices, int64_t rows) {
  return {indices.const_data_ptr(), indices.scalar_type() == at::kLong, indices.numel(), rows,
          index_errors(indices.get_device())};
}

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("embedding", embedding);
  m.impl("embedding_backward", embedding_backward);
  m.impl("embedding_sparse_backward", embedding_sparse_backward);
}

}  // namespace rnnext::cuda
