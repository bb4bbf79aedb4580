// The compiler's default target: SSE2 on x86-64, NEON on Arm.

#include "cpu/isa/dispatch.h"

#define RNNEXT_ISA generic
#define RNNEXT_VECTOR_BYTES 16
#ifdef __x86_64__
#define RNNEXT_MR 2  // for processors before AVX2: small, and quick to compile
#ifndef __clang__
#pragma GCC optimize("O2")
#endif
#else
#define RNNEXT_MR 6
#endif
#include "cpu/isa/table.h"

namespace rnnext {
const KernelTable kGenericTable = generic::table("generic", [] { return true; });
}  // namespace rnnext
