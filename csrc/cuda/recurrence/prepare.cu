// The kernels that run before the others of a call: checks of indices, which become rows of a
// table, and constants of the host.
#include "cuda/elements.cuh"
#include "cuda/recurrence/launch.h"

namespace rnnext::cuda {
namespace {

__global__ void table_rows_kernel(const TableIndices indices, int64_t* rows) {
  const int64_t i = element();
  if (i >= indices.count) return;
  const int64_t row = checked_index(indices, i);
  rows[i] = row < 0 ? 0 : row;
}

struct Constants {
  static constexpr int kSize = 448;  // 3.5 KiB of the 4 KiB of kernel arguments
  int64_t values[kSize];
};

__global__ void write_constants_kernel(int64_t* to, const Constants from, int n) {
  if (int(threadIdx.x) < n) to[threadIdx.x] = from.values[threadIdx.x];
}

}  // namespace

cudaError_t launch_table_rows(const TableIndices& indices, int64_t* rows, cudaStream_t stream) {
  return launch(table_rows_kernel, elements(indices.count), stream, indices, rows);
}

cudaError_t launch_write_constants(int64_t* destination, const int64_t* values, int64_t n,
                                   cudaStream_t stream) {
  const LaunchShape shape{.grid = dim3(1), .block = dim3(Constants::kSize)};
  for (int64_t i = 0; i < n; i += Constants::kSize) {
    Constants chunk = {};
    const int size = static_cast<int>(n - i < Constants::kSize ? n - i : Constants::kSize);
    for (int k = 0; k < size; ++k) chunk.values[k] = values[i + k];
    const cudaError_t error =
        launch(write_constants_kernel, shape, stream, destination + i, chunk, size);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace rnnext::cuda
