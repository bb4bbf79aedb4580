#include "cpu/isa/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace rnnext {
namespace {

// The tables of this build, slowest first. The stand-in of AMX is for tests, and never the best.
std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> built{&kAmxStandInTable, &kGenericTable,    &kAvx2Table,
                                        &kAvx512Table,     &kAvx512Bf16Table, &kAmxTable,
                                        &kNeonBf16Table};
  std::erase(built, nullptr);
  return built;
}

const KernelTable* find(const std::string& name) {
  std::string known;
  for (const KernelTable* table : tables()) {
    if (name == table->name) {
      if (!table->supported())
        throw std::invalid_argument("RNNEXT_CPU_ISA must be one that this CPU has, got " + name);
      return table;
    }
    known += std::string(known.empty() ? "" : ", ") + table->name;
  }
  throw std::invalid_argument("RNNEXT_CPU_ISA must be one of " + known + ", got " + name);
}

const KernelTable* best() {
  if (const char* name = std::getenv("RNNEXT_CPU_ISA"); name && *name) return find(name);
  const Machine& machine = this_machine();
  // (A table that adds bfloat16 pairs alone is passed over where they are slower than float32.)
  const bool pairs_pay = machine.pairs > machine.multiply / 2;
  const KernelTable* chosen = nullptr;
  for (const KernelTable* table : tables())
    if (table->supported() && (!table->rnn_medium || table->rnn_high || pairs_pay)) chosen = table;
  if (!chosen)
    throw std::invalid_argument(
        "this build of rnnext has kernels for another CPU alone: build it without RNNEXT_ISAS");
  return chosen;
}

std::atomic<const KernelTable*> current{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = current.load(std::memory_order_relaxed);
  if (!table) current.store(table = best());
  return *table;
}

void set_isa(const std::string& name) { current.store(find(name)); }

std::vector<std::string> isas(bool supported) {
  std::vector<std::string> names;
  for (const KernelTable* table : tables())
    if (!supported || table->supported()) names.push_back(table->name);
  return names;
}

}  // namespace rnnext
