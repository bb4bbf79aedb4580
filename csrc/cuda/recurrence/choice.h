// How a recurrence runs on a card, as a pure function of sizes, type and device properties: without
// torch or CUDA calls, so that machines without a GPU can test it.
#pragma once

#include <compare>
#include <cstdint>

namespace rnnext::cuda {

// Which threads share the state: none (each step is a GEMM and a kernel), or those of a block, of a
// cluster, or of the grid.
enum class Path { step, block, cluster, grid };
// The arithmetic: the element type, in the order of DType, or float32 elements multiplied as TF32.
enum class Compute { f32, f64, bf16, f16, tf32 };

constexpr int kThreads = 512;  // of every block of a resident kernel
constexpr int kWarps = kThreads / 32;
constexpr int kRegisterBlocks = 8;  // k-blocks of the matrix that a worker keeps in registers
constexpr int kMaxCluster = 16;

struct Device {
  int capability = 0;  // 10 * major + minor
  int sm_count = 0;
  int shared_bytes = 0;  // of one block, opted in
  // How many clusters of 2, 4, 8, 16 blocks with all that shared memory fit at once; 0: none.
  int clusters[4] = {0, 0, 0, 0};
};

struct Problem {
  int64_t T = 0, B = 0, H = 0;
  int D = 1;
  Compute compute = Compute::f32;
  bool backward = false;

  auto operator<=>(const Problem&) const = default;
};

// How a resident kernel lays the problem out. A group of `blocks` blocks holds the matrix of one
// direction, `slice` hidden units a block, and runs tiles of `rows` sequences one after another.
// In a block, workers (threads for FMA, warps for the tensor cores) form a grid of unit_workers x
// k_workers; each multiplies its units by every k_workers-th k-block of the vector. The first
// kRegisterBlocks of a worker's k-blocks stay in registers, the others in shared memory.
struct Geometry {
  Path path = Path::step;
  int blocks = 0;                   // in a group
  int groups = 0;                   // launched; a multiple of D
  int rows = 0;                     // sequences in a tile
  int tile_step = 0;                // sequences from one tile of a group to its next
  int slice = 0;                    // hidden units of a block
  int pairs = 0;                    // 4-byte words (8 for float64) of a slice
  unsigned pair_divisor = 0;        // of divide()
  int row_step = 0, pair_step = 0;  // kThreads words further on in [rows, pairs]
  int unit_workers = 0;
  int k_workers = 0;
  int k_blocks = 0;       // k-blocks in all
  int parts = 0;          // partial sums per output element that meet in shared memory
  int part_stride = 0;    // elements between rows of the partial sums
  int vector_stride = 0;  // bytes between the sequences' vectors
  // Offsets in shared memory, in bytes. The vectors begin at 0.
  int part_offset = 0;    // [parts, rows, part_stride] accumulators
  int input_offset = 0;   // [2, 1 forward or 2 backward, rows * slice] prefetched elements
  int bias_offset = 0;    // [slice] accumulators
  int length_offset = 0;  // [3, rows] int: lengths, and the marks of resets of two steps
  int place_offset = 0;   // int64_t: [4] first rows of steps; [2, rows] rows of the table
  int weight_offset = 0;  // 16 KiB for each k-block past kRegisterBlocks
  int shared_bytes = 0;
  double cycles = 0;  // the model's estimate for the whole pass, for comparing choices only

  int flag_count() const { return groups * blocks; }
  int64_t exchange_bytes() const { return int64_t(2) * groups * rows * vector_stride; }
};

int element_size(Compute compute);

// The cheapest path by the model in docs/cuda.md; `forced` (null or empty: no) is one of "step",
// "block", "cluster", "grid". Throws std::invalid_argument for another word, and for a path that
// cannot run this problem on this device.
Geometry choose(const Problem& problem, const Device& device, const char* forced);

}  // namespace rnnext::cuda
