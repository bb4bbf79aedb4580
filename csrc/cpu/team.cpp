#include "team.h"

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
// the team is whoever is at the gate when it closes; whoever comes later finds nothing to do.
struct Gate {
  void (*task)(void*, Worker&);
  void* context;
  int expected;
  std::atomic<int> indices{0};
  std::atomic<int> arrived{0};  // kClosed is added when the gate closes
  std::atomic<int> size{0};     // 0 until then
  Barrier barriers[1 + kMaxWorkers];

  static constexpr int kClosed = 1 << 20;

  void enter(int n_indices) {
    const int rank = arrived.fetch_add(1);
    if (rank >= kClosed) return;
    indices.fetch_add(n_indices);
    if (rank == 0) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
      int spins = 0;
      while (indices.load() < expected &&
             (++spins % 64 != 0 || std::chrono::steady_clock::now() < deadline))
        pause();
      size.store(arrived.fetch_add(kClosed));
    }
    spin_until([this] { return size.load() != 0; });
    Worker worker(barriers, rank, size.load());
    task(context, worker);
  }
};

}  // namespace

void Barrier::wait(int size, int64_t& phase) {
  const int64_t target = ++phase * size;
  if (arrived_.fetch_add(1) + 1 == target) return;
  spin_until([&] { return arrived_.load() >= target; });
}

int max_threads() {
  uint32_t n = 1;
  torch_get_num_threads(&n);
  return std::clamp(static_cast<int>(n), 1, kMaxWorkers);
}

void run_team(int threads, void (*task)(void*, Worker&), void* context) {
  Gate gate{};
  gate.task = task;
  gate.context = context;
  gate.expected = threads;
  if (threads == 1) return gate.enter(1);
  const AOTITorchError error = torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* gate) {
        static_cast<Gate*>(gate)->enter(static_cast<int>(end - begin));
      },
      &gate);
  // A task does not throw: what it could refuse is checked before.
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("rnnext: torch's thread pool failed");
}

}  // namespace rnnext
