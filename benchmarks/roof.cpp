// The machine's limits: multiply-add rate and read bandwidth, with `threads` threads at once.
// Built by roof.py with -O3 -march=native; the vector width is the CPU's.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kBytes = __BIGGEST_ALIGNMENT__;  // of a vector
constexpr int kChains =
    12;  // enough independent accumulators to cover the latency of two FMA units

// Seconds that the slowest of `threads` threads needs for work(), all started together.
template <class Work>
double Slowest(int threads, Work work) {
  std::atomic<int> ready{0};
  std::vector<double> seconds(threads);
  std::vector<std::thread> pool;
  auto body = [&](int id) {
    auto run = work(id);  // allocates and touches its memory
    ready.fetch_add(1);
    while (ready.load() < threads) std::this_thread::yield();
    auto start = std::chrono::steady_clock::now();
    run();
    seconds[id] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (int id = 1; id < threads; ++id) pool.emplace_back(body, id);
  body(0);
  for (auto& thread : pool) thread.join();
  return *std::max_element(seconds.begin(), seconds.end());
}

template <class T>
void FmaLoop(int64_t steps) {
  typedef T Vec __attribute__((vector_size(kBytes)));
  Vec acc[kChains], a, b;
  for (size_t i = 0; i < kBytes / sizeof(T); ++i) a[i] = T(0.5), b[i] = T(0.25);
  for (auto& v : acc) v = b;
  for (int64_t s = 0; s < steps; ++s) {
    for (auto& v : acc) v = v * a + b;
    asm volatile("" : "+x"(a), "+x"(b));  // so that the steps are not folded into one
  }
  for (auto& v : acc) asm volatile("" : : "x"(v));
}

#ifdef __AMX_BF16__
// As many multiply-adds as below.
void Bf16Loop(int64_t steps) {
  alignas(64) uint8_t config[64] = {1};
  for (int i = 0; i < 8; ++i) config[16 + 2 * i] = 64, config[48 + i] = 16;  // bytes, rows
  _tile_loadconfig(config);
  for (int64_t s = 0; s < steps * 3 / 256; ++s) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#elif defined(__AVX512BF16__)
void Bf16Loop(int64_t steps) {
  __m512 acc[kChains];
  __m512bh a = {}, b = {};
  for (auto& v : acc) v = __m512{};
  for (int64_t s = 0; s < steps; ++s) {
    asm volatile("" : "+v"(a), "+v"(b));
    for (auto& v : acc) v = _mm512_dpbf16_ps(v, a, b);
  }
  for (auto& v : acc) asm volatile("" : : "v"(v));
}
#else
constexpr void (*Bf16Loop)(int64_t) = nullptr;
#endif

typedef int64_t Word __attribute__((vector_size(kBytes)));

void ReadLoop(const Word* data, int64_t words, int64_t passes) {
  Word acc[8] = {};
  for (int64_t p = 0; p < passes; ++p) {
    for (int64_t i = 0; i + 8 <= words; i += 8)
      for (int j = 0; j < 8; ++j) acc[j] |= data[i + j];
    asm volatile("" : : : "memory");
  }
  for (auto& v : acc) asm volatile("" : : "x"(v));
}

}  // namespace

// Operations a second (a multiply-add is two) of float32 (0), float64 (1) or bfloat16 (2: AMX tiles
// or the dot product) over `threads` threads; 0 where the CPU lacks them, or Linux refuses tiles.
extern "C" double roof_flops(int type, int threads, int64_t steps) {
#ifdef __AMX_BF16__
  if (type == 2 && syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 0;
#endif
  void (*const loops[])(int64_t) = {FmaLoop<float>, FmaLoop<double>, Bf16Loop};
  if (!loops[type]) return 0;
  auto work = [=](int) { return [=] { loops[type](steps); }; };
  const int per_vector = type == 1 ? kBytes / 8 : type == 0 ? kBytes / 4 : kBytes / 2;
  return 2.0 * per_vector * kChains * double(steps) * threads / Slowest(threads, work);
}

// Bytes a second read by `threads` threads, each going `passes` times over `bytes` of its own.
extern "C" double roof_read(int64_t bytes, int threads, int64_t passes) {
  const int64_t words = bytes / kBytes;
  std::vector<std::vector<Word>> memory(threads);
  auto work = [&](int id) {
    memory[id].assign(words, Word{} + 1);
    const Word* data = memory[id].data();
    ReadLoop(data, words, 1);
    return [=] { ReadLoop(data, words, passes); };
  };
  return double(words) * kBytes * passes * threads / Slowest(threads, work);
}
