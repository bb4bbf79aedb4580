#include "cpu/runtime/team.h"

#include <pthread.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <thread>

namespace rnnext {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now() {  // nanoseconds
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
constexpr int64_t kMicrosecond = 1000, kMillisecond = 1000 * kMicrosecond;

// Threads of a team wait for each other for microseconds, unless one has lost its core to another
// process: it gets a core back sooner if the others sleep.
constexpr int64_t kSpin = 100 * kMicrosecond;
void nap() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

// How long a team waits for the pool's threads, which may be asleep.
constexpr int64_t kRegistrationTime = 200 * kMicrosecond;
// RNNEXT_CPU_TEAM=whole: calls wait for all of their threads, however busy the machine is. Tests
// set it, because a team without its late threads hides faults.
const bool kWhole = [] {
  const char* const team = std::getenv("RNNEXT_CPU_TEAM");
  return team && std::string_view(team) == "whole";
}();

// Whether a call should ask for other threads. If other processes use the same cores, threads come
// milliseconds late, and the pool waits for them: one thread alone is then faster. A process that
// has lost much time this way calls no others for a while, then tries again.
class ContentionGuard {
 public:
  bool allows_team() const {
    const int64_t until = alone_until_.load();
    return !forked_.load() && (kWhole || until == 0 || now() >= until);
  }
  // Takes note of a call: how long its caller was busy with its own parts, and how long it then
  // waited for the other threads.
  void update(int threads, int64_t busy, int64_t waited) {
    if (waited < kLate) waited = 0;  // the parts of a call differ in length
    if (stalled_.load() > 0) {
      const int64_t stalled = stalled_.exchange(0);
      busy -= stalled, waited += stalled;
    }
    // Alone, a call takes up to `threads` times as long; waiting up to that long is no loss.
    const int64_t before = lost_.load();
    const int64_t lost =
        std::max<int64_t>(before + waited - threads * std::max<int64_t>(busy, 0), 0);
    if (lost == 0) {
      if (before > 0) lost_.store(0), pause_.store(std::max(pause_.load() / 4, kFirstPause));
    } else if (lost < kPatience) {
      lost_.store(lost);
    } else {
      lost_.store(kPatience / 2);  // the first call after the pause will find the others asleep
      const int64_t pause = pause_.load();
      pause_.store(std::min(4 * pause, kLongestPause));
      alone_until_.store(now() + pause);
    }
  }
  // Takes note that a worker waited so long for another in the middle of a call.
  void stalled(int64_t time) {
    if (time >= kLate) stalled_.fetch_add(time);
  }
  // The child of a fork() has no threads but its own; libgomp would wait for those of its parent.
  void forked() { forked_.store(true); }

 private:
  static constexpr int64_t kLate = kMillisecond, kPatience = 24 * kMillisecond;
  static constexpr int64_t kFirstPause = 32 * kMillisecond, kLongestPause = 1024 * kMillisecond;

  std::atomic<bool> forked_{false};
  // Time lost to waiting, less the time that teams have saved since.
  std::atomic<int64_t> lost_{0}, stalled_{0};
  std::atomic<int64_t> alone_until_{0}, pause_{kFirstPause};
};
ContentionGuard contention;
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { contention.forked(); });

template <class Condition>
void spin_until(Condition condition) {
  int64_t begin = 0, end = 0;
  for (int i = 1; !condition(); ++i) {
    pause();
    if (i % 64 != 0) continue;
    end = now();
    if (begin == 0) begin = end;
    if (end - begin < kSpin) continue;
    nap();
  }
  if (end > begin) contention.stalled(end - begin);
}

// A pool may give fewer threads than it was asked for, or run two tasks on one thread after
// another. So the threads that come before the registration closes are the team, and later ones
// find nothing to do. Ranks follow the pool's own order, so that a thread works on the same rows
// from call to call, which its core's caches still hold.
struct Registration {
  void (*task)(void*, Worker&);
  void* context;
  bool waits;
  int expected;
  std::atomic<int64_t> indices{0};
  std::atomic<uint64_t> arrived{0};  // a bit for the first index of each thread, and kClosed
  std::atomic<uint64_t> members{0};  // 0 until it closes
  Count counts[1 + kMaxWorkers]{};
  int64_t called;    // when the caller came
  int64_t done = 0;  // and when it had done its part

  static constexpr uint64_t kClosed = uint64_t{1} << kMaxWorkers;

  void enter(int64_t begin, int64_t end) {
    if (!waits) {
      for (int64_t i = begin; i < end; ++i) {
        Worker worker(counts, static_cast<int>(i), expected);
        task(context, worker);
      }
      if (begin == 0) done = now();
      return;
    }
    const uint64_t mine = uint64_t{1} << begin;
    const uint64_t before = arrived.fetch_or(mine);
    if (before & kClosed) return;
    indices.fetch_add(end - begin);
    if (before == 0) {
      const int64_t deadline = called + (kWhole ? 1000 * kMillisecond : kRegistrationTime);
      int spins = 0;
      while (indices.load() < expected && (++spins % 64 != 0 || now() < deadline)) {
        pause();
        if (kWhole && spins % 64 == 0) nap();
      }
      members.store(arrived.fetch_or(kClosed));
    }
    spin_until([this] { return members.load() != 0; });
    const uint64_t team = members.load();
    Worker worker(counts, __builtin_popcountll(team & (mine - 1)), __builtin_popcountll(team));
    task(context, worker);
    if (begin == 0) done = now();
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

void run_team(int threads, bool waits, void (*task)(void*, Worker&), void* context) {
  if (threads == 1 || !contention.allows_team()) {
    Count counts[2];
    Worker alone(counts, 0, 1);
    return task(context, alone);
  }
  const auto enter = [](int64_t begin, int64_t end, void* to) {
    static_cast<Registration*>(to)->enter(begin, end);
  };
  Registration call{
      .task = task, .context = context, .waits = waits, .expected = threads, .called = now()};
  // A task does not throw: what it could refuse is checked before.
  if (torch_parallel_for(0, threads, 1, enter, &call) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("rnnext: torch's thread pool failed");
  if (call.done == 0) call.done = call.called;  // too late for the team
  contention.update(threads, call.done - call.called, now() - call.done);
}

}  // namespace rnnext
