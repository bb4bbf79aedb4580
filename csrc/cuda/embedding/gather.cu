// The gather: rows of a table, copied.
#include <algorithm>
#include <bit>

#include "cuda/elements.cuh"
#include "cuda/embedding/kernel.h"

namespace rnnext::cuda {
namespace {

constexpr int kRows = 4;  // that a thread copies at once, so that several loads are in flight

// Rows are whole vectors, the widest to which all are aligned. They bypass L1, which has no use for
// them, and are the first to leave L2.
template <typename Vector>
__global__ void __launch_bounds__(kElementThreads) gather(EmbeddingGather p) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.y * kRows + threadIdx.y;
  const int64_t step = blockDim.y, vectors = p.row_bytes / int64_t(sizeof(Vector));
  const unsigned char* from[kRows];  // null: out of range
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r * step;
    const int64_t index = row < p.indices.count ? checked_index(p.indices, row) : -1;
    from[r] = index < 0
                  ? nullptr
                  : static_cast<const unsigned char*>(p.weight) + index * p.weight_stride_bytes;
  }
  for (int64_t column = threadIdx.x; column < vectors; column += blockDim.x) {
    Vector value[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      value[r] =
          from[r] != nullptr ? __ldcg(reinterpret_cast<const Vector*>(from[r]) + column) : Vector{};
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + r * step;
      if (row < p.indices.count) {
        __stcs(static_cast<Vector*>(p.output) + row * vectors + column, value[r]);
      }
    }
  }
}

template <typename Vector>
cudaError_t launch_gather(const EmbeddingGather& p, cudaStream_t stream) {
  const auto vectors = uint64_t(p.row_bytes) / sizeof(Vector);
  const auto lanes = unsigned(std::min<uint64_t>(std::bit_ceil(vectors), kElementThreads));
  LaunchShape shape;
  shape.block = dim3(lanes, kElementThreads / lanes);
  shape.grid = dim3(unsigned(divide_up(p.indices.count, int64_t(shape.block.y) * kRows)));
  return launch(gather<Vector>, shape, stream, p);
}

}  // namespace

cudaError_t launch_embedding_gather(const EmbeddingGather& p, cudaStream_t stream) {
  if (p.indices.count == 0 || p.row_bytes == 0) return cudaSuccess;
  const auto alignment = reinterpret_cast<uintptr_t>(p.weight) |
                         reinterpret_cast<uintptr_t>(p.output) | uintptr_t(p.row_bytes) |
                         uintptr_t(p.weight_stride_bytes);
  if (alignment % 16 == 0) return launch_gather<uint4>(p, stream);
  if (alignment % 8 == 0) return launch_gather<uint2>(p, stream);
  if (alignment % 4 == 0) return launch_gather<unsigned>(p, stream);
  if (alignment % 2 == 0) return launch_gather<unsigned short>(p, stream);
  return launch_gather<unsigned char>(p, stream);
}

}  // namespace rnnext::cuda
