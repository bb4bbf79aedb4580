#include "cpu/isa/dispatch.h"

#ifdef RNNEXT_NEON_BF16
#include <sys/auxv.h>

#include "cpu/simd/pragma.h"

RNNEXT_TARGET("+bf16")
#define RNNEXT_ISA neon_bf16
#define RNNEXT_VECTOR_BYTES 16
#define RNNEXT_MR 6
#define RNNEXT_BF16_DOT
#include "cpu/isa/table.h"
RNNEXT_TARGET_END

namespace rnnext {
const KernelTable kNeonBf16Table = neon_bf16::table(
    "neon_bf16", [] { return (getauxval(AT_HWCAP2) >> 14 & 1) != 0; },  // HWCAP2_BF16
    &kGenericTable);
}  // namespace rnnext
#endif
