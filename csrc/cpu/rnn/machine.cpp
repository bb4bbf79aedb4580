#include "cpu/rnn/tuning.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
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

// The row of a list with this name; without one it throws: `must`, all names, and this one.
template <class Row, size_t n>
const Row& row_of(const Row (&list)[n], const std::string& name, const char* must) {
  std::string known;
  for (const Row& row : list) {
    if (name == row.name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw std::invalid_argument(must + known + ", got " + name);
}
const Machine& machine_row(const std::string& name) {
  return row_of(kMachines, name, "machine must be one of ");
}

void set_number(Machine& machine, const std::string& name, const std::string& value) {
  const MachineNumber& number = row_of(kMachineNumbers, name, "a machine's numbers are ");
  char* end = nullptr;
  const double given = std::strtod(value.c_str(), &end);
  const bool fits = (given > 0 || (given == 0 && number.zero)) && std::isfinite(given);
  if (value.empty() || *end || !fits)
    throw std::invalid_argument("a machine's " + name + " must be a positive number, got " + value);
  machine.*number.at = given;
}

Machine detect() {
  Machine machine = machine_row(model());
  machine.origin = "maker and family, with the cache sizes that the system tells";
  read_cache_sizes(machine);
  const char* const told = std::getenv("RNNEXT_CPU_MACHINE");
  if (!told || !*told) return machine;
  try {
    machine = machine_of(told, machine);
    machine.origin = "RNNEXT_CPU_MACHINE";
    return machine;
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("RNNEXT_CPU_MACHINE: ") + error.what());
  }
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
      found = machine_row(word);
    } else {
      throw std::invalid_argument("after a machine's name come NAME=NUMBER, got " + word);
    }
  }
  return found;
}

}  // namespace rnnext
