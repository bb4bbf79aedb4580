#include "cpu/runtime/team.h"

#include <sched.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace rnnext {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(Condition condition) {
  for (int i = 0; !condition(); ++i) {
    if (i < 4000) {
      pause();
    } else {
      sched_yield();
    }
  }
}

// A pool may give fewer threads than asked for, or run two tasks on one thread after another. So
// the team is whoever is at the gate when it closes; whoever comes later finds nothing to do. Ranks
// follow the pool's own order: from call to call a thread then works on the same rows, which its
// core's caches still hold.
struct Gate {
  void (*task)(void*, Worker&);
  void* context;
  int expected;
  std::atomic<int64_t> indices{0};
  std::atomic<uint64_t> arrived{0};  // a bit for the first index of each; kClosed when it closes
  std::atomic<uint64_t> members{0};  // 0 until then
  Count counts[1 + kMaxWorkers];

  static constexpr uint64_t kClosed = uint64_t{1} << kMaxWorkers;

  void enter(int64_t begin, int64_t end) {
    const uint64_t mine = uint64_t{1} << begin;
    const uint64_t before = arrived.fetch_or(mine);
    if (before & kClosed) return;
    indices.fetch_add(end - begin);
    if (before == 0) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
      int spins = 0;
      while (indices.load() < expected &&
             (++spins % 64 != 0 || std::chrono::steady_clock::now() < deadline))
        pause();
      members.store(arrived.fetch_or(kClosed));
    }
    spin_until([this] { return members.load() != 0; });
    const uint64_t team = members.load();
    Worker worker(counts, __builtin_popcountll(team & (mine - 1)), __builtin_popcountll(team),
                  expected);
    task(context, worker);
  }
};

}  // namespace

void Count::spin_for(int64_t n) const {
  spin_until([&] { return n_.load(std::memory_order_acquire) >= n; });
}

int max_threads() {
  uint32_t n = 1;
  torch_get_num_threads(&n);
  return std::clamp(static_cast<int>(n), 1, kMaxWorkers);
}

void run_team(int threads, void (*task)(void*, Worker&), void* context) {
  if (threads == 1) {
    Count counts[2];
    Worker alone(counts, 0, 1, 1);
    return task(context, alone);
  }
  Gate gate{};
  gate.task = task;
  gate.context = context;
  gate.expected = threads;
  const AOTITorchError error = torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* gate) { static_cast<Gate*>(gate)->enter(begin, end); },
      &gate);
  // A task does not throw: what it could refuse is checked before.
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("rnnext: torch's thread pool failed");
}

}  // namespace rnnext
