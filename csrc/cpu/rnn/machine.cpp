#include "cpu/rnn/machine.h"

#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace rnnext {
namespace {

const char* model() {
#ifdef __x86_64__
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__builtin_cpu_is("amd")) {
    __get_cpuid(1, &a, &b, &c, &d);
    const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
    return family >= 0x1a ? "zen5" : "zen4";
  }
  // Cores with two 512-bit multiply-adds a cycle, and a third cache that is little faster than
  // memory.
  if (__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f")) return "xeon-amx";
#endif
  return kMachines[0].name;
}

// Weights may fill so much of a cache: the rest is for what else a step reads and writes.
void read_cache_sizes([[maybe_unused]] Machine& machine) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const long first = sysconf(_SC_LEVEL1_DCACHE_SIZE), second = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (first > 0) machine.first_bytes = kCacheShare * static_cast<double>(first);
  if (second > 0) machine.second_bytes = kCacheShare * static_cast<double>(second);
#endif
}

Machine detect() {
  if (const char* name = std::getenv("RNNEXT_CPU_MACHINE"); name && *name)
    return machine_named(name);
  Machine machine = machine_named(model());
  read_cache_sizes(machine);
  return machine;
}

}  // namespace

const Machine& this_machine() {
  static const Machine machine = detect();
  return machine;
}

const Machine& machine_named(const std::string& name) {
  std::string known;
  for (const Machine& machine : kMachines) {
    if (name == machine.name) return machine;
    known += (known.empty() ? "" : ", ") + std::string(machine.name);
  }
  throw std::invalid_argument("machine must be one of " + known + ", got " + name);
}

}  // namespace rnnext
