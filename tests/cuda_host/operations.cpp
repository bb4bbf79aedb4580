// Operations of warps, asynchronous copies and flags.
#include <algorithm>
#include <cstring>

#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"
#include "state.h"

namespace cuda_host {
namespace {

// Runs `combine` once all lanes of `mask` called with the same `what`, in the last of them.
template <typename Payload, typename Combine>
void meet(const char* what, unsigned mask, Payload& mine, Combine combine) {
  Fiber* self = state.running;
  Warp& warp = block_of(self)->warps[self->warp];
  unsigned bit = 1u << self->lane;
  if (!(mask & bit)) fail("%s: the mask %08x lacks the calling lane", what, mask);
  if (mask & ~warp.alive) {
    fail("%s: the mask %08x names lanes that do not exist or are over (alive: %08x)", what, mask,
         warp.alive);
  }
  Meeting* meeting = nullptr;
  for (Meeting& m : warp.meetings) {
    if (m.mask == mask && m.what == what) {
      meeting = &m;
    } else if ((m.arrived & mask) && (m.mask & bit)) {  // each waits for the other
      fail("divergent warp: %s with mask %08x while other lanes wait at %s with mask %08x", what,
           mask, m.what, m.mask);
    }
  }
  if (meeting == nullptr) {
    warp.meetings.push_back({what, mask, 0, {}, {}});
    meeting = &warp.meetings.back();
  }
  meeting->arrived |= bit;
  meeting->fibers[self->lane] = self;
  meeting->payload[self->lane] = &mine;
  if (meeting->arrived != mask) {
    wait_at(what);
    return;
  }
  Meeting all = *meeting;
  warp.meetings.erase(warp.meetings.begin() + (meeting - warp.meetings.data()));
  Payload* lanes[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) lanes[lane] = static_cast<Payload*>(all.payload[lane]);
  }
  combine(lanes);
  state.idle_yields = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) make_ready(all.fibers[lane]);
  }
  hand_over();
}

std::vector<Fiber*> lanes_of(Fiber* fiber, unsigned mask) {
  std::vector<Fiber*> lanes;
  for (Thread& thread : state.threads) {
    if (thread.block == fiber->block && thread.warp == fiber->warp && (mask >> thread.lane & 1)) {
      lanes.push_back(&thread);
    }
  }
  return lanes;
}

// What happened before now: all that the running thread did, what others did before a barrier with
// it, and what these had acquired.
Clock clock_of_now() {
  auto* self = static_cast<Thread*>(state.running);
  Resident* block = block_of(self);
  Clock clock = block->acquired;
  if (self->acquired) clock.join(*self->acquired);
  const size_t index = size_t(block - state.blocks.data());
  if (clock.blocks.size() <= index) clock.blocks.resize(index + 1);
  clock.blocks[index] = std::max(clock.blocks[index], block->last_barrier);
  const size_t threads = state.threads.size() / state.blocks.size();
  for (size_t i = index * threads; i < (index + 1) * threads; ++i) {
    const Thread& thread = state.threads[i];
    uint32_t before = 0;
    if (thread.last_named_barrier == self->last_named_barrier) before = self->last_named_barrier;
    if (thread.warp == self->warp) before = std::max(before, self->last_warp_barrier);
    if (before > block->last_barrier) clock.threads[thread.id] = before;
  }
  clock.threads[self->id] = ++state.time;
  return clock;
}

// Publishes it through `flag`.
void release(const void* flag) { state.released[flag].join(clock_of_now()); }

void land(const Copy& copy) {
  on_read(copy.global, copy.bytes);
  on_write(copy.shared, copy.bytes);
  std::memcpy(copy.shared, copy.global, copy.bytes);
}

float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct MmaLane {
  MmaFormat format;
  float* d;
  const uint32_t *a, *b;
};

// Row and column of element i (0..7 of a, 0..3 of b and d) that a lane holds; the PTX manual,
// "Matrix fragments for mma.m16n8k16 / m16n8k8".
void multiply(MmaLane** lanes, MmaFormat format) {
  double a[16][16], b[16][8];
  int depth = format == MmaFormat::tf32 ? 8 : 16;
  auto value = [&](uint32_t bits, int half) -> double {
    if (format == MmaFormat::tf32) return as_float(bits & 0xffffe000);
    uint16_t h = uint16_t(bits >> (16 * half));
    return format == MmaFormat::f16 ? __half2float({h}) : __bfloat162float({h});
  };
  for (int lane = 0; lane < 32; ++lane) {
    int group = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
      int row = group + 8 * (r & 1);
      if (depth == 8) {
        a[row][t + 4 * (r >> 1)] = value(lanes[lane]->a[r], 0);
        if (r < 2) b[t + 4 * r][group] = value(lanes[lane]->b[r], 0);
      } else {
        for (int half = 0; half < 2; ++half) {
          a[row][2 * t + half + 8 * (r >> 1)] = value(lanes[lane]->a[r], half);
          if (r < 2) b[2 * t + half + 8 * r][group] = value(lanes[lane]->b[r], half);
        }
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
      double sum = lanes[lane]->d[i];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      lanes[lane]->d[i] = float(sum);
    }
  }
}

}  // namespace

void warp_sync(unsigned mask) {
  Fiber* self = state.running;
  const bool whole = mask == block_of(self)->warps[self->warp].alive;
  uint32_t time = 0;
  meet("__syncwarp", mask, time, [&](uint32_t** lanes) {
    ++state.time;
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane]) *lanes[lane] = state.time;
    }
    if (uses_flags()) share_acquired(lanes_of(self, mask));
  });
  if (whole) self->last_warp_barrier = time;
}

unsigned warp_ballot(unsigned mask, bool predicate) {
  struct Vote {
    bool predicate;
    unsigned all;
  } mine{predicate, 0};
  meet("a warp vote", mask, mine, [](Vote** lanes) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] && lanes[lane]->predicate) all |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane]) lanes[lane]->all = all;
    }
  });
  return mine.all;
}

uint64_t warp_shuffle(unsigned mask, uint64_t value, int source_lane) {
  struct Shuffle {
    uint64_t in, out;
    int source;
  } mine{value, 0, source_lane};
  if (!(mask >> (source_lane & 31) & 1)) {
    fail("a warp shuffle reads lane %d, which the mask %08x lacks", source_lane, mask);
  }
  meet("a warp shuffle", mask, mine, [](Shuffle** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane]) lanes[lane]->out = lanes[lanes[lane]->source]->in;
    }
  });
  return mine.out;
}

void warp_mma(MmaFormat format, float* d, const uint32_t* a, const uint32_t* b) {
  MmaLane mine{format, d, a, b};
  meet("mma", ~0u, mine, [&](MmaLane** lanes) { multiply(lanes, format); });
}

// The bytes land when the thread waits for them; until then nobody may read them.
void copy_async(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes) {
    fail("cp.async of %d bytes: misaligned", bytes);
  }
  size_t offset = static_cast<unsigned char*>(shared) - state.running->block->shared;
  if (offset >= state.running->block->shared_bytes)
    fail("cp.async: not to the block's shared memory");
  on_read(global, bytes);
  on_write(shared, bytes);
  poison(shared, bytes);
  mark_unwritten(shared, bytes);
  static_cast<Thread*>(state.running)->open.push_back({shared, global, bytes});
}

void copy_async_commit() {
  auto* self = static_cast<Thread*>(state.running);
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}

void copy_async_wait(int pending) {
  auto* self = static_cast<Thread*>(state.running);
  while (int(self->groups.size()) > pending) {
    for (const Copy& copy : self->groups.front()) land(copy);
    self->groups.pop_front();
  }
  maybe_yield();
}

bool uses_flags() { return !state.released.empty() || !state.transactions.empty(); }

bool acquired(const Fiber* other, uint32_t time, bool or_known) {
  auto* me = static_cast<Thread*>(state.running);
  size_t block = size_t(block_of(other) - state.blocks.data());
  auto within = [&](const Times& times) {
    if (block < times.blocks.size() && times.blocks[block] > time) return true;
    auto at = times.threads.find(other->id);
    return at != times.threads.end() && at->second > time;
  };
  auto covers = [&](const Clock& clock) {
    if (within(clock)) return true;
    return or_known && std::any_of(clock.passed.begin(), clock.passed.end(),
                                   [&](const auto& each) { return within(*each.second.known); });
  };
  return covers(block_of(me)->acquired) || (me->acquired && covers(*me->acquired));
}

bool acquired(uint32_t barrier_id, uint32_t time) {
  auto* me = static_cast<Thread*>(state.running);
  auto covers = [&](const Times& times) {
    auto at = times.threads.find(barrier_id);
    return at != times.threads.end() && at->second > time;
  };
  return covers(block_of(me)->acquired) || (me->acquired && covers(*me->acquired));
}

namespace {

TransactionBarrier& transactions_of(uint64_t* barrier, const char* what) {
  auto at = state.transactions.find(barrier);
  if (at == state.transactions.end()) fail("%s: this mbarrier was not initialised", what);
  return at->second;
}

// Leaves out threads of which their block says as much.
void forget_what_blocks_tell(Times& times) {
  const size_t threads = state.threads.size() / state.blocks.size();
  for (auto at = times.threads.begin(); at != times.threads.end();) {
    const size_t index = (at->first - state.first_id) / threads;
    const bool told = index < times.blocks.size() && at->second <= times.blocks[index];
    at = told ? times.threads.erase(at) : std::next(at);
  }
}

void complete_if_over(TransactionBarrier& b) {
  if (b.pending > 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.expected;
  b.completed = ++state.time;
  b.coming.join(*b.known);
  forget_what_blocks_tell(b.coming);
  b.known = std::make_shared<Times>(std::move(b.coming));
  b.coming = {};
  state.idle_yields = 0;
}

void land(const Flight& flight) {
  std::memcpy(flight.to, flight.words, size_t(flight.bytes));
  state.idle_yields = 0;
  ++state.time;
  if (flight.barrier == nullptr) return;
  TransactionBarrier& b = state.transactions.at(flight.barrier);
  on_async_end(flight.to, size_t(flight.bytes), b.id);
  b.coming.join(flight.known);
  b.bytes -= flight.bytes;
  complete_if_over(b);
}

// What the running thread, and those it met at barriers, have done and know to be done by now.
Times all_known() {
  Clock clock = clock_of_now();
  for (const auto& [id, passed] : clock.passed) clock.Times::join(*passed.known);
  forget_what_blocks_tell(clock);
  return clock;
}

Clock& clock_of_running() {
  auto& mine = static_cast<Thread*>(state.running)->acquired;
  if (!mine) mine = std::make_unique<Clock>();
  return *mine;
}

}  // namespace

// Any of them, but not before an earlier one to the same place.
void deliver_some() {
  while (!state.flights.empty() && (random_bits() & 3) == 0) {
    size_t i = random_bits() % state.flights.size();
    for (size_t j = 0; j < i; ++j) {
      auto begin = [](const Flight& f) { return static_cast<unsigned char*>(f.to); };
      const Flight &a = state.flights[j], &b = state.flights[i];
      if (begin(a) < begin(b) + b.bytes && begin(b) < begin(a) + a.bytes) i = j;
    }
    const Flight flight = std::move(state.flights[i]);
    state.flights.erase(state.flights.begin() + std::ptrdiff_t(i));
    land(flight);
  }
}

void deliver_all() {
  for (const Flight& flight : state.flights) land(flight);
  state.flights.clear();
}

void block_is_over(const Block* block) {
  for (const Flight& flight : state.flights) {
    const size_t offset = size_t(static_cast<unsigned char*>(flight.to) - block->shared);
    if (offset < block->shared_bytes) fail("a store is on its way to this block, which is over");
  }
}

void barrier_init(uint64_t* barrier, int arrivals) {
  on_write(barrier, 8);
  TransactionBarrier& b = state.transactions[barrier];
  b = {};
  b.id = kFirstBarrierId + uint32_t(state.transactions.size());
  b.expected = b.pending = arrivals;
}

void barrier_arrive(uint64_t* barrier, int expected_bytes) {
  maybe_yield();
  on_read(barrier, 8);
  TransactionBarrier& b = transactions_of(barrier, "barrier_arrive");
  if (b.pending == 0) fail("barrier_arrive: more arrivals than this phase of the mbarrier expects");
  --b.pending;
  b.bytes += expected_bytes;
  if (b.bytes >= 1 << 20) fail("barrier_arrive: an mbarrier counts fewer than 2^20 bytes");
  b.coming.join(all_known());
  complete_if_over(b);
}

void barrier_wait(uint64_t* barrier, bool odd) {
  on_read(barrier, 8);
  TransactionBarrier& b = transactions_of(barrier, "barrier_wait");
  do {
    yield();
  } while ((b.phase & 1) == unsigned(odd));
  Clock& mine = clock_of_running();
  mine.threads[b.id] = std::max(mine.threads[b.id], b.completed);
  mine.passed[b.id] = {b.completed, b.known};
}

void store_async(void* to, const void* words, uint64_t* barrier) {
  maybe_yield();
  if (reinterpret_cast<uintptr_t>(to) % 16) fail("st.async of 16 bytes: misaligned");
  transactions_of(barrier, "st.async");
  Flight flight{to, {}, 16, barrier, all_known()};
  std::memcpy(flight.words, words, 16);
  on_async_start(to, 16);
  state.flights.push_back(std::move(flight));
  ++state.sent;
}

void load_relaxed(void* x, const void* p, int bytes) {
  yield();
  on_flag(p, false, size_t(bytes));
  std::memcpy(x, p, size_t(bytes));
}

void store_relaxed(void* p, const void* x, int bytes) {
  maybe_yield();
  if (reinterpret_cast<uintptr_t>(p) % size_t(bytes)) fail("a relaxed store: misaligned");
  on_flag(p, true, size_t(bytes));
  Flight flight{p, {}, bytes, nullptr, {}};
  std::memcpy(flight.words, x, size_t(bytes));
  state.flights.push_back(std::move(flight));
  ++state.sent;
}

unsigned load_acquire(const unsigned* flag) {
  yield();
  on_flag(flag, false);
  auto released = state.released.find(flag);
  if (released != state.released.end()) {
    auto& mine = static_cast<Thread*>(state.running)->acquired;
    if (!mine) mine = std::make_unique<Clock>();
    mine->join(released->second);
  }
  return *flag;
}

void store_release(unsigned* flag, unsigned value) {
  maybe_yield();
  on_flag(flag, true);
  release(flag);
  *flag = value;
  state.idle_yields = 0;
}

unsigned compare_and_swap(unsigned* p, unsigned expected, unsigned desired) {
  maybe_yield();
  on_flag(p, false);
  unsigned old = *p;
  if (old == expected) {
    on_flag(p, true);
    *p = desired;
    state.idle_yields = 0;
  }
  return old;
}

}  // namespace cuda_host
