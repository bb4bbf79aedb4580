#ifdef __x86_64__
#include "cpu/isa/dispatch.h"
#include "cpu/isa/tune_avx512.h"
#include "cpu/simd/pragma.h"

RNNEXT_TARGET("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prfchw")
#define RNNEXT_ISA avx512
#define RNNEXT_VECTOR_BYTES 64
#define RNNEXT_AVX512
#define RNNEXT_MR 8
#include "cpu/isa/table.h"
RNNEXT_TARGET_END

namespace rnnext {
const KernelTable kAvx512Table = avx512::table("avx512", [] {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
});
}  // namespace rnnext
#endif
