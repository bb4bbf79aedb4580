// Included by the ISAs with AVX-512, before what kernels inline. GCC's default tuning, for all
// processors at once, keeps addresses of a tile's rows in vector registers and then has too few for
// the sums of seven rows: each multiply-add read weights from the stack.
#ifndef __clang__
#pragma GCC target("tune=skylake-avx512")
#endif
