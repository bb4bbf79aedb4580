// The prologue of an instruction set's kernels: the standard headers, and then the target of the
// functions between RNNEXT_TARGET and RNNEXT_TARGET_END.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#include <cstddef>
#include <cstdint>
#include <utility>

#define RNNEXT_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define RNNEXT_TARGET(features) \
  RNNEXT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define RNNEXT_TARGET_END RNNEXT_PRAGMA(clang attribute pop)
#else
#define RNNEXT_TARGET(features)   \
  RNNEXT_PRAGMA(GCC push_options) \
  RNNEXT_PRAGMA(GCC target(features))
#define RNNEXT_TARGET_END RNNEXT_PRAGMA(GCC pop_options)
#endif
