// Fibers, barriers, warp operations and launches.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <queue>
#include <string>
#include <vector>

#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"
#include "include/cuda_runtime.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {
struct Cluster {
  unsigned size = 1;
  int alive = 0, arrived = 0;
  unsigned phase = 0;  // barriers completed
  std::vector<Fiber*> waiting;
  Block* first = nullptr;
};

namespace {

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

struct Resident : Block {
  Barrier barriers[kNamedBarriers];
  std::vector<Warp> warps;
};

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};

struct Thread : Fiber {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

constexpr size_t kStackBytes = 128 * 1024, kPoisonedStack = 2048;

struct Device {
  int sm = 90, multiprocessors = 132;
  int shared_per_block = 227 * 1024, shared_per_multiprocessor = 228 * 1024;
};

struct KernelLimits {
  int shared_bytes = 48 * 1024;
  bool large_clusters = false;
};

Device device;
std::map<const void*, KernelLimits> kernel_limits;
std::string message = "no error";
cudaError_t pending_error = cudaSuccess;

uint64_t seed = 0, random_state = 1;
uint32_t clock_now = 2, clock_at_launch = 2;

// The launch that runs.
Fiber* running = nullptr;
void* scheduler_stack = nullptr;
sigjmp_buf scheduler_jump;
bool failed = false;
const std::function<void()>* thread_body = nullptr;
std::vector<unsigned char*> stacks;
std::vector<Thread> threads;
std::vector<Resident> blocks;
std::vector<Cluster> clusters;
uint32_t first_id = 1;
uint64_t idle_yields = 0;
int threads_alive = 0;

using Ready = std::pair<uint64_t, Fiber*>;
std::priority_queue<Ready> ready;

bool skewed() { return seed & 1; }

#if defined(__x86_64__)
extern "C" void cuda_host_switch(void** save, void* to);
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
void cuda_host_switch(void** save, void* to) {
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

// Hands over to the next ready thread; the caller is queued, waits somewhere or is over.
void hand_over() {
  Fiber* self = running;
  void* next = scheduler_stack;
  if (ready.empty()) {
    running = nullptr;
  } else {
    running = ready.top().second;
    ready.pop();
    next = running->stack;
  }
  if (running != self) cuda_host_switch(&self->stack, next);
}

constexpr uint64_t kNotSpinning = uint64_t(1) << 63;

void make_ready(Fiber* fiber) {
  uint64_t priority = skewed() ? fiber->priority : random_bits() >> 1;
  ready.push({priority | kNotSpinning, fiber});
}

void wait_at(const char* what) {
  running->waits_at = what;
  hand_over();
  running->waits_at = nullptr;
}

void wake(std::vector<Fiber*>& waiting) {
  idle_yields = 0;
  for (Fiber* fiber : waiting) make_ready(fiber);
  waiting.clear();
}

Resident* block_of(Fiber* fiber) { return static_cast<Resident*>(fiber->block); }

bool complete_if_full(Block* block, int id) {
  Barrier& barrier = static_cast<Resident*>(block)->barriers[id];
  int expected = id == 0 ? block->alive : barrier.expected;
  if (barrier.waiting.empty() || int(barrier.waiting.size()) < expected) return false;
  ++clock_now;
  if (id == 0 || expected == block->alive) block->last_barrier = clock_now;
  for (Fiber* fiber : barrier.waiting) fiber->last_named_barrier = clock_now;
  wake(barrier.waiting);
  return true;
}

void complete_if_full(Cluster* cluster) {
  if (cluster->arrived == 0 || cluster->arrived < cluster->alive) return;
  ++clock_now;
  cluster->arrived = 0;
  ++cluster->phase;
  wake(cluster->waiting);
}

void thread_main() {
  (*thread_body)();
  Fiber* self = running;
  Block* block = self->block;
  idle_yields = 0;
  --threads_alive;
  --block->alive;
  --block->cluster->alive;
  block_of(self)->warps[self->warp].alive &= ~(1u << self->lane);
  if (self->at_cluster_barrier && block->cluster->phase == self->phase) --block->cluster->arrived;
  complete_if_full(block, 0);
  complete_if_full(block->cluster);
  if (block->alive == 0) mark_unallocated(block->shared, block->shared_bytes);
  self->waits_at = "its end";
  hand_over();
  __builtin_unreachable();
}

// Runs `combine` once all lanes of `mask` called with the same `what`, in the last of them.
template <typename Payload, typename Combine>
void meet(const char* what, unsigned mask, Payload& mine, Combine combine) {
  Fiber* self = running;
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
  idle_yields = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) make_ready(all.fibers[lane]);
  }
  hand_over();
}

void land(const Copy& copy) {
  on_read(copy.global, copy.bytes);
  on_write(copy.shared, copy.bytes);
  std::memcpy(copy.shared, copy.global, copy.bytes);
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
    if (format == MmaFormat::tf32) return __uint_as_float(bits & 0xffffe000);
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

Fiber* current() { return running; }
uint32_t now() { return clock_now; }
uint32_t launch_start() { return clock_at_launch; }
const char* last_error() { return message.c_str(); }

Fiber* live_fiber(uint32_t id) {
  size_t index = id - first_id;
  return index < threads.size() ? &threads[index] : nullptr;
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
  message = text;
  if (running == nullptr) {
    std::fprintf(stderr, "outside a kernel: %s\n", text);
    std::abort();
  }
  Index b = running->block->index, t = running->thread_index;
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u): ", b.x, b.y, b.z, t.x, t.y,
                t.z);
  message = text + message;
  failed = true;
  void* abandoned;
  running = nullptr;
  cuda_host_switch(&abandoned, scheduler_stack);
  __builtin_unreachable();
}

void yield() {
  if (++idle_yields > 1000 + 8 * uint64_t(threads_alive)) {
    fail("deadlock: this thread spins, and no thread that could end it can go on");
  }
  // The longer nothing else happens the lower a spinner ranks, or several would starve the rest.
  ready.push({random_bits() >> (1 + std::min<uint64_t>(62, idle_yields / 16)), running});
  hand_over();
}

void maybe_yield() {
  uint64_t bits = random_bits();
  if (bits & 7) return;
  if (skewed() && !(bits & 0x38)) running->priority = random_bits() >> 1;
  make_ready(running);
  hand_over();
}

void block_barrier(int id, int count) {
  Block* block = running->block;
  Barrier& barrier = static_cast<Resident*>(block)->barriers[id];
  if (id != 0) {
    if (id < 0 || id >= kNamedBarriers) fail("there is no barrier %d", id);
    if (count <= 0 || count % 32) fail("barrier %d for %d threads: not whole warps", id, count);
    if (!barrier.waiting.empty() && barrier.expected != count) {
      fail("barrier %d for %d threads, while others wait with %d", id, count, barrier.expected);
    }
    barrier.expected = count;
  }
  barrier.waiting.push_back(running);
  complete_if_full(block, id);
  wait_at(id == 0 ? "__syncthreads" : "a named barrier");
}

unsigned cluster_size() { return running->block->cluster->size; }

void cluster_arrive() {
  Fiber* self = running;
  if (self->at_cluster_barrier) fail("cluster_arrive twice without cluster_wait");
  self->at_cluster_barrier = true;
  self->arrived[self->phase & 1] = ++clock_now;
  ++self->block->cluster->arrived;
  complete_if_full(self->block->cluster);
  maybe_yield();
}

void cluster_wait() {
  Fiber* self = running;
  Cluster* cluster = self->block->cluster;
  if (!self->at_cluster_barrier) fail("cluster_wait without cluster_arrive");
  if (cluster->phase == self->phase) {
    cluster->waiting.push_back(self);
    wait_at("cluster_wait");
  }
  self->at_cluster_barrier = false;
  ++self->phase;
}

void* peer_shared(void* mine, unsigned rank) {
  Block* block = running->block;
  size_t offset = static_cast<unsigned char*>(mine) - block->shared;
  if (rank >= block->cluster->size) fail("peer_shared: no block %u in the cluster", rank);
  if (offset > block->shared_bytes) fail("peer_shared: the address is not in shared memory");
  return static_cast<Resident*>(block->cluster->first)[rank].shared + offset;
}

void warp_sync(unsigned mask) {
  Fiber* self = running;
  uint32_t time = 0;
  meet("__syncwarp", mask, time, [&](uint32_t** lanes) {
    ++clock_now;
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane]) *lanes[lane] = clock_now;
    }
  });
  if (mask == block_of(self)->warps[self->warp].alive) self->last_warp_barrier = time;
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
  if (running->lane < 8 * count) {
    size_t offset = mine.row - running->block->shared;
    if (offset >= running->block->shared_bytes) fail("ldmatrix outside the block's shared memory");
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
  size_t offset = static_cast<unsigned char*>(shared) - running->block->shared;
  if (offset >= running->block->shared_bytes) fail("cp.async: not to the block's shared memory");
  on_read(global, bytes);
  on_write(shared, bytes);
  poison(shared, bytes);
  mark_unwritten(shared, bytes);
  static_cast<Thread*>(running)->open.push_back({shared, global, bytes});
}

void copy_async_commit() {
  auto* self = static_cast<Thread*>(running);
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}

void copy_async_wait(int pending) {
  auto* self = static_cast<Thread*>(running);
  while (int(self->groups.size()) > pending) {
    for (const Copy& copy : self->groups.front()) land(copy);
    self->groups.pop_front();
  }
  maybe_yield();
}

unsigned load_acquire(const unsigned* flag) {
  yield();
  on_flag(flag, false);
  running->block->last_acquire = ++clock_now;
  return *flag;
}

void store_release(unsigned* flag, unsigned value) {
  maybe_yield();
  on_flag(flag, true);
  *flag = value;
  idle_yields = 0;
}

void add_release(unsigned* flag, unsigned value) {
  maybe_yield();
  on_flag(flag, false);
  on_flag(flag, true);
  *flag += value;
  idle_yields = 0;
}

unsigned compare_and_swap(unsigned* p, unsigned expected, unsigned desired) {
  maybe_yield();
  on_flag(p, false);
  unsigned old = *p;
  if (old == expected) {
    on_flag(p, true);
    *p = desired;
    idle_yields = 0;
  }
  return old;
}

namespace {

void on_signal(int number, siginfo_t* info, void*) {
  char where[160], text[400];
  describe_address(info->si_addr, where, sizeof where);
  std::snprintf(text, sizeof text, "signal %d (%s) at %s", number, strsignal(number), where);
  message = text;
  failed = true;
  running = nullptr;
  siglongjmp(scheduler_jump, 1);
}

// Takes the signals that a stray access raises, for the time of one launch.
class SignalGuard {
 public:
  SignalGuard() {
    static unsigned char alternate[64 * 1024];
    stack_t stack = {};
    stack.ss_sp = alternate;
    stack.ss_size = sizeof alternate;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~SignalGuard() {
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kSignals[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  struct sigaction old_[4];
  stack_t old_stack_;
};

unsigned char* stack_top(size_t i) {
  while (stacks.size() <= i) {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mprotect(p, 4096, PROT_NONE);
    stacks.push_back(static_cast<unsigned char*>(p));
  }
  return stacks[i] + kStackBytes;
}

Index unravel(size_t i, dim3 d) {
  return {unsigned(i % d.x), unsigned(i / d.x % d.y), unsigned(i / d.x / d.y)};
}

std::string describe_deadlock() {
  std::map<std::string, std::pair<int, Fiber*>> waits;
  for (Fiber& fiber : threads) {
    std::string what = fiber.waits_at ? fiber.waits_at : "nothing";
    if (what == "its end") continue;
    ++waits[what].first;
    waits[what].second = &fiber;
  }
  std::string text = "deadlock:";
  for (auto& [what, who] : waits) {
    char line[160];
    Index b = who.second->block->index, t = who.second->thread_index;
    std::snprintf(line, sizeof line,
                  " %d threads wait at %s (one is block (%u,%u,%u) thread "
                  "(%u,%u,%u));",
                  who.first, what.c_str(), b.x, b.y, b.z, t.x, t.y, t.z);
    text += line;
  }
  return text;
}

// Runs the blocks first..first+count-1 of the grid together.
void run_resident(const cudaLaunchConfig_t& config, size_t first, size_t count, unsigned cluster) {
  size_t per_block = size_t(config.blockDim.x) * config.blockDim.y * config.blockDim.z;
  ready = {};
  idle_yields = 0;
  first_id = uint32_t(first * per_block + 1);
  threads_alive = int(count * per_block);
  for (size_t c = 0; c < count / cluster; ++c) {
    clusters[c] = Cluster();
    clusters[c].size = cluster;
    clusters[c].alive = int(cluster * per_block);
    clusters[c].first = &blocks[c * cluster];
  }
  auto copy = [](dim3 d) { return Index{d.x, d.y, d.z}; };
  for (size_t b = 0; b < count; ++b) {
    Resident& block = blocks[b];
    unsigned char* shared = block.shared;
    block = Resident();
    block.index = unravel(first + b, config.gridDim);
    block.dimensions = copy(config.blockDim);
    block.grid = copy(config.gridDim);
    block.rank = unsigned(b % cluster);
    block.shared = shared;
    block.shared_bytes = config.dynamicSmemBytes;
    block.cluster = &clusters[b / cluster];
    block.alive = int(per_block);
    block.last_barrier = block.last_acquire = 0;
    block.warps.resize((per_block + 31) / 32);
    poison(shared, block.shared_bytes);
    mark_unwritten(shared, block.shared_bytes);
    char name[64];
    std::snprintf(name, sizeof name, "shared memory of block (%u,%u,%u)", block.index.x,
                  block.index.y, block.index.z);
    name_memory(shared, block.shared_bytes, name);
    uint64_t block_priority = random_bits() >> 40, warp_priority = 0;
    for (size_t t = 0; t < per_block; ++t) {
      Thread& thread = threads[b * per_block + t];
      thread = Thread();
      thread.thread_index = unravel(t, config.blockDim);
      thread.block = &block;
      thread.id = uint32_t(first_id + b * per_block + t);
      thread.warp = int(t / 32);
      thread.lane = int(t % 32);
      block.warps[t / 32].alive |= 1u << thread.lane;
      if (thread.lane == 0) warp_priority = random_bits() >> 44;
      thread.priority = block_priority << 39 | warp_priority << 19 | random_bits() >> 45;
      unsigned char* top = stack_top(b * per_block + t);
      poison(top - kPoisonedStack, kPoisonedStack);
      thread.stack = prepare_stack(top, thread_main);
    }
  }
  for (Thread& thread : threads) make_ready(&thread);
  if (sigsetjmp(scheduler_jump, 1) == 0) {
    running = ready.top().second;
    ready.pop();
    cuda_host_switch(&scheduler_stack, running->stack);
  }
  if (!failed && threads_alive > 0) {
    failed = true;
    message = describe_deadlock();
  }
}

cudaError_t refuse(cudaError_t error, const char* why) {
  message = why;
  return pending_error = error;
}

}  // namespace
}  // namespace cuda_host

using namespace cuda_host;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > device.shared_per_block) {
      return refuse(cudaErrorInvalidValue, "more shared memory than a block may have");
    }
    kernel_limits[kernel].shared_bytes = value;
  }
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    kernel_limits[kernel].large_clusters = value != 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t error = pending_error;
  pending_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* id) {
  *id = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.sm / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.sm % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_per_block;
      break;
  }
  return cudaSuccess;
}

// Registers are not modelled: only threads and shared memory bound the answer.
cudaError_t cuda_host_occupancy(int* count, const void*, int threads_per_block, size_t shared) {
  int by_threads = 2048 / std::max(threads_per_block, 1);
  int by_shared = int(size_t(device.shared_per_multiprocessor) / (shared + 1024));
  *count = std::min({by_threads, by_shared, 32});
  return cudaSuccess;
}

cudaError_t cuda_host_clusters(int* count, const void* kernel, const cudaLaunchConfig_t* config) {
  int per_multiprocessor = 0;
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      cluster = config->attrs[i].val.clusterDim.x;
    }
  }
  cuda_host_occupancy(&per_multiprocessor, kernel, int(config->blockDim.x),
                      config->dynamicSmemBytes);
  *count = device.sm < 90 ? 0 : device.multiprocessors * per_multiprocessor / int(cluster);
  return cudaSuccess;
}

cudaError_t cuda_host_launch(const cudaLaunchConfig_t* config, const void* kernel,
                             const std::function<void()>& body) {
  unsigned cluster = 1;
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeCooperative) {
      cooperative = config->attrs[i].val.cooperative != 0;
    } else {
      auto d = config->attrs[i].val.clusterDim;
      if (d.y != 1 || d.z != 1) return refuse(cudaErrorInvalidValue, "clusters are one row here");
      cluster = d.x;
    }
  }
  dim3 grid = config->gridDim, block = config->blockDim;
  size_t per_block = size_t(block.x) * block.y * block.z;
  size_t grid_blocks = size_t(grid.x) * grid.y * grid.z;
  const KernelLimits& limits = kernel_limits[kernel];
  if (per_block == 0 || per_block > 1024) {
    return refuse(cudaErrorInvalidConfiguration, "a block has 1 to 1024 threads");
  }
  if (grid_blocks == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff) {
    return refuse(cudaErrorInvalidConfiguration, "the grid is empty or too large");
  }
  if (config->dynamicSmemBytes > size_t(limits.shared_bytes)) {
    return refuse(cudaErrorInvalidValue, "more shared memory than the kernel was allowed");
  }
  if (cluster > 1 && (device.sm < 90 || grid.x % cluster || cluster > 16 ||
                      (cluster > 8 && !limits.large_clusters))) {
    return refuse(cudaErrorInvalidConfiguration,
                  "clusters: sm_90, a divisor of grid.x, up to 8 "
                  "blocks, 16 where the kernel allows it");
  }
  int per_multiprocessor = 0;
  cuda_host_occupancy(&per_multiprocessor, kernel, int(per_block), config->dynamicSmemBytes);
  if (cooperative && grid_blocks > size_t(per_multiprocessor) * device.multiprocessors) {
    return refuse(cudaErrorCooperativeLaunchTooLarge, "the grid does not fit the device at once");
  }

  size_t resident = cooperative ? grid_blocks : cluster;
  size_t mark = arena_used();
  blocks = std::vector<Resident>(resident);
  clusters = std::vector<Cluster>(resident / cluster);
  threads = std::vector<Thread>(resident * per_block);
  for (Resident& b : blocks) b.shared = allocate(config->dynamicSmemBytes, 128);
  std::vector<size_t> order;
  for (size_t first = 0; first < grid_blocks; first += resident) order.push_back(first);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);

  failed = false;
  thread_body = &body;
  clock_at_launch = ++clock_now;
  {
    SignalGuard guard;
    for (size_t first : order) {
      run_resident(*config, first, resident, cluster);
      if (failed) break;
    }
  }
  running = nullptr;
  threads.clear();
  arena_release(mark);
  if (failed) return pending_error = cudaErrorLaunchFailure;
  return cudaSuccess;
}

// What Python calls (host.py).
extern "C" {

void cuda_host_seed(uint64_t value) {
  seed = value;
  random_state = (value + 1) * 0x9e3779b97f4a7c15ull | 1;
}

void cuda_host_device(int sm, int multiprocessors, int shared_per_block) {
  device = {sm, multiprocessors, shared_per_block, shared_per_block + 1024};
}

const char* cuda_host_error() { return last_error(); }
}
