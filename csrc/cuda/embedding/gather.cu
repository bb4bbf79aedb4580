// The gather: rows of a table, copied.
#include "cuda/embedding/common.cuh"

namespace rnnext::cuda {
namespace {

constexpr int kRows = 4;  // that a thread copies at once, so that several loads are in flight
constexpr int64_t kLongRow = 128;  // bytes from which on a warp copies rows without alignment
constexpr unsigned kWarp = 32;

// Where the rows from `first` on come from, `step` apart; null: out of range.
__device__ __forceinline__ void find_rows(const EmbeddingGather& p, int64_t first, int64_t step,
                                          const unsigned char* (&from)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r * step;
    const int64_t index = row < p.indices.count ? checked_index(p.indices, row) : -1;
    from[r] = index < 0
                  ? nullptr
                  : static_cast<const unsigned char*>(p.weight) + index * p.weight_stride_bytes;
  }
}

// Rows that are whole vectors, all aligned. They pass L1 by, which has no use for them, and are the
// first to leave L2.
template <typename Vector>
__global__ void __launch_bounds__(kEmbeddingThreads) gather(EmbeddingGather p) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.y * kRows + threadIdx.y;
  const int64_t vectors = p.row_bytes / int64_t(sizeof(Vector));
  const unsigned char* from[kRows];
  find_rows(p, first, blockDim.y, from);
  for (int64_t column = threadIdx.x; column < vectors; column += blockDim.x) {
    Vector value[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      value[r] =
          from[r] != nullptr ? __ldcg(reinterpret_cast<const Vector*>(from[r]) + column) : Vector{};
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + r * int64_t(blockDim.y);
      if (row < p.indices.count) {
        __stcs(static_cast<Vector*>(p.output) + row * vectors + column, value[r]);
      }
    }
  }
}

// The 16 bytes that begin `shift` bytes into `low` and end in `high`.
__device__ __forceinline__ uint4 joined(const uint4& low, const uint4& high, unsigned shift) {
  unsigned w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  if (shift & 8) {
#pragma unroll
    for (int i = 0; i < 6; ++i) w[i] = w[i + 2];
  }
  if (shift & 4) {
#pragma unroll
    for (int i = 0; i < 5; ++i) w[i] = w[i + 1];
  }
  const unsigned bits = shift % 4 * 8;
  unsigned result[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    result[i] = static_cast<unsigned>((uint64_t(w[i + 1]) << 32 | w[i]) >> bits);
  }
  return make_uint4(result[0], result[1], result[2], result[3]);
}

// How a long row without alignment is copied: its head and its tail by units, and between them
// vectors that are aligned where they are written. Where they are read they begin `shift` bytes
// into an aligned vector; all of that lies in the row.
struct Parts {
  int64_t head, vectors;
  unsigned shift;

  __device__ Parts(const unsigned char* from, const unsigned char* to, int64_t bytes) {
    head = (16 - past_16(to)) % 16;
    shift = past_16(from + head);
    if (head < shift) head += 16;
    vectors = (bytes - head) / 16;
    if (shift > 0) vectors = min(vectors, (bytes - head + shift) / 16 - 1);
  }
  __device__ int64_t tail() const { return head + vectors * 16; }
};

template <typename Unit>
__device__ __forceinline__ void copy_units(const unsigned char* from, unsigned char* to,
                                           int64_t begin, int64_t end) {
  for (int64_t at = begin + threadIdx.x * sizeof(Unit); at < end; at += kWarp * sizeof(Unit)) {
    const Unit x = from != nullptr ? __ldg(reinterpret_cast<const Unit*>(from + at)) : Unit{};
    __stcs(reinterpret_cast<Unit*>(to + at), x);
  }
}

// Long rows that begin at any multiple of a unit; a warp copies each.
template <typename Unit>
__global__ void __launch_bounds__(kEmbeddingThreads) gather_unaligned(EmbeddingGather p) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.y * kRows + threadIdx.y;
  const unsigned char* from[kRows];
  find_rows(p, first, blockDim.y, from);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r * int64_t(blockDim.y);
    if (row >= p.indices.count) return;
    unsigned char* to = static_cast<unsigned char*>(p.output) + row * p.row_bytes;
    const unsigned char* source = from[r];
    // A row of zeros has no alignment of its own: any will do.
    const Parts parts(source != nullptr ? source : to, to, p.row_bytes);
    copy_units<Unit>(source, to, 0, parts.head);
    const unsigned char* aligned = source + parts.head - parts.shift;
#pragma unroll 2
    for (int64_t i = threadIdx.x; i < parts.vectors; i += kWarp) {
      uint4 x = make_uint4(0, 0, 0, 0);
      if (source != nullptr) {
        const uint4* at = reinterpret_cast<const uint4*>(aligned) + i;
        x = __ldg(at);
        if (parts.shift > 0) x = joined(x, __ldg(at + 1), parts.shift);
      }
      __stcs(reinterpret_cast<uint4*>(to + parts.head) + i, x);
    }
    copy_units<Unit>(source, to, parts.tail(), p.row_bytes);
  }
}

cudaError_t launch_rows(void (*kernel)(EmbeddingGather), const EmbeddingGather& p, unsigned lanes,
                        cudaStream_t stream) {
  LaunchShape shape;
  shape.block = dim3(lanes, kEmbeddingThreads / lanes);
  shape.grid = dim3(unsigned(divide_up(p.indices.count, int64_t(shape.block.y) * kRows)));
  return launch(kernel, shape, stream, p);
}

template <typename Vector>
cudaError_t launch_gather(const EmbeddingGather& p, cudaStream_t stream) {
  if (sizeof(Vector) < 16 && p.row_bytes >= kLongRow) {
    return launch_rows(gather_unaligned<Vector>, p, kWarp, stream);
  }
  const unsigned lanes = lanes_for(p.row_bytes / int64_t(sizeof(Vector)), kEmbeddingThreads);
  return launch_rows(gather<Vector>, p, lanes, stream);
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
