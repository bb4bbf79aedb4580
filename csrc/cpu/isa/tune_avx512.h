// Included by the ISAs with AVX-512, before what kernels inline. GCC's default, tuning for all
// processors at once, keeps addresses of a tile's rows in vector registers and then has too few for
// the sums of seven rows: it read a vector of weights from the stack with each multiply-add.
#ifndef __clang__
#pragma GCC target("tune=skylake-avx512")
#endif
