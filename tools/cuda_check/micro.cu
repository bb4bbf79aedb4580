// What a step of the resident kernels is made of, each part measured alone. A program of its own:
// it prints one JSON object a line, {"name": .., "n": .., "value": .., "unit": ..}, or with "error"
// in the place of a value. docs/cuda-check.md says which constant of the choice each one corrects.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace {

constexpr int kThreads = 512;  // of a resident block
constexpr int kRounds = 256;
constexpr int kPayload = 16384;  // bytes to each peer, or from L2, a round

#if __CUDA_ARCH__ >= 900
#define SM90(...) asm volatile(__VA_ARGS__)
#else
#define SM90(...) __trap()
#endif

__device__ unsigned cluster_rank() {
  unsigned rank = 0;
  SM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

template <bool kRelease>
__device__ void cluster_barrier() {
  if (kRelease) {
    SM90("barrier.cluster.arrive.release.aligned;" :: : "memory");
    SM90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
  } else {
    SM90("barrier.cluster.arrive.relaxed.aligned;" :: : "memory");
    SM90("barrier.cluster.wait.aligned;" :: : "memory");
  }
}

__device__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ unsigned of_peer(unsigned address, unsigned rank) {
  unsigned result = 0;
  SM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// Cycles of thread 0 of block 0 for each of kRounds rounds, after some to warm up.
template <class Round>
__device__ void measure(long long* cycles, Round round) {
  long long start = 0;
  for (int i = -16; i < kRounds; ++i) {
    if (i == 0) start = clock64();
    round(i + 16);
  }
  const long long end = clock64();
  if (threadIdx.x == 0 && blockIdx.x == 0) *cycles = end - start;
}

// A barrier of the cluster, with a word on its way to global memory or not.
template <bool kRelease, bool kStore>
__global__ void barriers(long long* cycles, unsigned* memory) {
  unsigned* mine = memory + blockIdx.x * kThreads + threadIdx.x;
  measure(cycles, [&](int i) {
    if (kStore) *static_cast<volatile unsigned*>(mine) = i;
    cluster_barrier<kRelease>();
  });
}

// 16 bytes to the other block and back, by stores that complete a transaction of its mbarrier.
__global__ void st_async(long long* cycles, unsigned*) {
  __shared__ alignas(16) uint4 box;
  __shared__ alignas(8) uint64_t barrier;
  const unsigned rank = cluster_rank(), mine = shared_address(&barrier);
  const unsigned to = of_peer(shared_address(&box), 1 - rank), signal = of_peer(mine, 1 - rank);
  SM90("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(mine) : "memory");
  SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
  cluster_barrier<true>();
  const auto send = [&](unsigned x) {
    SM90(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %1, %1, %1},"
        " [%2];" ::"r"(to),
        "r"(x), "r"(signal) : "memory");
  };
  const auto await = [&](unsigned phase) {
    SM90(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(mine),
        "r"(phase) : "memory");
  };
  measure(cycles, [&](int i) {
    SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16;" ::"r"(mine) : "memory");
    if (rank == 0) send(i);
    await(i % 2);
    if (rank == 1) send(i);
  });
  cluster_barrier<true>();
}

// Stores to the shared memory of every block of the cluster, kPayload bytes to each.
__global__ void peer_stores(long long* cycles, unsigned* blocks) {
  extern __shared__ uint4 box[];
  const unsigned count = *blocks;
  measure(cycles, [&](int i) {
    for (unsigned peer = 0; peer < count; ++peer) {
      const unsigned to = of_peer(shared_address(box + threadIdx.x), peer);
      for (int k = 0; k < kPayload / 16 / kThreads; ++k) {
        SM90("st.shared::cluster.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to + k * kThreads * 16),
             "r"(i) : "memory");
      }
    }
    cluster_barrier<true>();
  });
}

// A fence, with `Stores` words of each thread on their way.
template <int Stores>
__global__ void fences(long long* cycles, unsigned* memory) {
  volatile unsigned* mine = memory + (blockIdx.x * kThreads + threadIdx.x) * 8;
  measure(cycles, [&](int i) {
#pragma unroll
    for (int k = 0; k < Stores; ++k) mine[k] = i;
    __threadfence();
  });
}

// A flag from block to block and back through L2.
__global__ void flag(long long* cycles, unsigned* memory) {
  unsigned *mine = memory + blockIdx.x * 64, *other = memory + (1 - blockIdx.x) * 64;
  const auto raise = [&](unsigned x) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(mine), "r"(x) : "memory");
  };
  const auto await = [&](unsigned x) {
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(other) : "memory");
    } while (seen < x);
  };
  measure(cycles, [&](int i) {
    if (blockIdx.x == 0) raise(i + 1);
    await(i + 1);
    if (blockIdx.x == 1) raise(i + 1);
  });
}

// The same by a word of 16 bytes, the last four of which are the number of the round.
__global__ void tagged_word(long long* cycles, unsigned* memory) {
#if __CUDA_ARCH__ >= 700
  unsigned *mine = memory + blockIdx.x * 64, *other = memory + (1 - blockIdx.x) * 64;
  const auto send = [&](unsigned x) {
    const uint64_t high = uint64_t(x) << 32 | x;
    asm volatile(
        "{.reg .b128 w;\nmov.b128 w, {%1, %1};\nst.relaxed.gpu.global.b128 [%0], w;}" ::"l"(mine),
        "l"(high)
        : "memory");
  };
  const auto await = [&](unsigned x) {
    uint64_t low, high;
    do {
      asm volatile("{.reg .b128 w;\nld.relaxed.gpu.global.b128 w, [%2];\nmov.b128 {%0, %1}, w;}"
                   : "=l"(low), "=l"(high)
                   : "l"(other)
                   : "memory");
    } while (unsigned(high >> 32) < x || unsigned(low) < x);
  };
  measure(cycles, [&](int i) {
    if (blockIdx.x == 0) send(i + 1);
    await(i + 1);
    if (blockIdx.x == 1) send(i + 1);
  });
#endif
}

// Every block reads the same kPayload bytes, which L2 has, past L1.
__global__ void l2_read(long long* cycles, unsigned* memory) {
  const uint4* from = reinterpret_cast<const uint4*>(memory) + threadIdx.x;
  unsigned sum = 0;
  measure(cycles, [&](int) {
#pragma unroll
    for (int k = 0; k < kPayload / 16 / kThreads; ++k) {
      unsigned x, y, z, w;
      asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                   : "l"(from + k * kThreads));
      sum += x ^ y ^ z ^ w;
    }
    __syncthreads();
  });
  if (sum == 1) memory[threadIdx.x] = sum;  // all words are zero: the sum is only used up
}

enum class Format { bf16, tf32 };

// 16 warps with `Chains` independent sums each.
template <Format F, int Chains>
__global__ void mma(long long* cycles, unsigned*) {
#if __CUDA_ARCH__ >= 800
  float d[Chains][4] = {};
  const unsigned a = threadIdx.x, b = blockIdx.x;
  measure(cycles, [&](int) {
#pragma unroll
    for (int c = 0; c < Chains; ++c) {
      if constexpr (F == Format::bf16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, "
            "%4},"
            " {%5, %5}, {%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a), "r"(b));
      } else {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4},"
            " {%5, %5}, {%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a), "r"(b));
      }
    }
  });
#endif
}

constexpr int kWgmmas = 8;  // in a row

// Four warpgroups; the matrix comes from registers, the vectors from shared memory.
__global__ void wgmma(long long* cycles, unsigned*) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ alignas(128) unsigned char vectors[8 * 16 * 2];
  for (int i = threadIdx.x; i < int(sizeof(vectors)); i += kThreads) vectors[i] = 0;
  __syncthreads();
  // 8 x 16 bfloat16 without swizzle: core matrices of 8 x 16 bytes, 128 bytes apart along k.
  const uint64_t b = uint64_t(shared_address(vectors) >> 4 & 0x3fff) | uint64_t(128 >> 4) << 16 |
                     uint64_t(256 >> 4) << 32;
  const unsigned a = threadIdx.x;
  float d[4] = {};
  measure(cycles, [&](int) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < kWgmmas; ++k) {
      asm volatile(
          "{.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %4, %4, %4},"
          " %5, p, 1, 1, 0;}"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a), "l"(b));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  });
#endif
}

__global__ void spin(long long* cycles, unsigned* nanoseconds) {
  uint64_t begin, end;
  const long long start = clock64();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  while (clock64() - start < 20'000'000) {
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end));
  *cycles = clock64() - start;
  *nanoseconds = unsigned(end - begin);
}

__global__ void nothing(long long*, unsigned*) {}

using Kernel = void (*)(long long*, unsigned*);

struct Shape {
  int blocks = 1, threads = kThreads, cluster = 1;
  size_t shared = 0;
};

long long* g_cycles;
unsigned* g_memory;

cudaError_t launch(Kernel kernel, const Shape& shape) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = shape.cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1;
  if (shape.cluster > 8) {
    const auto function = reinterpret_cast<const void*>(kernel);
    cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return cudaLaunchKernelEx(&config, kernel, g_cycles, g_memory);
}

void print(const char* name, int n, double value, const char* unit) {
  std::printf("{\"name\": \"%s\", \"n\": %d, \"value\": %.4f, \"unit\": \"%s\"}\n", name, n, value,
              unit);
  std::fflush(stdout);
}

void print(const char* name, int n, cudaError_t error) {
  std::printf("{\"name\": \"%s\", \"n\": %d, \"error\": \"%s\"}\n", name, n,
              cudaGetErrorString(error));
  std::fflush(stdout);
}

// Cycles a round, the least of five launches; negative after an error, which is printed.
double cycles_of(const char* name, int n, Kernel kernel, const Shape& shape,
                 unsigned first_word = 0) {
  long long least = -1;
  for (int i = 0; i < 5; ++i) {
    cudaMemset(g_memory, 0, 1 << 20);  // flags begin at 0
    cudaMemcpy(g_memory, &first_word, 4, cudaMemcpyHostToDevice);
    cudaError_t error = launch(kernel, shape);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
      cudaGetLastError();
      print(name, n, error);
      return -1;
    }
    long long found;
    cudaMemcpy(&found, g_cycles, sizeof(found), cudaMemcpyDeviceToHost);
    least = least < 0 ? found : std::min(least, found);
  }
  return double(least) / kRounds;
}

// Prints cycles a round divided by `parts`.
void latency(const char* name, int n, Kernel kernel, const Shape& shape, double parts = 1) {
  const double cycles = cycles_of(name, n, kernel, shape);
  if (cycles >= 0) print(name, n, cycles / parts, "cycles");
}

// Prints `work` a round by cycles a round.
void rate(const char* name, int n, Kernel kernel, const Shape& shape, double work, const char* unit,
          unsigned first_word = 0) {
  const double cycles = cycles_of(name, n, kernel, shape, first_word);
  if (cycles > 0) print(name, n, work / cycles, unit);
}

void clock_and_launch() {
  const Shape one = {1, 1};
  if (cycles_of("sm_clock", 1, spin, one) >= 0) {
    long long cycles;
    unsigned nanoseconds;
    cudaMemcpy(&cycles, g_cycles, sizeof(cycles), cudaMemcpyDeviceToHost);
    cudaMemcpy(&nanoseconds, g_memory, sizeof(nanoseconds), cudaMemcpyDeviceToHost);
    print("sm_clock", 1, double(cycles) / nanoseconds, "GHz");
  }
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  constexpr int kLaunches = 2000;
  float milliseconds = 0;
  cudaEventRecord(begin);
  for (int i = 0; i < kLaunches; ++i) launch(nothing, one);
  cudaEventRecord(end);
  cudaEventSynchronize(end);
  cudaEventElapsedTime(&milliseconds, begin, end);
  print("launch", 1, milliseconds * 1e3 / kLaunches, "us");
}

void clusters() {
  for (int n = 2; n <= 16; n *= 2) {
    const Shape shape = {n, kThreads, n};
    latency("cluster_barrier_relaxed", n, barriers<false, false>, shape);
    latency("cluster_barrier_release", n, barriers<true, false>, shape);
    latency("cluster_barrier_release_store", n, barriers<true, true>, shape);
    const Shape stores = {n, kThreads, n, kPayload};
    rate("peer_stores", n, peer_stores, stores, double(kPayload) * n, "bytes/cycle", unsigned(n));
  }
  latency("st_async", 2, st_async, {2, 1, 2}, 2);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  if (const cudaError_t error = cudaGetDeviceProperties(&device, 0); error != cudaSuccess) {
    print("device", 0, error);
    return 1;
  }
  const int sms = device.multiProcessorCount, capability = device.major * 10 + device.minor;
  cudaMalloc(&g_cycles, sizeof(long long));
  cudaMalloc(&g_memory, size_t(sms) * kThreads * 32 + (1 << 20));
  clock_and_launch();
  if (capability >= 90) clusters();
  for (const int blocks : {1, sms}) {
    latency("fence", blocks, fences<0>, {blocks});
    latency("fence_1_store", blocks, fences<1>, {blocks});
    latency("fence_4_stores", blocks, fences<4>, {blocks});
    rate("l2_read", blocks, l2_read, {blocks}, kPayload, "bytes/cycle");
  }
  latency("l2_flag", 2, flag, {2, 1}, 2);
  latency("l2_tagged_word", 2, tagged_word, {2, 1}, 2);
  if (capability >= 80) {
    const double bf16 = 16. * 16 * 8 * 16, tf32 = bf16 / 2;  // multiply-adds of 16 warps
    latency("mma_bf16_latency", 1, mma<Format::bf16, 1>, {1, 32});
    rate("mma_bf16", 16, mma<Format::bf16, 4>, {sms}, 4 * bf16, "multiply-adds/cycle");
    rate("mma_tf32", 16, mma<Format::tf32, 4>, {sms}, 4 * tf32, "multiply-adds/cycle");
  }
  if (capability == 90) {
    rate("wgmma_bf16", 4, wgmma, {sms}, 4. * 64 * 8 * 16 * kWgmmas, "multiply-adds/cycle");
  }
  return 0;
}
