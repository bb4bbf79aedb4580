// The gradient of the table: indices as keys to be sorted, and sums over runs of equal keys.
#include <algorithm>
#include <bit>

#include "cuda/elements.cuh"
#include "cuda/embedding/kernel.h"

namespace rnnext::cuda {
namespace {

__global__ void make_keys(const TableIndices indices, int64_t padding_idx, int32_t* keys,
                          int32_t* positions) {
  const int64_t i = element();
  if (i >= indices.count) return;
  const int64_t index = checked_index(indices, i);
  keys[i] = int32_t(index < 0 || index == padding_idx ? indices.rows : index);
  positions[i] = int32_t(i);
}

// The sorted positions are cut into chunks of equal length. In the first kernel a thread sums the
// runs of one chunk, for one vector of columns: a run that lies within the chunk goes to the
// output; one that crosses a border leaves its sum in `partial`, in [chunk][0] if it came from the
// left, otherwise in [chunk][1]. The second kernel adds up the parts of each run that crosses
// borders, so that one row with a million gradients is summed by many threads as well.

constexpr int kUnroll = 4;       // gradients loaded before the first is added
constexpr int kReducers = 8;     // threads that share the parts of one run
constexpr uint64_t kLanes = 32;  // vectors of columns in a block, at most

int64_t chunk_length(int64_t count) {
  int64_t length = 16;  // long enough that the parts are a small share of the traffic
  while (length < 256 && length * length * 64 < count) length *= 2;
  return length;
}

// The first column of this thread.
template <int N>
__device__ int64_t first_column() {
  return (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
}

template <typename T, int N>
__device__ __forceinline__ void write_row(const EmbeddingReduce& p, int64_t position,
                                          int64_t length, const Accumulate<T> (&sum)[N]) {
  const int64_t row = p.slots != nullptr ? p.slots[position] : p.keys[position];
  Word<T, N> word;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    word.x[n] = from_float<T>(p.by_frequency ? sum[n] / Accumulate<T>(length) : sum[n]);
  }
  T* to = static_cast<T*>(p.output) + row * p.columns + first_column<N>();
  *reinterpret_cast<Word<T, N>*>(to) = word;
}

template <typename T, int N>
__global__ void __launch_bounds__(kElementThreads)
    reduce_chunks(EmbeddingReduce p, int64_t chunk_size) {
  using Acc = Accumulate<T>;
  const int64_t chunk = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t column = first_column<N>(), begin = chunk * chunk_size;
  if (begin >= p.count || column >= p.columns) return;
  const int64_t end = min(begin + chunk_size, p.count);
  const T* grad = static_cast<const T*>(p.grad) + column;
  Acc* partial = static_cast<Acc*>(p.partial) + 2 * chunk * p.columns + column;

  int32_t key = p.keys[begin];
  int64_t run_begin = begin;
  bool from_left = begin > 0 && p.keys[begin - 1] == key;
  Acc sum[N] = {};
  for (int64_t base = begin; base < end; base += kUnroll) {
    Word<T, N> word[kUnroll];
    int32_t next[kUnroll];  // the key after each; -1 at the end
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u;
      next[u] = i + 1 < p.count ? __ldg(p.keys + i + 1) : -1;
      if (i < end) {
        const int64_t row = __ldg(p.positions + i);
        word[u] = *reinterpret_cast<const Word<T, N>*>(grad + row * p.columns);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u;
      if (i >= end) break;
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += to_float(word[u].x[n]);
      if (next[u] == key && i + 1 < end) continue;
      if (key < p.rows) {
        if (!from_left && next[u] != key) {
          write_row<T>(p, i, i + 1 - run_begin, sum);
        } else {
          Acc* part = partial + (from_left ? 0 : p.columns);
#pragma unroll
          for (int n = 0; n < N; ++n) part[n] = sum[n];
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = 0;
      key = next[u];
      run_begin = i + 1;
      from_left = false;
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kElementThreads)
    reduce_parts(EmbeddingReduce p, int64_t chunk_size) {
  using Acc = Accumulate<T>;
  const int64_t chunk = blockIdx.x;
  const int64_t begin = chunk * chunk_size, next_chunk = begin + chunk_size;
  // Whether a run begins in this chunk and goes on in the next one: the same for the whole block.
  if (next_chunk >= p.count) return;
  const int32_t key = p.keys[next_chunk];
  if (p.keys[next_chunk - 1] != key || key >= p.rows) return;
  if (begin > 0 && p.keys[begin - 1] == key) return;

  int64_t low = next_chunk, high = p.count;  // the end of the run lies in low+1..high
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (p.keys[middle] == key ? low : high) = middle;
  }
  const int64_t run_end = high;
  const int64_t column = first_column<N>();
  const Acc* partial = static_cast<const Acc*>(p.partial) + column;
  Acc sum[N] = {};
  const auto add = [&](const Acc* row) {
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += row[n];
  };
  if (column < p.columns) {
    if (threadIdx.y == 0) add(partial + (2 * chunk + 1) * p.columns);
    for (int64_t c = chunk + 1 + threadIdx.y; c * chunk_size < run_end; c += kReducers) {
      add(partial + 2 * c * p.columns);
    }
  }
  Acc* shared = reinterpret_cast<Acc*>(shared_memory());
#pragma unroll
  for (int n = 0; n < N; ++n) shared[(threadIdx.y * N + n) * blockDim.x + threadIdx.x] = sum[n];
  __syncthreads();
  if (threadIdx.y != 0 || column >= p.columns) return;
  for (int other = 1; other < kReducers; ++other) {
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += shared[(other * N + n) * blockDim.x + threadIdx.x];
  }
  int64_t run_begin = begin;
  if (p.by_frequency) {  // the run begins in begin..next_chunk-1
    int64_t below = begin - 1, at = next_chunk - 1;
    while (at - below > 1) {
      const int64_t middle = below + (at - below) / 2;
      (p.keys[middle] == key ? at : below) = middle;
    }
    run_begin = at;
  }
  write_row<T>(p, next_chunk, run_end - run_begin, sum);
}

template <typename T, int N>
cudaError_t launch_reduce(const EmbeddingReduce& p, cudaStream_t stream) {
  const int64_t chunk_size = chunk_length(p.count), chunks = divide_up(p.count, chunk_size);
  const auto vectors = uint64_t(divide_up(p.columns, N));
  const auto lanes = unsigned(std::min(std::bit_ceil(vectors), kLanes));
  const auto tiles = unsigned(divide_up(p.columns, int64_t(lanes) * N));
  LaunchShape shape;
  shape.block = dim3(lanes, kElementThreads / lanes);
  shape.grid = dim3(unsigned(divide_up(chunks, shape.block.y)), tiles);
  cudaError_t error = launch(reduce_chunks<T, N>, shape, stream, p, chunk_size);
  if (error != cudaSuccess || chunks == 1) return error;
  shape.block = dim3(lanes, kReducers);
  shape.grid = dim3(unsigned(chunks), tiles);
  shape.shared_bytes = sizeof(Accumulate<T>) * N * kReducers * lanes;
  return launch(reduce_parts<T, N>, shape, stream, p, chunk_size);
}

template <typename T>
cudaError_t launch_reduce(const EmbeddingReduce& p, cudaStream_t stream) {
  const auto alignment = reinterpret_cast<uintptr_t>(p.grad) |
                         reinterpret_cast<uintptr_t>(p.output) | uintptr_t(p.columns * sizeof(T));
  return alignment % 16 == 0 ? launch_reduce<T, 16 / sizeof(T)>(p, stream)
                             : launch_reduce<T, 1>(p, stream);
}

}  // namespace

cudaError_t launch_embedding_keys(const TableIndices& indices, int64_t padding_idx, int32_t* keys,
                                  int32_t* positions, cudaStream_t stream) {
  return launch(make_keys, elements(indices.count), stream, indices, padding_idx, keys, positions);
}

int64_t embedding_partial_bytes(int64_t count, int64_t columns, DType dtype) {
  return 2 * divide_up(count, chunk_length(count)) * columns * (dtype == DType::f64 ? 8 : 4);
}

cudaError_t launch_embedding_reduce(const EmbeddingReduce& p, cudaStream_t stream) {
  if (p.count == 0 || p.columns == 0 || p.rows == 0) return cudaSuccess;
  return with_type(p.dtype, [&]<class T>(T) { return launch_reduce<T>(p, stream); });
}

}  // namespace rnnext::cuda
