// The threads that work on one call: as many as torch's pool really gives, with a barrier.
#pragma once

#include <atomic>
#include <cstdint>

namespace rnnext {

// A count that one thread raises and others wait for. Waiting spins, since a step of the recurrence
// takes a microsecond, but sleeps when it takes long: machines are shared. A prefetch takes lines
// in pairs, so counts lie two lines apart.
class alignas(128) Count {
 public:
  void add() { n_.fetch_add(1); }
  void set(int64_t n) { n_.store(n, std::memory_order_release); }
  void wait_for(int64_t n) const {
    if (n_.load(std::memory_order_acquire) < n) spin_for(n);
  }

 private:
  void spin_for(int64_t n) const;

  std::atomic<int64_t> n_{0};
};

// One thread's view of its team.
class Worker {
 public:
  // counts: arrivals at the barrier, then each worker's progress, by rank.
  Worker(Count* counts, int rank, int size) : rank(rank), size(size), counts_(counts) {}
  // A barrier for the whole team.
  void wait() {
    counts_[0].add();
    counts_[0].wait_for(++barriers_ * size);
  }
  // Makes known that this worker has done n more things that others wait for.
  void advance(int64_t n = 1) { counts_[1 + rank].set(progress_ += n); }
  // Waits until another has advanced n times.
  void wait_for(int other, int64_t n) const { counts_[1 + other].wait_for(n); }

  const int rank, size;

 private:
  Count* counts_;
  int64_t barriers_ = 0, progress_ = 0;
};

constexpr int kMaxWorkers = 63;  // Registration has a bit for each, and one for its end

// Calls task(context, worker) on up to `threads` threads of torch's pool at once and returns when
// all are done. Inside another parallel region it runs on the caller alone. `waits`: workers wait
// for each other. If not, each share is run by any one thread, so none waits to learn who came.
void run_team(int threads, bool waits, void (*task)(void*, Worker&), void* context);
// The same for a callable.
template <class Task>
void run_team(int threads, Task task, bool waits = true) {
  run_team(
      threads, waits, [](void* task, Worker& worker) { (*static_cast<Task*>(task))(worker); },
      &task);
}

int max_threads();

}  // namespace rnnext
