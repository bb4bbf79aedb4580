#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/isa/dispatch.h"
#include "cpu/isa/tune_avx512.h"
#include "cpu/simd/pragma.h"

RNNEXT_TARGET("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,avx512bf16,prfchw")
#define RNNEXT_ISA amx
#define RNNEXT_VECTOR_BYTES 64
#define RNNEXT_AVX512
#define RNNEXT_MR 8
#define RNNEXT_BF16_DOT
#define RNNEXT_TILES
#define RNNEXT_AMX
#include "cpu/isa/table.h"
RNNEXT_TARGET_END

namespace rnnext {
namespace {

// Linux gives a process the tiles' registers only if it asks for them, and may refuse.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool may = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return may;
#else
  return false;
#endif
}

bool has_tiles() {
  unsigned a, b, c, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile);
}

}  // namespace

const KernelTable kAmxTable = amx::table(
    "amx", [] { return kAvx512Bf16Table.supported() && has_tiles() && may_use_tiles(); },
    &kAvx512Bf16Table);
}  // namespace rnnext
#endif
