// The compiler's default target: SSE2 on x86-64, NEON on Arm.
#include "cpu/isa/dispatch.h"

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC optimize("O2")  // for processors before AVX2: quick to compile
#endif
#include "cpu/isa/table.h"

namespace rnnext {
const KernelTable kGenericTable = generic::table("generic", [] { return true; });
}  // namespace rnnext
