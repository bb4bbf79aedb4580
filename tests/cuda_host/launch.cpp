// The CUDA runtime as far as the launchers use it.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "include/cuda_runtime.h"
#include "state.h"

namespace cuda_host {
namespace {

constexpr size_t kPoisonedStack = 2048;
constexpr size_t kGuardedStacks = 16384;

struct Device {
  int id = 0;
  int sm = 90, multiprocessors = 132;
  int shared_per_block = 227 * 1024, shared_per_multiprocessor = 228 * 1024;
  int granted = 132;  // multiprocessors that launches get: fewer in a green context
};

struct KernelLimits {
  int shared_bytes = 48 * 1024;
  bool large_clusters = false;
};

Device device;
std::map<std::pair<const void*, int>, KernelLimits> kernel_limits;  // by kernel and device
KernelLimits& limits_of(const void* kernel) { return kernel_limits[{kernel, device.id}]; }
int compiled = 1 << 10;  // the architecture of the PTX that kernels were made of
cudaError_t pending_error = cudaSuccess;

sigjmp_buf scheduler_jump;
const std::function<void()>* thread_body = nullptr;
std::vector<unsigned char*> stacks;

void thread_main() {
  (*thread_body)();
  state.running->waits_at = nullptr;
  thread_is_over();
  hand_over();
  __builtin_unreachable();
}

void on_signal(int number, siginfo_t* info, void*) {
  char where[160], text[400];
  describe_address(info->si_addr, where, sizeof where);
  std::snprintf(text, sizeof text, "signal %d (%s) at %s", number, strsignal(number), where);
  state.message = text;
  state.failed = true;
  state.running = nullptr;
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
    // A process may have 65530 mappings, and each guard page makes two. All threads run the same
    // code, so an overflow meets one.
    if (stacks.size() < kGuardedStacks) mprotect(p, 4096, PROT_NONE);
    stacks.push_back(static_cast<unsigned char*>(p));
  }
  return stacks[i] + kStackBytes;
}

Index unravel(size_t i, dim3 d) {
  return {unsigned(i % d.x), unsigned(i / d.x % d.y), unsigned(i / d.x / d.y)};
}

std::string describe_deadlock() {
  std::map<std::string, std::pair<int, Fiber*>> waits;
  for (Fiber& fiber : state.threads) {
    if (fiber.waits_at == nullptr) continue;
    ++waits[fiber.waits_at].first;
    waits[fiber.waits_at].second = &fiber;
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
  state.ready = {};
  state.idle_yields = 0;
  state.first_id = uint32_t(first * per_block + 1);
  state.threads_alive = int(count * per_block);
  for (size_t c = 0; c < count / cluster; ++c) {
    state.clusters[c] = Cluster();
    state.clusters[c].size = cluster;
    state.clusters[c].alive = int(cluster * per_block);
    state.clusters[c].first = &state.blocks[c * cluster];
  }
  auto copy = [](dim3 d) { return Index{d.x, d.y, d.z}; };
  for (size_t b = 0; b < count; ++b) {
    Resident& block = state.blocks[b];
    unsigned char* shared = block.shared;
    block = Resident();
    block.index = unravel(first + b, config.gridDim);
    block.dimensions = copy(config.blockDim);
    block.grid = copy(config.gridDim);
    block.rank = unsigned(b % cluster);
    block.shared = shared;
    block.shared_bytes = config.dynamicSmemBytes;
    block.cluster = &state.clusters[b / cluster];
    block.alive = int(per_block);
    block.last_barrier = 0;
    block.warps.resize((per_block + 31) / 32);
    poison(shared, block.shared_bytes);
    mark_unwritten(shared, block.shared_bytes);
    char name[64];
    std::snprintf(name, sizeof name, "shared memory of block (%u,%u,%u)", block.index.x,
                  block.index.y, block.index.z);
    name_memory(shared, block.shared_bytes, name);
    uint64_t block_priority = random_bits() >> 40, warp_priority = 0;
    for (size_t t = 0; t < per_block; ++t) {
      Thread& thread = state.threads[b * per_block + t];
      thread = Thread();
      thread.thread_index = unravel(t, config.blockDim);
      thread.block = &block;
      thread.id = uint32_t(state.first_id + b * per_block + t);
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
  for (Thread& thread : state.threads) make_ready(&thread);
  if (sigsetjmp(scheduler_jump, 1) == 0) {
    state.running = state.ready.top().second;
    state.ready.pop();
    cuda_host_switch(&state.scheduler_stack, state.running->stack);
  }
  if (!state.failed) deliver_all();
  if (!state.failed && state.threads_alive > 0) {
    state.failed = true;
    state.message = describe_deadlock();
  }
}

cudaError_t refuse(cudaError_t error, const char* why) {
  state.message = why;
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
    limits_of(kernel).shared_bytes = value;
  }
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    limits_of(kernel).large_clusters = value != 0;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (compiled == 0) return pending_error = cudaErrorNoKernelImageForDevice;
  attributes->maxDynamicSharedSizeBytes = limits_of(kernel).shared_bytes;
  attributes->ptxVersion = compiled;
  attributes->binaryVersion = device.sm;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t error = pending_error;
  pending_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* id) {
  *id = device.id;
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
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
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
  const KernelLimits& limits = limits_of(kernel);
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
  if (device.granted<device.multiprocessors&& int(cluster)> device.granted) {
    return refuse(cudaErrorInvalidClusterSize, "the cluster does not fit the device at once");
  }
  int per_multiprocessor = 0;
  cuda_host_occupancy(&per_multiprocessor, kernel, int(per_block), config->dynamicSmemBytes);
  if (cooperative && grid_blocks > size_t(per_multiprocessor) * device.granted) {
    return refuse(cudaErrorCooperativeLaunchTooLarge, "the grid does not fit the device at once");
  }

  size_t resident = cooperative ? grid_blocks : cluster;
  size_t mark = arena_used();
  state.blocks = std::vector<Resident>(resident);
  state.clusters = std::vector<Cluster>(resident / cluster);
  state.threads = std::vector<Thread>(resident * per_block);
  for (Resident& b : state.blocks) b.shared = allocate(config->dynamicSmemBytes, 128);
  std::vector<size_t> order;
  for (size_t first = 0; first < grid_blocks; first += resident) order.push_back(first);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);

  state.failed = false;
  state.released.clear();
  state.transactions.clear();
  state.flights.clear();
  thread_body = &body;
  state.start = ++state.time;
  {
    SignalGuard guard;
    for (size_t first : order) {
      run_resident(*config, first, resident, cluster);
      if (state.failed) break;
    }
  }
  state.running = nullptr;
  state.threads.clear();
  arena_release(mark);
  if (state.failed) return pending_error = cudaErrorLaunchFailure;
  return cudaSuccess;
}

// What Python calls (host.py).
extern "C" {

void cuda_host_seed(uint64_t value) { seed_random(value); }

// Each set of numbers is a device of its own, with an id of its own.
void cuda_host_device(int sm, int multiprocessors, int shared_per_block, int granted) {
  static std::map<std::tuple<int, int, int>, int> ids{{{90, 132, 227 * 1024}, 0}};
  const auto key = std::make_tuple(sm, multiprocessors, shared_per_block);
  const int id = ids.insert({key, int(ids.size())}).first->second;
  device = {id, sm, multiprocessors, shared_per_block, shared_per_block + 1024, granted};
}

// The architecture of the PTX that kernels were made of; 0: there is no code for this device.
void cuda_host_compiled(int architecture) { compiled = architecture; }

const char* cuda_host_error() { return last_error(); }

uint64_t cuda_host_stores_sent() { return state.sent; }
}
