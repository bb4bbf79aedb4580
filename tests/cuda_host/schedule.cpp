// Fibers: which one runs next, and the barriers of blocks and clusters.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

State state;

namespace {

uint64_t random_state = 1;
bool skewed = false;

constexpr uint64_t kNotSpinning = uint64_t(1) << 63;

void wake(std::vector<Fiber*>& waiting) {
  state.idle_yields = 0;
  for (Fiber* fiber : waiting) make_ready(fiber);
  waiting.clear();
}

void complete_if_full(Block* block, int id) {
  Barrier& barrier = static_cast<Resident*>(block)->barriers[id];
  int expected = id == 0 ? block->alive : barrier.expected;
  if (barrier.waiting.empty() || int(barrier.waiting.size()) < expected) return;
  ++state.time;
  if (id == 0 || expected == block->alive) block->last_barrier = state.time;
  for (Fiber* fiber : barrier.waiting) fiber->last_named_barrier = state.time;
  share_acquired(barrier.waiting);
  wake(barrier.waiting);
}

void complete_if_full(Cluster* cluster) {
  if (cluster->arrived == 0 || cluster->arrived < cluster->alive) return;
  cluster->completed[cluster->phase & 1] = ++state.time;
  cluster->arrived = 0;
  ++cluster->phase;
  wake(cluster->waiting);
}

}  // namespace

void Clock::join(const Clock& other) {
  Times::join(other);
  for (const auto& [id, theirs] : other.passed) {
    Passed& mine = passed[id];
    if (theirs.completed > mine.completed) mine = theirs;
  }
}

void Times::join(const Times& other) {
  if (blocks.size() < other.blocks.size()) blocks.resize(other.blocks.size());
  for (size_t i = 0; i < other.blocks.size(); ++i) blocks[i] = std::max(blocks[i], other.blocks[i]);
  for (auto [id, time] : other.threads) {
    uint32_t& mine = threads[id];
    mine = std::max(mine, time);
  }
}

void share_acquired(const std::vector<Fiber*>& fibers) {
  Clock all;
  bool any = false;
  for (Fiber* fiber : fibers) {
    if (auto& clock = static_cast<Thread*>(fiber)->acquired) {
      all.join(*clock);
      any = true;
    }
  }
  if (!any) return;
  Resident* block = block_of(fibers.front());
  bool whole = int(fibers.size()) == block->alive;
  if (whole) block->acquired.join(all);
  for (Fiber* fiber : fibers) {
    static_cast<Thread*>(fiber)->acquired = whole ? nullptr : std::make_unique<Clock>(all);
  }
}

#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void* prepare_stack(unsigned char* top, void (*body)()) {
  void** p = reinterpret_cast<void**>(top) - 8;
  std::memset(p, 0, 64);
  p[6] = reinterpret_cast<void*>(body);
  return p;
}
#else
extern "C" void cuda_host_switch(void** save, void* to) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}
void* prepare_stack(unsigned char* top, void (*body)()) {
  auto* context = reinterpret_cast<ucontext_t*>(top) - 1;
  getcontext(context);
  context->uc_stack.ss_sp = top - kStackBytes + 4096;
  context->uc_stack.ss_size = kStackBytes - 4096 - sizeof(ucontext_t) - 64;
  makecontext(context, body, 0);
  return context;
}
#endif

void hand_over() {
  Fiber* self = state.running;
  void* next = state.scheduler_stack;
  if (state.ready.empty()) {
    state.running = nullptr;
  } else {
    state.running = state.ready.top().second;
    state.ready.pop();
    next = state.running->stack;
  }
  if (state.running != self) cuda_host_switch(&self->stack, next);
}

void make_ready(Fiber* fiber) {
  uint64_t priority = skewed ? fiber->priority : random_bits() >> 1;
  state.ready.push({priority | kNotSpinning, fiber});
}

void wait_at(const char* what) {
  state.running->waits_at = what;
  hand_over();
  state.running->waits_at = nullptr;
}

void thread_is_over() {
  Fiber* self = state.running;
  Block* block = self->block;
  state.idle_yields = 0;
  --state.threads_alive;
  --block->alive;
  --block->cluster->alive;
  block_of(self)->warps[self->warp].alive &= ~(1u << self->lane);
  if (self->at_cluster_barrier && block->cluster->phase == self->phase) --block->cluster->arrived;
  complete_if_full(block, 0);
  complete_if_full(block->cluster);
  if (block->alive == 0) {
    block_is_over(block);
    mark_unallocated(block->shared, block->shared_bytes);
  }
  self->waits_at = nullptr;
}

void seed_random(uint64_t value) {
  skewed = value & 1;
  random_state = (value + 1) * 0x9e3779b97f4a7c15ull | 1;
}

Fiber* current() { return state.running; }
uint32_t now() { return state.time; }
uint32_t launch_start() { return state.start; }
const char* last_error() { return state.message.c_str(); }

Fiber* live_fiber(uint32_t id) {
  size_t index = id - state.first_id;
  return index < state.threads.size() ? &state.threads[index] : nullptr;
}

uint64_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 2685821657736338717ull;
}

void fail(const char* format, ...) {
  char text[600];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  state.message = text;
  if (state.running == nullptr) {
    std::fprintf(stderr, "outside a kernel: %s\n", text);
    std::abort();
  }
  Index b = state.running->block->index, t = state.running->thread_index;
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u): ", b.x, b.y, b.z, t.x, t.y,
                t.z);
  state.message = text + state.message;
  state.failed = true;
  void* abandoned;
  state.running = nullptr;
  cuda_host_switch(&abandoned, state.scheduler_stack);
  __builtin_unreachable();
}

void yield() {
  deliver_some();
  if (++state.idle_yields > 1000 + 8 * uint64_t(state.threads_alive)) {
    fail("deadlock: this thread spins, and no thread that could end it can go on");
  }
  // Spinners take turns behind all others, now and then before them: nobody starves.
  const bool early = (random_bits() & 15) == 0;
  state.ready.push(
      {early ? random_bits() | kNotSpinning : kNotSpinning - ++state.yields, state.running});
  hand_over();
}

void maybe_yield() {
  uint64_t bits = random_bits();
  if (bits & 7) return;
  if (skewed && !(bits & 0x38)) state.running->priority = random_bits() >> 1;
  make_ready(state.running);
  hand_over();
}

void block_barrier(int id, int count) {
  Block* block = state.running->block;
  Barrier& barrier = static_cast<Resident*>(block)->barriers[id];
  if (id != 0) {
    if (id < 0 || id >= kNamedBarriers) fail("there is no barrier %d", id);
    if (count <= 0 || count % 32) fail("barrier %d for %d threads: not whole warps", id, count);
    if (!barrier.waiting.empty() && barrier.expected != count) {
      fail("barrier %d for %d threads, while others wait with %d", id, count, barrier.expected);
    }
    barrier.expected = count;
  }
  barrier.waiting.push_back(state.running);
  complete_if_full(block, id);
  wait_at(id == 0 ? "__syncthreads" : "a named barrier");
}

unsigned cluster_size() { return state.running->block->cluster->size; }

void cluster_arrive() {
  Fiber* self = state.running;
  if (self->at_cluster_barrier) fail("cluster_arrive twice without cluster_wait");
  self->at_cluster_barrier = true;
  self->arrived[self->phase & 1] = ++state.time;
  ++self->block->cluster->arrived;
  complete_if_full(self->block->cluster);
  maybe_yield();
}

void cluster_wait() {
  Fiber* self = state.running;
  Cluster* cluster = self->block->cluster;
  if (!self->at_cluster_barrier) fail("cluster_wait without cluster_arrive");
  if (cluster->phase == self->phase) {
    cluster->waiting.push_back(self);
    wait_at("cluster_wait");
  }
  self->at_cluster_barrier = false;
  self->last_cluster_barrier = cluster->completed[self->phase & 1];
  ++self->phase;
}

void* peer_shared(void* mine, unsigned rank) {
  Block* block = state.running->block;
  size_t offset = static_cast<unsigned char*>(mine) - block->shared;
  if (rank >= block->cluster->size) fail("peer_shared: no block %u in the cluster", rank);
  if (offset > block->shared_bytes) fail("peer_shared: the address is not in shared memory");
  return static_cast<Resident*>(block->cluster->first)[rank].shared + offset;
}

}  // namespace cuda_host
