#ifdef __x86_64__
#include <immintrin.h>  // standard headers come before the target

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/runtime/dispatch.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#define RNNEXT_ISA avx2
#define RNNEXT_VECTOR_BYTES 32
#define RNNEXT_TILE_ROWS 6
#include "cpu/isa/table.h"
#pragma GCC pop_options

namespace rnnext {
extern const KernelTable kAvx2Table;
const KernelTable kAvx2Table = avx2::table("avx2", [] {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
});
}  // namespace rnnext
#endif
