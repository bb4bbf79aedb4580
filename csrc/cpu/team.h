// The threads that work on one call: as many as torch's pool really gives, with a barrier.
#pragma once

#include <atomic>
#include <cstdint>

namespace rnnext {

class alignas(64) Barrier {  // groups do not share a cache line
 public:
  // Waits until `size` threads are here. `phase` is the caller's own count of the barriers it met.
  // Spins, since a step of the recurrence takes a microsecond, but yields when it takes long:
  // machines are oversubscribed.
  void wait(int size, int64_t& phase);

 private:
  std::atomic<int64_t> arrived_{0};
};

// One thread's view of its team.
class Worker {
 public:
  Worker(Barrier* barriers, int rank, int size) : rank(rank), size(size), barriers_(barriers) {}
  void wait() { barriers_[0].wait(size, phase_[0]); }
  // Waits for the `members` workers of a group alone, each with a barrier of its own (group <
  // size).
  void wait(int group, int members) {
    if (members > 1) barriers_[1 + group].wait(members, phase_[1]);
  }

  const int rank, size;

 private:
  Barrier* barriers_;
  int64_t phase_[2] = {0, 0};
};

constexpr int kMaxWorkers = 63;  // the gate has a bit for each and one for itself

// Calls task(context, worker) on up to `threads` threads of torch's pool at once and returns when
// all are done. Inside another parallel region it runs on the caller alone.
void run_team(int threads, void (*task)(void*, Worker&), void* context);

int max_threads();

}  // namespace rnnext
