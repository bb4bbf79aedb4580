// The target that kernels are compiled for. Each isa/*.cpp sets its target (pragma.h) and the
// macros below, and includes table.h; a kernel header that is compiled alone is read as in the
// generic build.
//
// Every kernel header lives in namespace rnnext::RNNEXT_ISA: a function shared between ISAs could
// be linked in its AVX-512 form and crash an older CPU. For the same reason kernels use no standard
// containers, and standard headers come before the target: those of pragma.h, and those that
// dispatch.h reaches, which each isa/*.cpp includes first.
#pragma once

#include "cpu/simd/pragma.h"

#ifndef RNNEXT_ISA
#define RNNEXT_ISA generic      // the namespace
#define RNNEXT_VECTOR_BYTES 16  // of a register
#ifdef __x86_64__               // rows of a tile; its sums take twice as many registers
#define RNNEXT_MR 2             // for processors before AVX2: small, and quick to compile
#else
#define RNNEXT_MR 6
#endif
// RNNEXT_AVX512: the vectors are those of AVX-512
// RNNEXT_BF16_DOT: there are bfloat16 dot products (AVX512_BF16; NEON with FEAT_BF16)
// RNNEXT_TILES: the kernels are those of AMX tiles (gemm/tile_unit.h), and
// RNNEXT_AMX: by the CPU's own instructions
#endif

// The intrinsic of AVX-512 or AVX2 with this name, and that for half a register.
#ifdef RNNEXT_AVX512
#define RNNEXT_X86(name) _mm512_##name
#define RNNEXT_X86_HALF(name) _mm256_##name
#elif RNNEXT_VECTOR_BYTES == 32
#define RNNEXT_X86(name) _mm256_##name
#define RNNEXT_X86_HALF(name) _mm_##name
#endif

#pragma GCC diagnostic error "-Wswitch"  // as recurrence/cell.h says
#define RNNEXT_INLINE inline __attribute__((always_inline))
// As for tiles: inlined into their callers they take minutes to compile.
#define RNNEXT_NOINLINE __attribute__((noinline))
