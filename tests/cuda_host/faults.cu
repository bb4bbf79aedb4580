// Kernels with one planted fault each, for tests/cuda/test_host.py: the argument `faulty` plants
// it. Correct, each writes out[i] from in[i], 256 floats, as the test says. Every kernel runs as
// blocks of 64 threads.
#include "cuda/device.h"
#include "cuda/mbarrier.h"

using namespace rnnext::cuda;

namespace {

constexpr int kThreads = 64;

struct Params {
  float* out;
  const float* in;
  unsigned* flags;
  bool faulty;
};

__device__ float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }
__device__ int global_index() { return int(blockIdx.x * blockDim.x + threadIdx.x); }
__device__ int neighbour() { return int((threadIdx.x + 1) % blockDim.x); }

// out = in of the right neighbour in the block.
__global__ void missing_barrier(Params p) {
  float* s = shared_floats();
  s[threadIdx.x] = p.in[global_index()];
  if (!p.faulty) __syncthreads();
  p.out[global_index()] = s[neighbour()];
}

// out = in shifted by 8 within the block, one place a step. With two buffers one barrier a step is
// enough; with one buffer it is not.
__global__ void race_on_a_double_buffer(Params p) {
  float* s = shared_floats();
  s[threadIdx.x] = p.in[global_index()];
  __syncthreads();
  for (int step = 0; step < 8; ++step) {
    float* from = s + (p.faulty ? 0 : step % 2 * kThreads);
    float* to = s + (p.faulty ? 0 : (step + 1) % 2 * kThreads);
    const float value = from[neighbour()];
    to[threadIdx.x] = value;
    __syncthreads();
  }
  p.out[global_index()] = s[threadIdx.x];
}

// The same within a warp.
__global__ void missing_warp_barrier(Params p) {
  float* s = shared_floats();
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32) * 32;
  s[threadIdx.x] = p.in[global_index()];
  __syncwarp();
  const float value = s[warp + (lane + 1) % 32];
  if (!p.faulty) __syncwarp();
  s[threadIdx.x] = value;
  __syncwarp();
  p.out[global_index()] = s[warp + (lane + 31) % 32];
}

// out = in of the same thread of the next block in the cluster.
__global__ void missing_cluster_barrier(Params p) {
  float* s = shared_floats();
  s[threadIdx.x] = p.in[global_index()];
  if (p.faulty) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  p.out[global_index()] = peer_shared(s, (cluster_rank() + 1) % cluster_size())[threadIdx.x];
  cluster_sync();
}

__global__ void leaving_the_cluster_early(Params p) {
  float* s = shared_floats();
  s[threadIdx.x] = p.in[global_index()];
  cluster_sync();
  p.out[global_index()] = peer_shared(s, (cluster_rank() + 1) % cluster_size())[threadIdx.x];
  if (!p.faulty) cluster_sync();
}

// A store to a peer between arrival and wait is not covered by that barrier.
__global__ void store_after_arrival(Params p) {
  float* s = shared_floats();
  const unsigned previous = (cluster_rank() + cluster_size() - 1) % cluster_size();
  cluster_sync();
  if (p.faulty) cluster_arrive();
  peer_shared(s, previous)[threadIdx.x] = p.in[global_index()];
  if (!p.faulty) cluster_arrive();
  cluster_wait();
  p.out[global_index()] = s[threadIdx.x];
  cluster_sync();
}

// Blocks pass values on through global memory and flags: out = in of the next block.
__global__ void missing_flag(Params p) {
  const unsigned next = (blockIdx.x + 1) % gridDim.x;
  float* exchange = p.out + 256;
  exchange[global_index()] = p.in[global_index()];
  __syncthreads();
  if (threadIdx.x == 0) {
    store_release(p.flags + blockIdx.x, 1);
    while (!p.faulty && load_acquire(p.flags + next) == 0) pause(20);
  }
  __syncthreads();
  p.out[global_index()] = __ldcg(exchange + next * blockDim.x + threadIdx.x);
}

__global__ void flag_before_the_data(Params p) {
  const unsigned next = (blockIdx.x + 1) % gridDim.x;
  float* exchange = p.out + 256;
  if (p.faulty && threadIdx.x == 0) store_release(p.flags + blockIdx.x, 1);
  exchange[global_index()] = p.in[global_index()];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!p.faulty) store_release(p.flags + blockIdx.x, 1);
    while (load_acquire(p.flags + next) == 0) pause(20);
  }
  __syncthreads();
  p.out[global_index()] = __ldcg(exchange + next * blockDim.x + threadIdx.x);
}

// Blocks of a cluster pass values on by stores that an mbarrier counts, `steps` times round: out =
// in of the block that many places on. Two buffers and two mbarriers, as the recurrence has them.
enum class Transaction {
  right,
  no_wait,
  too_few_bytes,
  too_many_bytes,
  old_phase,
  plain_store,
  no_start,
  one_buffer
};

__device__ void pass_on(const Params& p, Transaction fault, int steps) {
  const auto now = [&](Transaction f) { return p.faulty && fault == f; };
  auto* buffers = reinterpret_cast<uint4*>(shared_memory());   // [2][16]
  auto* barriers = reinterpret_cast<uint64_t*>(buffers + 32);  // [2]
  const unsigned previous = (cluster_rank() + cluster_size() - 1) % cluster_size();
  const int piece = int(threadIdx.x) / 4;
  const bool sends = threadIdx.x % 4 == 0;
  const auto* in = reinterpret_cast<const uint4*>(p.in);
  uint4 mine = in[global_index() / 4];
  if (threadIdx.x < 2) barrier_init(barriers + threadIdx.x, 1);
  barrier_init_fence();
  if (!now(Transaction::no_start)) cluster_sync();
  for (int n = 0; n < steps; ++n) {
    const int b = now(Transaction::one_buffer) ? 0 : n % 2;
    uint64_t* barrier = barriers + b;
    uint4* to = buffers + b * 16 + piece;
    if (threadIdx.x == 0) {
      barrier_arrive(barrier, 256 - 16 * now(Transaction::too_few_bytes) +
                                  16 * now(Transaction::too_many_bytes));
    }
    if (sends) {
      if (now(Transaction::plain_store)) *peer_shared(to, previous) = mine;
      if (!now(Transaction::plain_store) || piece == 0) {
        for (int i = 0; i < (now(Transaction::plain_store) ? 16 : 1); ++i) {
          store_async(peer_address(now(Transaction::plain_store) ? buffers + 34 + i : to, previous),
                      mine, peer_address(barrier, previous));
        }
      }
    }
    const bool odd = (now(Transaction::one_buffer) ? n : n / 2) % 2 == 1;
    if (!now(Transaction::no_wait)) barrier_wait(barrier, odd != now(Transaction::old_phase));
    mine = *to;
    if (!now(Transaction::one_buffer)) __syncthreads();
  }
  if (sends) reinterpret_cast<uint4*>(p.out)[global_index() / 4] = mine;
}
__global__ void no_transaction_wait(Params p) { pass_on(p, Transaction::no_wait, 5); }
__global__ void too_few_transaction_bytes(Params p) { pass_on(p, Transaction::too_few_bytes, 5); }
__global__ void too_many_transaction_bytes(Params p) { pass_on(p, Transaction::too_many_bytes, 5); }
__global__ void wait_for_an_old_phase(Params p) { pass_on(p, Transaction::old_phase, 5); }
__global__ void plain_store_with_a_transaction(Params p) {
  pass_on(p, Transaction::plain_store, 5);
}
__global__ void store_to_a_block_that_has_not_begun(Params p) {
  pass_on(p, Transaction::no_start, 5);
}
__global__ void transactions_of_one_buffer(Params p) { pass_on(p, Transaction::one_buffer, 5); }

// A block that nobody sends to leaves while a store to it is on its way.
__global__ void leaving_before_a_store_lands(Params p) {
  auto* buffer = reinterpret_cast<uint4*>(shared_memory());
  auto* barrier = reinterpret_cast<uint64_t*>(buffer + 16);
  const unsigned previous = (cluster_rank() + cluster_size() - 1) % cluster_size();
  if (threadIdx.x == 0) barrier_init(barrier, 1);
  barrier_init_fence();
  cluster_sync();
  if (threadIdx.x == 0) barrier_arrive(barrier, 256);
  const auto* in = reinterpret_cast<const uint4*>(p.in);
  if (threadIdx.x < 16) {
    store_async(peer_address(buffer + threadIdx.x, previous), in[blockIdx.x * 16 + threadIdx.x],
                peer_address(barrier, previous));
  }
  if (!p.faulty) barrier_wait(barrier, false);
  p.out[global_index()] = p.in[global_index()];
}

// Blocks pass values on through global memory in words of 16 bytes that carry a tag, `steps` times
// round: out = in of the block that many places on.
enum class Tagged { right, torn, tag_apart, one_buffer, no_tag };

__device__ void pass_tagged(const Params& p, Tagged fault, int steps) {
  const auto now = [&](Tagged f) { return p.faulty && fault == f; };
  auto* exchange = reinterpret_cast<uint4*>(p.flags);  // [2][256], zeros; then [2][256] tags
  float mine = p.in[global_index()];
  for (unsigned n = 1; n <= unsigned(steps); ++n) {
    uint4* words = exchange + (now(Tagged::one_buffer) ? 0 : n % 2 * 256);
    const unsigned next = (blockIdx.x + 1) % gridDim.x * kThreads + threadIdx.x;
    const unsigned bits = __float_as_uint(mine);
    const uint4 word = make_uint4(bits, bits, bits, n);
    if (now(Tagged::torn)) {
      store_relaxed(reinterpret_cast<uint2*>(words + global_index()), make_uint2(bits, bits));
      store_relaxed(reinterpret_cast<uint2*>(words + global_index()) + 1, make_uint2(bits, n));
    } else {
      store_relaxed(words + global_index(), word);
    }
    if (now(Tagged::tag_apart)) store_relaxed(words + 512 + global_index(), word);
    uint4 seen = load_relaxed(words + next);
    if (now(Tagged::tag_apart)) {
      while (load_relaxed(words + 512 + next).w != n) {
      }
      seen = load_relaxed(words + next);
    } else {
      while (!now(Tagged::no_tag) && seen.w != n) seen = load_relaxed(words + next);
    }
    if (seen.x != seen.z || seen.w != n) __trap();
    mine = __uint_as_float(seen.x);
    // Whoever publishes step n + 1 has seen all of the others' step n.
    if (!now(Tagged::one_buffer)) {
      for (int b = 0; b < int(gridDim.x); ++b) {
        while (load_relaxed(words + b * kThreads + threadIdx.x).w < n) {
        }
      }
      __syncthreads();
    }
  }
  p.out[global_index()] = mine;
}
__global__ void torn_word(Params p) { pass_tagged(p, Tagged::torn, 5); }
__global__ void tag_in_another_word(Params p) { pass_tagged(p, Tagged::tag_apart, 5); }
__global__ void tagged_words_of_one_buffer(Params p) { pass_tagged(p, Tagged::one_buffer, 5); }
__global__ void no_look_at_the_tag(Params p) { pass_tagged(p, Tagged::no_tag, 5); }

// Blocks that are not ordered write the same place.
__global__ void race_between_blocks(Params p) {
  p.out[p.faulty ? threadIdx.x : global_index()] = p.in[global_index()];
}

// out = in of the right neighbour, through an asynchronous copy.
__global__ void missing_wait(Params p) {
  float* s = shared_floats();
  copy_async<4>(s + threadIdx.x, p.in + global_index());
  copy_async_commit();
  if (!p.faulty) copy_async_wait<0>();
  __syncthreads();
  p.out[global_index()] = s[neighbour()];
}

__global__ void missing_barrier_after_wait(Params p) {
  float* s = shared_floats();
  copy_async<4>(s + threadIdx.x, p.in + global_index());
  copy_async_commit();
  copy_async_wait<0>();
  if (!p.faulty) __syncthreads();
  p.out[global_index()] = s[neighbour()];
}

__global__ void wait_for_the_wrong_group(Params p) {
  float* s = shared_floats();
  for (int group = 0; group < 2; ++group) {
    copy_async<4>(s + group * kThreads + threadIdx.x, p.in + global_index());
    copy_async_commit();
  }
  if (p.faulty) {
    copy_async_wait<1>();
  } else {
    copy_async_wait<0>();
  }
  __syncthreads();
  p.out[global_index()] = s[kThreads + neighbour()];
}

// The next copy goes into the buffer that others still read.
__global__ void copy_over_a_buffer_in_use(Params p) {
  float* s = shared_floats();
  copy_async<4>(s + threadIdx.x, p.in + global_index());
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  p.out[global_index()] = s[neighbour()];
  if (!p.faulty) __syncthreads();
  copy_async<4>(s + threadIdx.x, p.in + global_index());
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void shared_overrun(Params p) {
  float* s = shared_floats();
  s[threadIdx.x] = p.in[global_index()];
  __syncthreads();
  if (p.faulty && threadIdx.x == 0) s[2 * kThreads] = 0;
  p.out[global_index()] = s[neighbour()];
}

__global__ void global_overrun(Params p) {
  const int i = global_index();
  p.out[i] = p.in[i + (p.faulty ? 1 : 0)];
}

__global__ void negative_index(Params p) {
  const int i = global_index();
  p.out[i] = p.in[i - (p.faulty ? 1 : 0)];
}

__global__ void write_to_an_input(Params p) {
  const int i = global_index();
  p.out[i] = p.in[i];
  if (p.faulty) const_cast<float*>(p.in)[i] = 1;
}

__global__ void register_overrun(Params p) {
  float values[4] = {p.in[global_index()], 1, 2, 3};
  p.out[global_index()] = values[p.faulty ? 4 : 0];
}

__global__ void misaligned_vector(Params p) {
  const int i = global_index();
  if (i >= 63) return;
  const float* from = p.in + 4 * i + (p.faulty ? 1 : 0);
  *reinterpret_cast<float4*>(p.out + 4 * i) = *reinterpret_cast<const float4*>(from);
}

__global__ void divergent_shuffle(Params p) {
  float value = p.in[global_index()];
  if (p.faulty && threadIdx.x % 32 < 16) {
    __syncwarp();
  } else {
    value = __shfl_sync(0xffffffffu, value, 0);
  }
  p.out[global_index()] = value;
}

__global__ void barrier_that_some_miss(Params p) {
  if (!p.faulty || threadIdx.x < 32) named_barrier(1, kThreads);
  p.out[global_index()] = p.in[global_index()];
  __syncthreads();
}

__global__ void flag_that_nobody_sets(Params p) {
  if (threadIdx.x == 0) {
    while (load_acquire(p.flags) != (p.faulty ? 1 : 0)) pause(20);
  }
  p.out[global_index()] = p.in[global_index()];
}

// out = A B of one warp, 16-bit or TF32: the fragments of B are filled transposed if faulty.
template <typename T>
__global__ void wrong_fragment(Params p) {
  if (threadIdx.x >= 32) return;
  const int group = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  uint32_t a[4], b[2];
  float d[4] = {};
  if constexpr (sizeof(T) == 2) {  // A: 16 x 16, row major; B: 16 x 8, row major, at in + 256
    auto pack = [](float x, float y) {
      const T pair[2] = {from_float<T>(x), from_float<T>(y)};
      uint32_t bits;
      memcpy(&bits, pair, 4);
      return bits;
    };
    for (int r = 0; r < 4; ++r) {
      const float* row = p.in + 16 * (group + 8 * (r % 2)) + 2 * t + 8 * (r / 2);
      a[r] = pack(row[0], row[1]);
    }
    for (int r = 0; r < 2; ++r) {
      const int k = 2 * t + 8 * r;
      auto element = [&](int k, int n) { return p.in[256 + 8 * k + n]; };
      b[r] = p.faulty ? pack(element(group + 8 * r, 2 * t), element(group + 8 * r, 2 * t + 1))
                      : pack(element(k, group), element(k + 1, group));
    }
  } else {  // A: 16 x 8, B: 8 x 8
    for (int r = 0; r < 4; ++r) {
      a[r] = to_tf32(p.in[8 * (group + 8 * (r % 2)) + t + 4 * (r / 2)]);
    }
    for (int r = 0; r < 2; ++r) {
      b[r] = to_tf32(p.faulty ? p.in[256 + 8 * group + t + 4 * r]
                              : p.in[256 + 8 * (t + 4 * r) + group]);
    }
  }
  mma<T>(d, a, b);
  for (int i = 0; i < 4; ++i) p.out[8 * (group + 8 * (i / 2)) + 2 * t + i % 2] = d[i];
}

cudaError_t run(void (*kernel)(Params), unsigned cluster, bool cooperative, const Params& p) {
  LaunchShape shape;
  shape.grid = dim3(4);
  shape.block = dim3(kThreads);
  shape.shared_bytes = cluster > 1 ? 1024 : 2 * kThreads * sizeof(float);
  shape.cluster = cluster;
  shape.cooperative = cooperative;
  return launch(kernel, shape, nullptr, p);
}

__global__ void nothing(Params) {}

}  // namespace

#define ENTRY(name, kernel, cluster, cooperative)                                             \
  extern "C" cudaError_t name(float* out, const float* in, unsigned* flags, int64_t faulty) { \
    return run(kernel, cluster, cooperative, {out, in, flags, faulty != 0});                  \
  }
#define PLAIN(name) ENTRY(run_##name, name, 1, false)
PLAIN(missing_barrier)
PLAIN(race_on_a_double_buffer)
PLAIN(missing_warp_barrier)
ENTRY(run_missing_cluster_barrier, missing_cluster_barrier, 4, false)
ENTRY(run_leaving_the_cluster_early, leaving_the_cluster_early, 4, false)
ENTRY(run_store_after_arrival, store_after_arrival, 4, false)
ENTRY(run_missing_flag, missing_flag, 1, true)
ENTRY(run_flag_before_the_data, flag_before_the_data, 1, true)
#define CLUSTER(name) ENTRY(run_##name, name, 4, false)
CLUSTER(no_transaction_wait)
CLUSTER(too_few_transaction_bytes)
CLUSTER(too_many_transaction_bytes)
CLUSTER(wait_for_an_old_phase)
CLUSTER(plain_store_with_a_transaction)
CLUSTER(store_to_a_block_that_has_not_begun)
CLUSTER(transactions_of_one_buffer)
CLUSTER(leaving_before_a_store_lands)
#define GRID(name) ENTRY(run_##name, name, 1, true)
GRID(torn_word)
GRID(tag_in_another_word)
GRID(tagged_words_of_one_buffer)
GRID(no_look_at_the_tag)
PLAIN(race_between_blocks)
PLAIN(missing_wait)
PLAIN(missing_barrier_after_wait)
PLAIN(wait_for_the_wrong_group)
PLAIN(copy_over_a_buffer_in_use)
PLAIN(shared_overrun)
PLAIN(global_overrun)
PLAIN(negative_index)
PLAIN(write_to_an_input)
PLAIN(register_overrun)
PLAIN(misaligned_vector)
PLAIN(divergent_shuffle)
PLAIN(barrier_that_some_miss)
PLAIN(flag_that_nobody_sets)
#define ONE_BLOCK(name, kernel)                                                               \
  extern "C" cudaError_t name(float* out, const float* in, unsigned* flags, int64_t faulty) { \
    LaunchShape shape;                                                                        \
    shape.block = dim3(kThreads);                                                             \
    shape.shared_bytes = 2 * 384;                                                             \
    return launch(kernel, shape, nullptr, Params{out, in, flags, faulty != 0});               \
  }
ONE_BLOCK(run_wrong_fragment_half, wrong_fragment<__half>)
ONE_BLOCK(run_wrong_fragment_bfloat16, wrong_fragment<__nv_bfloat16>)
ONE_BLOCK(run_wrong_fragment_tf32, wrong_fragment<Tf32>)

extern "C" cudaError_t run_shape(int64_t grid, int64_t block, int64_t shared_bytes, int64_t cluster,
                                 int64_t cooperative) {
  LaunchShape shape;
  shape.grid = dim3(unsigned(grid));
  shape.block = dim3(unsigned(block));
  shape.shared_bytes = size_t(shared_bytes);
  shape.cluster = unsigned(cluster);
  shape.cooperative = cooperative != 0;
  return launch(nothing, shape, nullptr, Params{});
}

// The shared memory that run_shape's kernel may have by now.
extern "C" cudaError_t shape_limit(int64_t* bytes) {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing));
  *bytes = attributes.maxDynamicSharedSizeBytes;
  return error;
}
