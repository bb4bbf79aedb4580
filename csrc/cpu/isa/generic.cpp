// The compiler's default target: SSE2 on x86-64, NEON on Arm.

#include "cpu/runtime/dispatch.h"

#define RNNEXT_ISA generic
#define RNNEXT_VECTOR_BYTES 16
#define RNNEXT_TILE_ROWS 6
#include "cpu/isa/table.h"

namespace rnnext {
extern const KernelTable kGenericTable;
const KernelTable kGenericTable = generic::table("generic", [] { return true; });
}  // namespace rnnext
