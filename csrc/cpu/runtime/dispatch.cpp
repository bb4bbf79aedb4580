#include "cpu/runtime/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/rnn/machine.h"

namespace rnnext {

extern const KernelTable kGenericTable, kAmxStandInTable;
#ifdef __x86_64__
extern const KernelTable kAvx2Table, kAvx512Table, kAvx512Bf16Table, kAmxTable;
#endif
#ifdef RNNEXT_NEON_BF16
extern const KernelTable kNeonBf16Table;
#endif

namespace {

const KernelTable* const kTables[] = {
    // slowest first: the stand-in is never the best
    &kAmxStandInTable, &kGenericTable,
#ifdef __x86_64__
    &kAvx2Table,       &kAvx512Table,  &kAvx512Bf16Table, &kAmxTable,
#endif
#ifdef RNNEXT_NEON_BF16
    &kNeonBf16Table,
#endif
};

const KernelTable* find(const std::string& name) {
  std::string known;
  for (const KernelTable* table : kTables) {
    if (name == table->name) {
      if (!table->supported())
        throw std::invalid_argument("CPU ISA '" + name + "' is not supported by this CPU");
      return table;
    }
    known += std::string(known.empty() ? "" : ", ") + table->name;
  }
  throw std::invalid_argument("unknown CPU ISA '" + name + "', expected one of: " + known);
}

const KernelTable* best() {
  if (const char* name = std::getenv("RNNEXT_CPU_ISA"); name && *name) return find(name);
  const Machine& machine = this_machine();
  const bool pairs_pay = machine.pairs > machine.multiply / 2;
  const KernelTable* chosen = kTables[0];
  for (const KernelTable* table : kTables)
    if (table->supported() && (!table->rnn_medium || table->rnn_high || pairs_pay)) chosen = table;
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

std::vector<std::string> isas_built() {
  std::vector<std::string> names;
  for (const KernelTable* table : kTables) names.push_back(table->name);
  return names;
}

std::vector<std::string> isas_supported() {
  std::vector<std::string> names;
  for (const KernelTable* table : kTables)
    if (table->supported()) names.push_back(table->name);
  return names;
}

}  // namespace rnnext
