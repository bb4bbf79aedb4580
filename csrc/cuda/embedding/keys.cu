// What comes before and beside the gradient's reduction: keys to be sorted, the heads of their
// runs, and zeros in the rows between them.
#include "cuda/embedding/common.cuh"
#include "cuda/recurrence/elements.cuh"

namespace rnnext::cuda {
namespace {

__global__ void __launch_bounds__(kEmbeddingThreads) make_keys(EmbeddingKeys p) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.indices.count) return;
  const int64_t index = checked_index(p.indices, i);
  p.keys[i] = int32_t(index < 0 || index == p.padding_idx ? p.indices.rows : index);
  p.positions[i] = int32_t(i);
}

__global__ void __launch_bounds__(kEmbeddingThreads)
    mark_heads(const int32_t* keys, int64_t count, int64_t rows, int32_t* heads) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count) return;
  heads[p] = keys[p] < rows && (p == 0 || keys[p] != keys[p - 1]);
}

__global__ void __launch_bounds__(kEmbeddingThreads)
    list_rows(const int32_t* keys, const int32_t* slots, int64_t count, int64_t rows,
              int64_t* unique) {
  const int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= count || keys[p] >= rows) return;
  if (p == 0 || keys[p] != keys[p - 1]) unique[slots[p] - 1] = keys[p];
}

// ---- zeros between the runs

// Whether a sorted key is `row`.
__device__ __forceinline__ bool has_key(const int32_t* keys, int64_t count, int64_t row) {
  int64_t low = 0, high = count;  // the first key that is no less lies in low..high
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (__ldg(keys + middle) < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && __ldg(keys + low) == row;
}

// A warp writes zeros: vectors, and bytes before and behind them.
__device__ __forceinline__ void write_zeros(unsigned char* to, int64_t bytes, unsigned lane) {
  const int64_t head = min(bytes, int64_t((16 - past_16(to)) % 16));
  const int64_t vectors = (bytes - head) / 16, tail = head + vectors * 16;
  const auto zero = static_cast<unsigned char>(0);
  if (lane < head) to[lane] = zero;
  uint4* body = reinterpret_cast<uint4*>(to + head);
  for (int64_t i = lane; i < vectors; i += 32) __stcs(body + i, make_uint4(0, 0, 0, 0));
  if (lane < bytes - tail) to[tail + lane] = zero;
}

// A warp takes 32 rows: each lane looks for one of them among the keys, and together they write
// the ones that are not there, neighbours at once.
__global__ void __launch_bounds__(kEmbeddingThreads) zero_gaps(EmbeddingGaps p) {
  const int64_t row = int64_t(blockIdx.x) * kEmbeddingThreads + threadIdx.x;
  const unsigned lane = threadIdx.x % 32;
  const bool absent = row < p.rows && !has_key(p.keys, p.count, row);
  unsigned left = unsigned(__ballot_sync(~0u, absent));
  unsigned char* first = static_cast<unsigned char*>(p.output) + (row - lane) * p.row_bytes;
  while (left != 0) {
    const int begin = __ffs(int(left)) - 1;
    const unsigned present = ~(left >> begin);
    const int length = present != 0 ? __ffs(int(present)) - 1 : 32;
    write_zeros(first + begin * p.row_bytes, length * p.row_bytes, lane);
    left &= begin + length < 32 ? ~0u << (begin + length) : 0u;
  }
}

}  // namespace

cudaError_t launch_embedding_keys(const EmbeddingKeys& p, cudaStream_t stream) {
  return launch(make_keys, elements(p.indices.count), stream, p);
}

cudaError_t launch_embedding_heads(const int32_t* keys, int64_t count, int64_t rows, int32_t* heads,
                                   cudaStream_t stream) {
  return launch(mark_heads, elements(count), stream, keys, count, rows, heads);
}

cudaError_t launch_embedding_rows(const int32_t* keys, const int32_t* slots, int64_t count,
                                  int64_t rows, int64_t* unique, cudaStream_t stream) {
  return launch(list_rows, elements(count), stream, keys, slots, count, rows, unique);
}

cudaError_t launch_embedding_gaps(const EmbeddingGaps& p, cudaStream_t stream) {
  if (p.rows == 0 || p.row_bytes == 0) return cudaSuccess;
  return launch(zero_gaps, elements(p.rows), stream, p);
}

}  // namespace rnnext::cuda
