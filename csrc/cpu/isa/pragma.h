// The instruction set of the functions between RNNEXT_TARGET and RNNEXT_TARGET_END.
#pragma once

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
