#include "cpu/rnn/tuning.h"

#include <unistd.h>

#include <algorithm>
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
  // Cores with two 512-bit multiply-adds a cycle, and an L3 that is little faster than memory.
  if (__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f")) return "xeon-amx";
#endif
  return kMachines[0].name;
}

// Replaces a row's cache sizes by those that the system tells, times kCacheShare.
void read_cache_sizes([[maybe_unused]] Machine& machine) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const long l1d = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (l1d > 0) machine.l1d_bytes = kCacheShare * static_cast<double>(l1d);
  if (l2 > 0) machine.l2_bytes = kCacheShare * static_cast<double>(l2);
#endif
}

const Machine& row_of(const std::string& name) {
  std::string known;
  for (const Machine& machine : kMachines) {
    if (name == machine.name) return machine;
    known += (known.empty() ? "" : ", ") + std::string(machine.name);
  }
  throw std::invalid_argument("machine must be one of " + known + ", got " + name);
}

void set_number(Machine& machine, const std::string& name, const std::string& value) {
  std::string known;
  for (const MachineNumber& number : kMachineNumbers) {
    known += (known.empty() ? "" : ", ") + std::string(number.name);
    if (name != number.name) continue;
    char* end = nullptr;
    const double given = std::strtod(value.c_str(), &end);
    if (value.empty() || *end || !(given > 0 || (given == 0 && number.zero)))
      throw std::invalid_argument("a machine's " + name + " must be a positive number, got " +
                                  value);
    machine.*number.at = given;
    return;
  }
  throw std::invalid_argument("a machine's numbers are " + known + ", got " + name);
}

Machine detect() {
  Machine machine = row_of(model());
  machine.origin = "maker and family, with the cache sizes that the system tells";
  read_cache_sizes(machine);
  const char* const told = std::getenv("RNNEXT_CPU_MACHINE");
  if (!told || !*told) return machine;
  machine = machine_of(told, machine);
  machine.origin = "RNNEXT_CPU_MACHINE";
  return machine;
}

}  // namespace

const Machine& this_machine() {
  static const Machine machine = detect();
  return machine;
}

Machine machine_of(const std::string& text, const Machine& machine) {
  Machine found = machine;
  for (size_t begin = 0, end = 0; begin <= text.size(); begin = end + 1) {
    end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    const size_t equals = word.find('=');
    if (equals != std::string::npos) {
      set_number(found, word.substr(0, equals), word.substr(equals + 1));
      found.origin = "numbers that were given";
    } else if (begin == 0) {
      found = row_of(word);
    } else {
      throw std::invalid_argument("after a machine's name come NAME=NUMBER, got " + word);
    }
  }
  return found;
}

}  // namespace rnnext
