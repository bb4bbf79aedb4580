// The tile instructions of AMX: eight tiles of up to 16 rows of 64 bytes, and their product. With
// RNNEXT_AMX they are the CPU's, else a stand-in in plain C++, so that the kernels that use them
// can be tested on every machine.
#pragma once

#include "cpu/simd/operand.h"

namespace rnnext::RNNEXT_ISA::tile_unit {

constexpr int kRows = 16;      // of a tile
constexpr int kRowBytes = 64;  // 16 sums, or 32 bfloat16

// The operand of LDTILECFG.
struct alignas(64) Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
// All tiles are whole. (Static: the instruction reads it from memory, once a task and thread.)
inline constexpr Config kWholeTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

#ifdef RNNEXT_AMX

// While it lives, a thread's vectors take numbers below 2^-126 as zeros, as tiles do.
class Flushing {
  const unsigned before_ = _mm_getcsr();

 public:
  Flushing() { _mm_setcsr(before_ | 0x8040); }  // of results and of operands
  ~Flushing() { _mm_setcsr(before_); }
};
RNNEXT_INLINE Vec<float> flushed(Vec<float> x) { return x; }

// In assembly, since the compilers' intrinsics are macros that take a tile's number as a literal.
RNNEXT_INLINE void configure(const Config& config) {
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
RNNEXT_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }
template <int tile>
RNNEXT_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// Rows `stride` bytes apart.
template <int tile>
RNNEXT_INLINE void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
RNNEXT_INLINE void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}
// sums += a [rows, pairs] times b [pairs, columns].
template <int sums, int a, int b>
RNNEXT_INLINE void dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
}

#else

// Numbers below 2^-126 are zeros to TDPBF16PS, be they operands, sums or results. (Only
// products: without fused multiply-adds, other arithmetic would lose products that the CPU keeps.)
struct Flushing {};
RNNEXT_INLINE Vec<float> flushed(Vec<float> x) {
  const Vec<Pair> normal = ((Vec<Pair>)x & 0x7f800000) != 0;
  return (Vec<float>)((Vec<Pair>)x & (normal | kSignBit<float>));
}

// The registers of a thread. Using tiles that are not configured traps, as on the CPU.
struct Registers {
  Config config;
  alignas(64) int32_t tiles[8][kRows][kRowBytes / 4];

  int rows(int tile) const {
    if (config.palette != 1 || config.rows[tile] == 0 || config.row_bytes[tile] == 0)
      __builtin_trap();
    return config.rows[tile];
  }
  int row_bytes(int tile) const { return config.row_bytes[tile]; }
};
inline thread_local Registers registers;

inline void configure(const Config& config) {
  registers = {};
  registers.config = config;
}
inline void release() { registers = {}; }
template <int tile>
inline void zero() {
  if (registers.rows(tile)) __builtin_memset(registers.tiles[tile], 0, sizeof registers.tiles[0]);
}
template <int tile>
inline void load(const void* from, int64_t stride) {
  zero<tile>();
  for (int row = 0; row < registers.rows(tile); ++row)
    __builtin_memcpy(registers.tiles[tile][row], static_cast<const char*>(from) + row * stride,
                     registers.row_bytes(tile));
}
template <int tile>
inline void store(void* to, int64_t stride) {
  for (int row = 0; row < registers.rows(tile); ++row)
    __builtin_memcpy(static_cast<char*>(to) + row * stride, registers.tiles[tile][row],
                     registers.row_bytes(tile));
}

// As Intel's manual has it: of each sum, the products of even and of odd values along k in a chain
// of multiply-adds each, from zero; both chains are added, then that to the sum. (The product of
// two bfloat16 is a float, so rounding it does not matter.)
template <int sums, int a, int b>
__attribute__((noinline)) void dot() {
  Registers& r = registers;
  Vec<float> even_b[kRows], odd_b[kRows];
  for (int k = 0; k < r.rows(b); ++k) {
    Vec<Pair> pairs;
    __builtin_memcpy(&pairs, r.tiles[b][k], sizeof pairs);
    even_b[k] = flushed((Vec<float>)(pairs << 16));
    odd_b[k] = flushed((Vec<float>)(pairs & ~0xffff));
  }
  for (int row = 0; row < r.rows(sums); ++row) {
    Vec<float> even = {}, odd = {};
    for (int k = 0; k < r.row_bytes(a) / 4; ++k) {
      const Vec<Pair> pair = Vec<Pair>{} + r.tiles[a][row][k];
      even = flushed(even + flushed((Vec<float>)(pair << 16)) * even_b[k]);
      odd = flushed(odd + flushed((Vec<float>)(pair & ~0xffff)) * odd_b[k]);
    }
    Vec<float> sum;
    __builtin_memcpy(&sum, r.tiles[sums][row], sizeof sum);
    sum = flushed(flushed(sum) + flushed(even + odd));
    __builtin_memcpy(r.tiles[sums][row], &sum, sizeof sum);
  }
}

#endif

}  // namespace rnnext::RNNEXT_ISA::tile_unit
