// An emulator of the tile instructions, from Intel's manual (AMX of the "Intel Architecture
// Instruction Set Extensions Programming Reference"): linked into a program, it runs those that the
// CPU refuses. It knows what the kernels use, and ends the program at anything else.
#include <signal.h>
#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kTiles = 8, kRows = 16, kColumns = 16;  // of 32 bits

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// A thread's state.
thread_local Config config;
thread_local uint32_t tiles[kTiles][kRows][kColumns];

[[noreturn]] void refuse(const char* why, const uint8_t* code) {
  std::fprintf(stderr, "tiles: %s:", why);
  for (int i = 0; i < 8; ++i) std::fprintf(stderr, " %02x", code[i]);
  std::fprintf(stderr, "\n");
  std::_Exit(99);
}

int64_t general_register(const ucontext_t& context, int number) {
  static constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kPlaces[number]];
}

int32_t displacement(const uint8_t* at) {
  int32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Numbers below 2^-126 count as zero.
float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }
float number(uint32_t bits) { return flushed(std::bit_cast<float>(bits)); }

// TDPBF16PS: products of even and of odd k are summed apart, from zero, then added to the sum.
void dot(int sums, int a, int b) {
  for (int m = 0; m < config.rows[sums]; ++m) {
    for (int n = 0; n < config.row_bytes[sums] / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < config.row_bytes[a] / 4; ++k) {
        const uint32_t x = tiles[a][m][k], y = tiles[b][k][n];
        even = flushed(std::fma(number(x << 16), number(y << 16), even));
        odd = flushed(std::fma(number(x & 0xffff0000), number(y & 0xffff0000), odd));
      }
      const float sum = flushed(number(tiles[sums][m][n]) + flushed(even + odd));
      tiles[sums][m][n] = std::bit_cast<uint32_t>(sum);
    }
  }
}

void execute(int, siginfo_t*, void* state) {
  ucontext_t& context = *static_cast<ucontext_t*>(state);
  const auto* code = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  // A VEX prefix of three bytes, the opcode, ModRM, and what that says follows.
  const bool in_map = code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x84) == 0;
  if (!in_map) refuse("no tile instruction", code);
  const int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
  const int third = ~code[2] >> 3 & 15, prefix = code[2] & 3, opcode = code[3];
  const int mode = code[4] >> 6, first = code[4] >> 3 & 7, second = code[4] & 7;
  const bool memory = mode != 3;
  const uint8_t* next = code + 5;
  char* address = nullptr;
  int64_t stride = 0;
  if (memory) {
    int base = second | high_base;
    if (second == 4) {
      const uint8_t sib = *next++;
      base = (sib & 7) | high_base;
      const int index = (sib >> 3 & 7) | high_index;
      if (index != 4) stride = general_register(context, index) << (sib >> 6);
    }
    const bool no_base = mode == 0 && (base & 7) == 5;  // relative to the next instruction, or none
    int64_t at = no_base ? 0 : general_register(context, base);
    if (mode == 1) at += static_cast<int8_t>(*next++);
    if (mode == 2 || no_base) at += displacement(next), next += 4;
    if (no_base && second != 4) at += reinterpret_cast<int64_t>(next);
    address = reinterpret_cast<char*>(at);
  }

  enum { kNone, k66, kF3, kF2 };
  const auto is = [&](int op, int with, bool of_memory) {
    return opcode == op && prefix == with && memory == of_memory;
  };
  if (is(0x49, kNone, true)) {  // LDTILECFG
    std::memcpy(&config, address, sizeof config);
    if (config.palette != 1) refuse("no such palette", code);
    std::memset(tiles, 0, sizeof tiles);
  } else if (is(0x49, kNone, false) && code[4] == 0xc0) {  // TILERELEASE
    config = {};
  } else if (config.palette != 1) {
    refuse("the tiles are not configured", code);
  } else if (is(0x49, kF2, false)) {  // TILEZERO
    std::memset(tiles[first], 0, sizeof tiles[first]);
  } else if (is(0x4b, kF2, true)) {  // TILELOADD
    std::memset(tiles[first], 0, sizeof tiles[first]);
    for (int row = 0; row < config.rows[first]; ++row)
      std::memcpy(tiles[first][row], address + row * stride, config.row_bytes[first]);
  } else if (is(0x4b, kF3, true)) {  // TILESTORED
    for (int row = 0; row < config.rows[first]; ++row)
      std::memcpy(address + row * stride, tiles[first][row], config.row_bytes[first]);
  } else if (is(0x5c, kF3, false)) {
    dot(first, second, third);
  } else {
    refuse("not emulated", code);
  }
  context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(next);
}

// Before main.
[[maybe_unused]] const int kInstalled = [] {
  struct sigaction action = {};
  action.sa_sigaction = execute;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr);
}();

}  // namespace
