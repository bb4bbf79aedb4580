// For tests: the kernels of AMX tiles on a stand-in for tile instructions, for any processor.
#include "cpu/isa/dispatch.h"

#ifndef __clang__
#pragma GCC optimize("O1")  // more would only take longer to compile
#endif
#define RNNEXT_ISA amx_stand_in
#define RNNEXT_VECTOR_BYTES 64
#define RNNEXT_MR 8
#define RNNEXT_TILES
#include "cpu/isa/table.h"

namespace rnnext {
const KernelTable kAmxStandInTable =
    amx_stand_in::table("amx_stand_in", [] { return true; }, &kGenericTable);
}  // namespace rnnext
