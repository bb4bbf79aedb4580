// Every number that a processor or a measurement put into the plan, with its source. "Measured":
// the times in docs/experiments.md, Zen 4, two cores, unless a line says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace rnnext {

// A processor as the plan knows it. Rates are bytes a cycle of one core; a rate of multiply-adds
// counts bytes of weights, each of which is used for one row.
struct Machine {
  const char* name;
  double multiply;        // multiply-adds of float32 or float64
  double pairs;           // those of bfloat16 pairs; up to half of `multiply` they do not pay
  double l1d_bytes;       // weights up to this size are read from L1d,
  double l1d_rate;        // at this rate;
  double l2_bytes;        // up to this size from L2,
  double l2_rate;         // at this one;
  double far_rate;        // larger ones from beyond it
  double wait;            // cycles that threads lose when they wait for each other at a step
  double line;            // cycles for each cache line that another core wrote
  double fetch_bytes;     // weights of this size and more are fetched ahead
  double tiles = 0;       // multiply-adds on AMX tiles; 0: it has none
  double pair_bytes = 0;  // panels of this size and more go through many rows in pairs; 0: none
  double fetch = 0;       // how much longer a gated cell's step takes if it fetches all the time
  const char* origin = "its name";  // where the description comes from
};

// The numbers by their names: what may be overridden, and what `explain` shows.
struct MachineNumber {
  const char* name;
  double Machine::* at;
  bool zero = false;  // whether it may be 0
};
constexpr MachineNumber kMachineNumbers[] = {
    {"multiply", &Machine::multiply},   {"pairs", &Machine::pairs},
    {"l1d_bytes", &Machine::l1d_bytes}, {"l1d_rate", &Machine::l1d_rate},
    {"l2_bytes", &Machine::l2_bytes},   {"l2_rate", &Machine::l2_rate},
    {"far_rate", &Machine::far_rate},   {"wait", &Machine::wait, true},
    {"line", &Machine::line, true},     {"fetch_bytes", &Machine::fetch_bytes, true},
    {"tiles", &Machine::tiles, true},   {"pair_bytes", &Machine::pair_bytes, true},
    {"fetch", &Machine::fetch, true},
};

// Weights may fill this share of a cache: the rest is for what else a step reads and writes.
constexpr double kCacheShare = 0.8;

constexpr Machine kMachines[] = {
    // 32 KiB of L1d, 1 MiB of L2; 117 GB/s from L2 and 81 from L3, of which other streams take a
    // quarter (at 10 in place of 16, calls of 8 and 12 sequences share hidden units, and wait for
    // each other: 1.05 times the time); round trips of a line between cores 65 to 320 ns. Fetched
    // ahead, 1 to 5 MB of weights took up to 1.2 times as long on a Zen 3, 6.5 MB and more 0.8.
    {"zen4", 64, 64, kCacheShare * (32 << 10), 64, kCacheShare * (1 << 20), 28, 16, 700, 20, 5e6},
    // Two 512-bit multiply-adds a cycle, 48 KiB and 1 MiB; 508 GB/s from L1d and 113 from L3 at 4.1
    // GHz (`python -m benchmarks roof`), and of the 247 from L2 what one row of H = 128 reads of
    // it; between cores as zen4.
    {"zen5", 128, 119, kCacheShare * (48 << 10), 124, kCacheShare * (1 << 20), 36, 13, 700, 20,
     5e6},
    // A Xeon with AMX (Sapphire Rapids and later): two 512-bit multiply-adds a cycle, bfloat16 dot
    // products at half of their speed; 2 MiB of L2, 140 to 177 GB/s from it and 14 from beyond.
    // Fetched ahead, 1.5 MB took 0.9 of the time, panels in pairs 0.91 to 1.01; two threads that
    // shared a GRU's or LSTM's units of I = H = 1024, 0.93 to 0.95. Tiles: a probe of the product
    // alone reached 1634 GFLOP/s at H=256 with 32 rows, of 3165, which is 1024 bytes a cycle.
    {"xeon-amx", 128, 32, kCacheShare * (48 << 10), 128, kCacheShare * (2 << 20), 50, 4, 700, 20,
     1.25e6, 530, 32 << 10, 0.02},
};

// The machine that calls are planned for: named by RNNEXT_CPU_MACHINE, or found by the processor's
// maker, family and features, with the cache sizes that the system tells. Nothing is measured at
// run time: the weights' gradients are summed as the plan shares them out, and must have the same
// bits in every process of a machine.
const Machine& this_machine();

// The machine that a text describes: a row's name, numbers that differ from it, or, without a name,
// from `machine`: "zen5", "zen5,far_rate=10", "wait=900,line=30". Throws std::invalid_argument.
Machine machine_of(const std::string& text, const Machine& machine = this_machine());

// Multiply-adds that pay for one more thread. One step forward takes fewer, since it reads every
// weight once, at the speed of memory; between these where the weights are packed, since what fits
// the L2 of one core is read at its speed. (Measured.)
constexpr double kThreadWork = 3e5, kThreadWorkOneStep = 5e4, kThreadWorkPackedStep = 1e5;

// The backward pass of a plan that does not sort leaves padding out by copying the rows, where at
// most this share of the steps exist and so many multiply-adds are spared. (Measured on Zen 5.)
constexpr double kUnpadShare = 0.8, kUnpadWork = 4e6;

// From these sizes on AMX tiles multiply float32 at "high" and "medium" faster than at "highest".
// (Measured on a Xeon, one thread and two: RNN and LSTM, H of 8 to 1024, T to 50, B to 128.)
struct TileUse {
  int64_t rows, step_rows;       // sequences; of a single step, which needs kTileStepUnits too
  int64_t columns, all_columns;  // gates * H * sequences, * steps (not asked of packed weights)
};
constexpr int64_t kTileWeights = 64 * 64, kTileStepUnits = 256;  // numbers in W_hh; H
constexpr TileUse kHighTiles{12, 16, 2 << 10, 32 << 10}, kMediumTiles{1, 8, 256, 2 << 10};

// With fewer rows a step is bound by reading the weights. (Measured.)
constexpr int64_t kFewRows = 4;
// A single step of so few sequences reads weights as they lie. (Measured: with more, packing pays.)
constexpr int64_t kOneStepRows = 7;

// The most sequences that a group takes through all steps at once, of operands of 4 bytes: a step's
// rows stay in L2 until the next one. (Measured on a Zen 5, H of 8 to 1024: 128 and 512 are alike.)
constexpr int64_t kGroupRows = 256;

// Bytes of weights that a core packs a cycle. (Measured: 12 numbers a nanosecond.)
constexpr double kPackRate = 13;
// Rows of pre-activations computed ahead of the recurrence, and rows of their gradient kept until
// they are summed, stay in L2 beside the weights. (Measured: 192 to 384 KiB gain nothing.)
constexpr int64_t kForwardChunkBytes = 96 << 10, kBackwardChunkBytes = 128 << 10;
// Steps of a chunk that share a W_ih in far memory, what they may fill of L2, and how many L2 the
// weights fill. (Measured on a Xeon: 1, 2, 4 steps gain less; 1.2 MB lose; 1.25 L2 0.95 to 1.03.)
constexpr int64_t kFarSteps = 3, kFarChunkBytes = 512 << 10;
constexpr double kFarL2 = 1.5;
// Products of either kind that wait for the gate pass: half of an L1d. (Measured: 8 KiB is slower.)
constexpr int64_t kGateBytes = 16 << 10;
// Rows that enter the gradients of the weights at once. (Measured: 512 are slower.)
constexpr int64_t kGradientRows = 256;
// With so few rows tiles write the gradients of the weights where they are returned. (Measured:
// with 160 rows and more, sums that pass through scratch are as fast, or faster.)
constexpr int64_t kDirectSumRows = 64;
// Rows of the gradient of the pre-activations that stay in L2 while W_ih passes. (No source.)
constexpr int64_t kFeatureBlockBytes = 256 << 10;
// A weight that a product of so few rows is the only one to read passes in blocks of k, which are
// packed in parts of half an L1d. (Measured on a Zen 3, 16 to 64 rows: 0.45 to 0.95 of the time of
// packing it whole or reading it as it lies. Thousands of rows are up to 1.2 times slower.)
constexpr int64_t kStreamedRows = 64, kPackedBlockBytes = 16 << 10;

// Packed weights up to this size are packed by each thread for itself: lines that one core wrote
// travel slowly to another that shares no cache with it. (Measured.)
constexpr size_t kOwnWeightBytes = 512 << 10;
// The memory that one thread writes is this far from another's, whose lines a prefetch might take.
constexpr int64_t kFalseSharing = 4096;
// The lines of an output this large come from far memory when they are written, or from another
// core, whose prefetches take them along with those of its own rows beside them. (Measured.)
constexpr int64_t kFarBytes = 1 << 20;
// What gated cells keep for a later pass, if it is this large, is written past the caches: they
// would first read its lines, and lose others. (Measured: 2 to 5 MiB lose up to 10 %.)
constexpr int64_t kPastCachesBytes = 8 << 20;
// Beside so much grad_pre all rows are far: tiles prefetch a few lines at a time. (Measured.)
constexpr int64_t kFarReadBytes = 2 << 20;
// Up to so many bytes of a thread's step, and from so many steps on, its state is in scratch: the
// processor's prefetches would run on into another's rows. (Measured on a Xeon and a Zen 5.)
constexpr int64_t kNarrowBytes = 8 << 10, kNarrowFrom = 4;
// Rows that are this many bytes apart, or more, may push each other out of L1d, which maps
// addresses that differ by 4096 to one set.
constexpr int64_t kSameSetBytes = 4096;

// The gather fetches a row that is read so many rows later, which the CPU cannot foresee.
// (Measured: V=50000 D=256 N=8192 602 -> 442 us.)
constexpr int64_t kGatherAhead = 8;
// With fewer bytes to move, or indices to sort, for each thread another one does not pay (measured
// on a Zen 5); nor any for fewer random numbers (a guess).
constexpr int64_t kBytesPerThread = 256 << 10, kSortedPerThread = 4096, kFewNumbers = 4096;

// Limits for Python's choices (embedding_rnn.py, stepper.py). The rows of a table that occur are
// counted where the product N x E x H is at least kCountedWork and the table has at most
// kCountedRows rows, since counting looks at a bit for each of these; the rows are then multiplied
// if they are at most kProjectedShare of the tokens. A Stepper multiplies a whole table of at most
// kProjectedRows with W_ih, which costs what as many steps save. (Measured, with one sequence.)
constexpr double kCountedWork = 5e6, kProjectedShare = 0.5;
constexpr int64_t kCountedRows = 1 << 20, kProjectedRows = 1024;

}  // namespace rnnext
