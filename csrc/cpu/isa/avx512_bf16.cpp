#ifdef __x86_64__
#include "cpu/isa/dispatch.h"
#include "cpu/isa/tune_avx512.h"
#include "cpu/simd/pragma.h"

RNNEXT_TARGET("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,avx512bf16,prfchw")
#define RNNEXT_ISA avx512_bf16
#define RNNEXT_VECTOR_BYTES 64
#define RNNEXT_AVX512
#define RNNEXT_MR 8
#define RNNEXT_BF16_DOT
#include "cpu/isa/table.h"
RNNEXT_TARGET_END

namespace rnnext {
const KernelTable kAvx512Bf16Table = avx512_bf16::table(
    "avx512_bf16", [] { return kAvx512Table.supported() && __builtin_cpu_supports("avx512bf16"); },
    &kAvx512Table);
}  // namespace rnnext
#endif
