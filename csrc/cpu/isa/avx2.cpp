#ifdef __x86_64__
#include "cpu/isa/dispatch.h"
#include "cpu/simd/pragma.h"

RNNEXT_TARGET("avx2,fma,f16c,prfchw")
#define RNNEXT_ISA avx2
#define RNNEXT_VECTOR_BYTES 32
#define RNNEXT_MR 6
#include "cpu/isa/table.h"
RNNEXT_TARGET_END

namespace rnnext {
const KernelTable kAvx2Table = avx2::table(
    "avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); });
}  // namespace rnnext
#endif
