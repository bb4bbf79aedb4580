// The state of a launch, shared by the sources of this folder. One launch runs at a time.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "execution.h"

namespace cuda_host {

struct Cluster {
  unsigned size = 1;
  int alive = 0, arrived = 0;
  unsigned phase = 0;              // barriers completed
  uint32_t completed[2] = {0, 0};  // when those of even and odd phase were
  std::vector<Fiber*> waiting;
  Block* first = nullptr;
};

struct Barrier {
  int expected = 0;
  std::vector<Fiber*> waiting;
};

// Lanes of a warp that meet for one operation.
struct Meeting {
  const char* what;
  unsigned mask, arrived;
  Fiber* fibers[32];
  void* payload[32];
};

struct Warp {
  unsigned alive = 0;
  std::vector<Meeting> meetings;
};

// What is known to have happened: everything that all threads of a resident block, or that single
// threads did before these times.
struct Times {
  std::vector<uint32_t> blocks;
  std::map<uint32_t, uint32_t> threads;  // by Fiber::id, or by the id of an mbarrier

  void join(const Times& other);
};
// The last phase of an mbarrier that was waited for. `known` to those who made it complete: that is
// done, though its results are not acquired; it may be overwritten, but not be read.
struct Passed {
  uint32_t completed = 0;
  std::shared_ptr<const Times> known;
};
struct Clock : Times {
  std::map<uint32_t, Passed> passed;  // by the id of an mbarrier

  void join(const Clock& other);
};

struct TransactionBarrier {
  uint32_t id = 0;
  int expected = 0, pending = 0;  // arrivals of a phase
  int64_t bytes = 0;              // expected less landed
  unsigned phase = 0;
  uint32_t completed = 0;  // when the last phase was over
  Times coming;            // known to those who stored and arrived in this phase,
  std::shared_ptr<const Times> known = std::make_shared<Times>();  // and in those that are over
};

// A store on its way.
struct Flight {
  void* to;
  unsigned char words[16];
  int bytes;
  uint64_t* barrier;  // null: relaxed
  Times known;        // to the thread that sent it, if there is a barrier
};

struct Resident : Block {
  Clock acquired;  // by its threads, before its last barrier
  Barrier barriers[kNamedBarriers];
  std::vector<Warp> warps;
};

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};

struct Thread : Fiber {
  std::unique_ptr<Clock> acquired;  // since the block's last barrier
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct State {
  // The blocks that are resident, in the order of the grid.
  std::vector<Thread> threads;
  std::vector<Resident> blocks;
  std::vector<Cluster> clusters;
  uint32_t first_id = 1;  // of threads[0]
  int threads_alive = 0;

  std::priority_queue<std::pair<uint64_t, Fiber*>> ready;  // the highest key goes next
  Fiber* running = nullptr;
  void* scheduler_stack = nullptr;
  std::map<const void*, Clock> released;  // through each flag
  std::map<const void*, TransactionBarrier> transactions;
  std::vector<Flight> flights;  // in the order of their start
  uint64_t sent = 0;            // of them, ever
  uint64_t idle_yields = 0;     // since something happened that a spinning thread may wait for
  uint64_t yields = 0;          // of all threads
  uint32_t time = 2;            // counts the events that order accesses
  uint32_t start = 2;           // of this launch

  bool failed = false;
  std::string message = "no error";
};
extern State state;

// schedule.cpp
void seed_random(uint64_t value);
void make_ready(Fiber* fiber);
void hand_over();                // to the next ready thread; the caller is queued, waits or is over
void wait_at(const char* what);  // hands over, until another thread makes the caller ready
void thread_is_over();           // counts the running thread out of its barriers
void share_acquired(const std::vector<Fiber*>& fibers);  // they met at a barrier
inline Resident* block_of(const Fiber* fiber) { return static_cast<Resident*>(fiber->block); }

// Stacks: a new fiber that will run `body`, and the change from one to another.
constexpr size_t kStackBytes = 128 * 1024;
void* prepare_stack(unsigned char* top, void (*body)());
extern "C" void cuda_host_switch(void** save, void* to);

}  // namespace cuda_host
