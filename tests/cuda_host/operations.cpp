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
    if (m.mask == mask && m.what == what) meeting = &m;
    if ((m.mask & mask) && (m.mask != mask || m.what != what)) {
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

// Publishes through `flag` what happened before now: all that the running thread did, what others
// did before a barrier with it, and what these had acquired.
void release(const void* flag) {
  auto* self = static_cast<Thread*>(state.running);
  Resident* block = block_of(self);
  Clock& clock = state.released[flag];
  clock.join(block->acquired);
  if (self->acquired) clock.join(*self->acquired);
  size_t index = size_t(block - state.blocks.data());
  if (clock.blocks.size() <= index) clock.blocks.resize(index + 1);
  clock.blocks[index] = std::max(clock.blocks[index], block->last_barrier);
  for (Thread& thread : state.threads) {
    if (thread.block != block) continue;
    uint32_t before = 0;
    if (thread.last_named_barrier == self->last_named_barrier) before = self->last_named_barrier;
    if (thread.warp == self->warp) before = std::max(before, self->last_warp_barrier);
    if (before > block->last_barrier) clock.threads[thread.id] = before;
  }
  clock.threads[self->id] = ++state.time;
}

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

void warp_load_matrix(uint32_t* r, int count, const void* row, bool transposed) {
  struct Load {
    uint32_t* r;
    const unsigned char* row;
  } mine{r, static_cast<const unsigned char*>(row)};
  if (state.running->lane < 8 * count) {
    size_t offset = mine.row - state.running->block->shared;
    if (offset >= state.running->block->shared_bytes)
      fail("ldmatrix outside the block's shared memory");
    if (offset % 16) fail("ldmatrix: the row's address is not a multiple of 16 bytes");
    on_read(row, 16);
  }
  meet("ldmatrix", ~0u, mine, [&](Load** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < count; ++i) {
        for (int half = 0; half < 2; ++half) {
          int y = lane / 4, x = 2 * (lane % 4) + half;
          if (transposed) std::swap(x, y);
          uint16_t element;
          std::memcpy(&element, lanes[8 * i + y]->row + 2 * x, 2);
          uint32_t old = half == 0 ? 0 : lanes[lane]->r[i];
          lanes[lane]->r[i] = old | uint32_t(element) << (16 * half);
        }
      }
    }
  });
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

bool uses_flags() { return !state.released.empty(); }

bool acquired(const Fiber* other, uint32_t time) {
  auto* me = static_cast<Thread*>(state.running);
  size_t block = size_t(block_of(other) - state.blocks.data());
  auto covers = [&](const Clock& clock) {
    if (block < clock.blocks.size() && clock.blocks[block] > time) return true;
    auto at = clock.threads.find(other->id);
    return at != clock.threads.end() && at->second > time;
  };
  return covers(block_of(me)->acquired) || (me->acquired && covers(*me->acquired));
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

void add_release(unsigned* flag, unsigned value) {
  maybe_yield();
  on_flag(flag, false);
  on_flag(flag, true);
  release(flag);
  *flag += value;
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
