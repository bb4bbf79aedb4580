// The resident recurrence: one kernel runs every step of a pass (pass.cuh). The matrix stays on
// chip (engine.cuh), the vectors go around a group of blocks once a step (group.cuh). docs/cuda.md
// draws it.
#pragma once

#include "cuda/recurrence/any_pass.cuh"
#include "cuda/recurrence/engine.cuh"
#include "cuda/recurrence/group.cuh"

namespace rnnext::cuda {

// A thread's share of a tile's words [rows, words of a slice]: one each kThreads, in row-major
// order, in which `slot` numbers them.
struct Share {
  int slot, row, word;

  // Made anew at each use, for want of registers, and without a division.
  __device__ explicit Share(const Geometry& g)
      : slot(unknown(threadIdx.x)), row(divide(slot, g.pair_divisor)), word(slot - row * g.pairs) {}
  __device__ void next(const Geometry& g) {
    slot += kThreads, row += g.row_step, word += g.pair_step;
    if (word >= g.pairs) word -= g.pairs, ++row;
  }
};

// What a block does: it holds a slice of the matrix of one direction, and runs tiles of sequences
// one after another. Sizes are int: a thread has no register to spare.
template <class Engine, class Pass, class Group>
struct Resident {
  using Element = typename Engine::Storage;
  using A = Accumulate<Element>;
  static constexpr int kPer = kWordSize<Element>;
  using Words = Word<Element, kPer>;

  const DeviceCall& p;
  const Geometry& g;
  unsigned char* const shared;
  const int T, B, H;
  const int group_index, rank;  // of the groups, and in its group
  const int d;                  // direction
  const bool reverse;
  const int first_unit, units;  // the slice
  int b0 = 0, rows = 0;         // the tile
  unsigned n = 0;               // steps of all tiles so far
  const Pass pass;
  Engine engine;
  Group group;

  __device__ Resident(const DeviceCall& p, const Geometry& g, unsigned char* shared)
      : p(p),
        g(g),
        shared(shared),
        T(static_cast<int>(p.T)),
        B(static_cast<int>(p.B)),
        H(static_cast<int>(p.H)),
        group_index(blockIdx.x / g.blocks),
        rank(blockIdx.x % g.blocks),
        d(group_index % p.D),
        reverse(of_direction(p.reverse, d)),
        first_unit(rank * g.slice),
        units(max(0, min(g.slice, H - first_unit))),
        pass(p),
        group(p, g, group_index, rank, shared) {}

  __device__ void run() {
    load();
    group.start();
    for (b0 = group_index / p.D * g.rows; b0 < B; b0 += g.tile_step) {
      begin_tile();
      const int steps = T + pass.further();
      // Step -1 only prefetches: the code for that is there once.
      for (int s = -1; s < steps; ++s) {
        if (s >= 0) group.receive(n, s == 0, rows);
        prefetch(s + 1);
        if (s < 0) continue;
        engine.product(group.buffer(n), rows, g, parts());
        if constexpr (Pass::kRestarts) copy_async_wait<1>();  // before all threads read the marks
        __syncthreads();
        copy_async_wait<1>();
        finish(s);
        if (s < T) group.finish(n++);
      }
      copy_async_wait<0>();
      if (steps == T) group.close();
    }
  }

  // What stays: the matrix and the bias. And zeros, for the vectors' padding.
  __device__ void load() {
#pragma unroll 1
    for (int u = threadIdx.x; u < units; u += kThreads) bias()[u] = pass.bias(d, first_unit + u);
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < g.part_offset; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
    }
    engine.load(of_direction(p.matrix, d), p.matrix_stride, first_unit, units, g, shared);
    __syncthreads();
  }

  // The tile's lengths and v_0, whole in every block.
  __device__ void begin_tile() {
    rows = min(g.rows, B - b0);
    __syncthreads();  // the last tile's reads
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      lengths()[r] = static_cast<int>(p.length(b0 + r));
    }
    for (int r = 0; r < rows; ++r) {
      Element* v = reinterpret_cast<Element*>(group.buffer(n) + r * g.vector_stride);
      const int64_t state = int64_t(d * B + b0 + r) * H;
      const bool empty = p.length(b0 + r) == 0;
#pragma unroll 1
      for (int k = threadIdx.x; k < H; k += kThreads) {
        const Element x = pass.start(state + k);
        v[k] = Engine::operand(x);
        if (empty && k >= first_unit && k - first_unit < units) pass.skip(state + k, x);
      }
    }
    __syncthreads();
  }

  // Starts the copies of what step s reads beside the product, each thread for its own words; and
  // of the marks of resets, which all read.
  __device__ void prefetch(int s) {
    if (s < T) {
      const int t = time_of<Pass>(reverse, T, s);
      if constexpr (Pass::kRestarts) prefetch_marks(s, mark_of<Pass>(reverse, t));
      const int64_t first_row = p.first_row(t) + b0;
      const int d = unknown(this->d);
      Words* to = sources(s);
#pragma unroll 1
      for (Share e(g); e.row < rows; e.next(g)) {
        const int u = e.word * kPer;
        if (u >= units || !span(e.row).inside(t)) continue;
#pragma unroll
        for (int i = 0; i < Pass::kSources; ++i) {
          if (!pass.given(i)) continue;
          const Element* row = pass.source(i, t, b0 + e.row, first_row + e.row);
          const Element* from = row + (d * source_step(p) + first_unit + u);
          copy_async<sizeof(Words)>(to + i * g.rows * g.pairs + e.slot, from);
        }
      }
    }
    copy_async_commit();
  }

  __device__ void prefetch_marks(int s, int mark) {
    if (!p.marks || !replaces<Pass>(mark, T)) return;
#pragma unroll 1
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      copy_async<4>(marks(s) + r, p.marks + int64_t(mark) * B + b0 + r);
    }
  }

  // From the partial products of step s to the next vectors and the call's tensors.
  __device__ void finish(int s) {
    const int t = time_of<Pass>(reverse, T, s);
    const int64_t first_row = s < T ? p.first_row(t) + b0 : 0;
    const int d = unknown(this->d);
    const unsigned char* v = group.buffer(n);
    const Words* from = sources(s);
#pragma unroll 1
    for (Share e(g); e.row < rows; e.next(g)) {
      const int u = e.word * kPer;
      if (u >= units) continue;
      A product[kPer];
      sum_parts(e.row, u, product);
      Place at;
      at.row = first_row + e.row;
      at.column = d * H + first_unit + u;
      at.state = int64_t(d * B + b0 + e.row) * H + first_unit + u;
      at.units = units - u;
      set_step(at, p, span(e.row), t);
      const Words* read[Pass::kSources];
#pragma unroll
      for (int i = 0; i < Pass::kSources; ++i) read[i] = from + i * g.rows * g.pairs + e.slot;
      const int offset = e.row * g.vector_stride + (first_unit + u) * int(sizeof(Element));
      const Words& before = *reinterpret_cast<const Words*>(v + offset);
      const Words next = pass.step(at, product, read, bias() + u, before);
      if (s == T) continue;
      Words operand = next;
      if constexpr (Pass::kRestarts) {
        if (restarts(s, e.row, mark_of<Pass>(reverse, t))) {
          operand = pass.template restart<kPer>(at);
        }
      }
#pragma unroll
      for (int j = 0; j < kPer; ++j) operand.x[j] = Engine::operand(operand.x[j]);
      group.publish(n, offset, operand);
      pass.store(at, next);
    }
  }

  __device__ void sum_parts(int row, int u, A (&sum)[kPer]) const {
    const A* part = parts() + row * g.part_stride + u;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      sum[j] = part[j];
#pragma unroll 4
      for (int k = 1; k < g.parts; ++k) sum[j] += part[k * g.rows * g.part_stride + j];
    }
  }

  __device__ Span<int> span(int row) const { return {lengths()[row], reverse}; }
  __device__ bool restarts(int s, int row, int mark) const {
    return p.marks && replaces<Pass>(mark, lengths()[row]) && marks(s)[row];
  }

  // The parts of shared memory.
  __device__ A* parts() const { return reinterpret_cast<A*>(shared + g.part_offset); }
  __device__ A* bias() const { return reinterpret_cast<A*>(shared + g.bias_offset); }
  __device__ int* lengths() const { return reinterpret_cast<int*>(shared + g.length_offset); }
  __device__ int* marks(int s) const { return lengths() + (1 + s % 2) * g.rows; }
  __device__ Words* sources(int s) const {
    return reinterpret_cast<Words*>(shared + g.input_offset) +
           s % 2 * Pass::kSources * g.rows * g.pairs;
  }
};

template <class Engine, class Pass, class Group>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_kernel(const DeviceCall p, const Geometry g) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older cards take the step path
  Resident<Engine, Pass, Group>(p, g, shared_memory()).run();
#endif
}

}  // namespace rnnext::cuda
