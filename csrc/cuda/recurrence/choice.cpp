#include "cuda/recurrence/choice.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>

namespace rnnext::cuda {
namespace {

// Cycles of the SM. Estimates that order the choices: no GPU has confirmed them, and where there is
// no source they come from counting instructions (docs/cuda.md, "The choice").
constexpr double kStepOverhead[] = {9000, 500, 1000, 2500};  // of a step, fixed, by Path
constexpr double kStart = 8000;        // of a resident kernel, beside reading the matrix
constexpr double kZeros = 5000;        // of a launch that clears what the grid exchanges
constexpr double kHost = 17500;        // 10 us in which the host issues a step of the step path
constexpr double kElementCycles = 60;  // of the cell, for each element of a thread
constexpr double kPeerCycles = 16;     // to issue a thread's store to one peer, 16 warps at once
// Bytes a cycle. Shared memory: 32 banks of 4 bytes. Into a peer's: 2.65 TB/s over an H800's 114
// SMs in clusters of 4 at 1.755 GHz (arXiv:2402.13499, figure 8). L2: five sixths of an SM's share
// of the 5120 that NVIDIA's A100 white paper names (page 35), on 132 SMs.
constexpr double kSharedBytes = 128;
constexpr double kPeerBytes = 13;
constexpr double kL2Bytes = 32;
// Of the peak: mma.sync on Hopper (arXiv:2501.12084, 6.2), where wgmma alone reaches it; a GEMM.
constexpr double kHopperMma = 0.629;
constexpr double kGemmEfficiency = 0.5;

constexpr const char* kNames[] = {"step", "block", "cluster", "grid"};  // in the order of Path

constexpr int64_t kMaxH = 16384;    // past any card's capacity
constexpr int64_t kMaxB = 1 << 30;  // kernels count 2 B states, and B and a tile more, in an int

auto ceil_div(auto a, auto b) { return (a + b - 1) / b; }
auto round_up(auto a, auto b) { return ceil_div(a, b) * b; }

// The argument of divide() that stands for n > 1.
unsigned divisor(int64_t n) { return static_cast<unsigned>(ceil_div(int64_t{1} << 32, n)); }

bool tensor_cores(Compute c) { return c != Compute::f32 && c != Compute::f64; }
// Hidden units of a block are a multiple of this.
int slice_unit(Compute c) { return tensor_cores(c) ? 16 : 4; }

// Multiply-adds a cycle of one SM at its peak. FMA: the programming guide's table of throughput.
// Tensor cores: data sheets over SMs and boost clock, dense, with float32 sums; for sm_100, whose
// peak needs other instructions than ours, an A100's rate.
double peak(Compute compute, int capability) {
  const bool data_center =
      capability == 80 || capability == 90 || capability == 100 || capability == 103;
  if (compute == Compute::f32) return capability <= 80 ? 64 : 128;
  if (compute == Compute::f64)
    return capability == 80 ? 32 : capability == 90 || capability == 100 ? 64 : 2;
  const double half = capability == 90 ? 2048 : data_center ? 1024 : 256;
  return compute == Compute::tf32 ? half / 2 : half;
}

// Fills `g` for groups of `blocks` blocks and tiles of `rows` sequences; false if it does not fit.
bool lay_out(const Problem& p, const Device& device, Path path, int blocks, int64_t sequences,
             Geometry& g) {
  const int element = element_size(p.compute), H = static_cast<int>(p.H);
  const int accumulator = p.compute == Compute::f64 ? 8 : 4;
  const int vectors = path == Path::grid ? 1 : 2;
  if (vectors * sequences * H * element > device.shared_bytes) return false;
  const int rows = static_cast<int>(sequences);
  g = Geometry{.path = path, .blocks = blocks, .rows = rows};
  g.slice = round_up(ceil_div(H, blocks), slice_unit(p.compute));
  int k_total;
  if (tensor_cores(p.compute)) {
    g.unit_workers = g.slice / 16;
    if (g.unit_workers > kWarps) return false;
    g.k_workers = kWarps / g.unit_workers;
    k_total = ceil_div(H * element, 64);
    g.parts = std::min(g.k_workers, k_total);
    g.part_stride = g.slice + 4;  // the lanes of an mma's result fall into different banks
    g.vector_stride = round_up(H * element, 64);
    if (g.vector_stride % 128 == 0) g.vector_stride += 64;  // likewise for the vectors
  } else {
    const int pairs = g.slice / 2;
    g.unit_workers = pairs <= 8 ? 8 : pairs <= 16 ? 16 : round_up(pairs, 32);
    if (g.unit_workers > kThreads) return false;
    g.k_workers = kThreads / g.unit_workers;
    k_total = ceil_div(H * element, 16);
    g.parts = std::min(g.k_workers, kWarps);
    g.part_stride = 2 * g.unit_workers;
    g.vector_stride = round_up(H * element, 16);
  }
  g.k_blocks = ceil_div(k_total, g.k_workers);
  int64_t at = vectors * int64_t(rows) * g.vector_stride;
  const auto take = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += round_up(bytes, 16);
    return static_cast<int>(begin);
  };
  if (at > device.shared_bytes || rows * int64_t(g.part_stride) > (1 << 20)) return false;
  g.pairs = element == 2 ? g.slice / 2 : g.slice;
  g.pair_divisor = divisor(g.pairs);
  g.row_step = kThreads / g.pairs;
  g.pair_step = kThreads % g.pairs;
  g.part_offset = take(int64_t(g.parts) * rows * g.part_stride * accumulator);
  g.input_offset = take(int64_t(2) * (p.backward ? 2 : 1) * rows * g.slice * element);
  g.bias_offset = take(g.slice * accumulator);
  g.length_offset = take(3 * rows * 4);
  g.place_offset = take((4 + 2 * rows) * 8);
  g.weight_offset = take(int64_t(std::max(0, g.k_blocks - kRegisterBlocks)) * kThreads * 32);
  g.shared_bytes = static_cast<int>(at);
  return at <= device.shared_bytes;
}

// Groups that run at once.
int64_t concurrent(const Device& device, Path path, int64_t blocks) {
  if (path == Path::block) return device.sm_count;
  if (path == Path::grid) return device.sm_count / blocks;
  return device.clusters[blocks == 2 ? 0 : blocks == 4 ? 1 : blocks == 8 ? 2 : 3];
}

// The model's estimate of a step in SM cycles (docs/cuda.md). A group runs `waves` tiles in turn.
double step_cycles(const Problem& p, const Device& device, const Geometry& g) {
  const bool matrix = tensor_cores(p.compute);
  const double element = element_size(p.compute);
  const double fixed = kStepOverhead[static_cast<int>(g.path)];
  if (g.path == Path::step) {
    const double products = double(p.D) * p.B * p.H * p.H;
    const double gemm = std::max(products / (peak(p.compute, device.capability) * kGemmEfficiency),
                                 double(p.D) * p.H * p.H * element / kL2Bytes) /
                        std::max(1, device.sm_count);
    return std::max(fixed + gemm, kHost);  // the device may wait for the host
  }
  const double passes = ceil_div(g.rows, matrix ? 8 : p.compute == Compute::f64 ? 2 : 4);
  const double columns = g.k_blocks * g.k_workers * (matrix ? 64 : 16) / element;
  const double units = g.unit_workers * (matrix ? 16 : 2);
  const double products = units * columns * (matrix ? passes * 8 : g.rows);
  const double spilled = std::max(0, g.k_blocks - kRegisterBlocks) * (kThreads * 32.0);
  const double rate =
      peak(p.compute, device.capability) * (matrix && device.capability == 90 ? kHopperMma : 1);
  const double product = std::max(products / rate, passes * spilled / kSharedBytes);
  const double cell = ceil_div(g.rows * g.slice, kThreads) * kElementCycles;
  double exchange = 0;
  if (g.path == Path::cluster) {
    const double words = ceil_div(int64_t(g.rows) * g.pairs, kThreads);  // of a thread
    exchange = g.blocks * (words * kPeerCycles + double(g.rows) * g.slice * element / kPeerBytes);
  }
  if (g.path == Path::grid) exchange = g.rows * double(g.vector_stride) / kL2Bytes;
  const int64_t tiles = ceil_div(p.B, g.rows), at_once = concurrent(device, g.path, g.blocks);
  const double waves = double(ceil_div(tiles, g.groups / p.D)) * ceil_div(g.groups, at_once);
  return waves * (fixed + product + cell + exchange);
}

void consider(const Geometry& g, std::optional<Geometry>& best) {
  if (!best || g.cycles < best->cycles) best = g;
}

// Considers one path and group size, with tiles of different sizes.
void consider(const Problem& p, const Device& device, Path path, int blocks,
              std::optional<Geometry>& best) {
  const int64_t at_once = concurrent(device, path, blocks);
  if (at_once < (path == Path::grid ? p.D : 1)) return;
  const int64_t per_direction = std::max<int64_t>(1, at_once / p.D);
  for (int64_t rows = ceil_div(p.B, per_direction);; rows = ceil_div(rows, 2)) {
    Geometry g;
    if (lay_out(p, device, path, blocks, rows, g)) {
      const int groups = static_cast<int>(std::min(per_direction, ceil_div(p.B, rows)));
      g.groups = groups * p.D;
      g.tile_step = groups * g.rows;
      g.cycles = kStart + (path == Path::grid ? kZeros : 0) +
                 g.slice * double(p.H) * element_size(p.compute) / kL2Bytes +
                 p.T * step_cycles(p, device, g);
      consider(g, best);
    }
    if (rows == 1) return;
  }
}

void consider(const Problem& p, const Device& device, Path path, std::optional<Geometry>& best) {
  if (path == Path::step) {
    return consider(Geometry{.cycles = p.T * step_cycles(p, device, Geometry{})}, best);
  }
  const int needed = path == Path::cluster ? 90 : 80;  // mma, cp.async
  if (device.capability < needed) return;
  if (p.H > kMaxH || p.T > INT32_MAX || p.B >= kMaxB) return;
  if (path == Path::block) {
    consider(p, device, path, 1, best);
  } else if (path == Path::cluster) {
    for (int blocks = 2; blocks <= kMaxCluster; blocks *= 2) {
      consider(p, device, path, blocks, best);
    }
  } else {
    const int unit = slice_unit(p.compute);
    for (int slice = unit, last = 0; slice - unit < p.H; slice += unit) {
      const int blocks = static_cast<int>(ceil_div(p.H, slice));
      if (blocks != last && blocks <= device.sm_count) consider(p, device, path, blocks, best);
      last = blocks;
    }
  }
}

}  // namespace

int element_size(Compute compute) {
  const bool half = compute == Compute::f16 || compute == Compute::bf16;
  return compute == Compute::f64 ? 8 : half ? 2 : 4;
}

Geometry choose(const Problem& p, const Device& device, const char* forced) {
  const std::string word = forced ? forced : "";
  std::optional<Geometry> best;
  bool known = false;
  for (int path = 0; path < int(std::size(kNames)); ++path) {
    if (!word.empty() && word != kNames[path]) continue;
    known = true;
    consider(p, device, Path(path), best);
  }
  if (best) return *best;
  throw std::invalid_argument(
      "RNNEXT_CUDA_PATH=" + word +
      (known ? ": hidden size " + std::to_string(p.H) + " in this dtype does not fit on this device"
             : ": expected step, block, cluster or grid"));
}

}  // namespace rnnext::cuda
