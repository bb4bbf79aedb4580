// The resident recurrence: one kernel runs every step of a pass (pass.cuh). The matrix stays on
// chip (micro_kernel.cuh), and a group of blocks exchanges the vectors once a step (group.cuh).
// docs/cuda.md has a drawing.
#pragma once

#include "cuda/recurrence/any_pass.cuh"
#include "cuda/recurrence/group.cuh"
#include "cuda/recurrence/micro_kernel.cuh"

namespace rnnext::cuda {

// Goes through a thread's words of a tile [rows, words of a slice]: every kThreads-th in row-major
// order, where `slot` is a word's number.
struct WordCursor {
  int slot, row, word;

  // Made at each use, since registers are few, and without a division.
  __device__ explicit WordCursor(const Geometry& g)
      : slot(unknown(threadIdx.x)), row(divide(slot, g.pair_divisor)), word(slot - row * g.pairs) {}
  __device__ void next(const Geometry& g) {
    slot += kThreads, row += g.row_step, word += g.pair_step;
    if (word >= g.pairs) word -= g.pairs, ++row;
  }
};

// A block's work: it holds a slice of the matrix of one direction, and runs tiles of sequences one
// after another. Sizes are int: a thread has no register to spare.
template <class MicroKernel, class Pass, class Group>
struct Resident {
  using Element = typename MicroKernel::Storage;
  using A = Accumulate<Element>;
  static constexpr int kPer = kWordSize<Element>;
  using Words = Word<Element, kPer>;

  const DeviceCall& p;
  const Geometry& g;
  unsigned char* const shared;
  const int T, B, H;
  const int group_index, rank;  // of the groups, and in its group
  const int first_unit;         // of the slice
  int b0 = 0, rows = 0;         // the tile
  unsigned n = 0;               // steps of all tiles so far
  const Pass pass;
  MicroKernel micro_kernel;
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
        first_unit(rank * g.slice),
        pass(p),
        group(p, g, group_index, shared) {}

  __device__ void run() {
    load();
    group.start();
    for (b0 = group_index / p.D * g.rows; b0 < B; b0 += g.tile_step) {
      begin_tile();
      const int steps = T + pass.further();
      // Step -1 only prefetches: this code exists once. Prefetches follow what others wait for.
      for (int s = -1; s < steps;) {
        if (s >= 0) {
          group.receive(n, s == 0, rows);
          micro_kernel.product(group.buffer(n), rows, g, parts());
          copy_async_wait<0>();  // before the barrier: some copies are for all threads
          __syncthreads();
          finish(s);
          if (s < T) group.finish(n++);
        }
        s = unknown(s + 1);  // one register, not two
        prefetch(s);
      }
      if (steps == T) group.close();
    }
  }

  // Loads what stays, the matrix and the bias, and clears the vectors. A barrier begins a tile.
  __device__ void load() {
#pragma unroll 1
    for (int u = threadIdx.x; u < units(); u += kThreads)
      bias()[u] = pass.bias(d(), first_unit + u);
#pragma unroll 1
    for (int i = threadIdx.x * 16; i < g.part_offset; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
    }
    micro_kernel.load(of_direction(p.matrix, d()), p.matrix_stride, first_unit, units(), g);
  }

  // Loads the tile's lengths and the whole of v_0, in every block.
  __device__ void begin_tile() {
    rows = min(g.rows, B - b0);
    __syncthreads();  // behind load(), or the last tile's reads
    if (p.step_row && threadIdx.x < 2 && int(threadIdx.x) < T) {
      first_rows()[threadIdx.x] = p.step_row[time_of<Pass>(reverse(), T, int(threadIdx.x))];
    }
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      lengths()[r] = static_cast<int>(p.length(b0 + r));
      const int t = time_of<Pass>(reverse(), T, 0);
      if (indexed() && span(r).inside(t)) picked(0)[r] = p.input.index[p.row(t, b0 + r)];
    }
    for (int r = 0; r < rows; ++r) {
      Element* v = reinterpret_cast<Element*>(group.buffer(n) + r * g.vector_stride);
      const int64_t state = int64_t(d() * B + b0 + r) * H;
      const bool empty = p.length(b0 + r) == 0;
#pragma unroll 1
      for (int k = threadIdx.x; k < H; k += kThreads) {
        const Element x = pass.start(state + k);
        v[k] = MicroKernel::operand(x);
        if (empty && k >= first_unit && k - first_unit < units()) pass.skip(state + k, x);
      }
    }
    __syncthreads();
  }

  // Starts the copies of what step s reads besides the product, each thread for its own words; and
  // of what all threads read: the marks of resets, and where the rows of later steps lie.
  __device__ void prefetch(int s) {
    if (s < T) {
      const int t = time_of<Pass>(reverse(), T, s);
      if constexpr (Pass::kAny) prefetch_marks(s, mark_of<Pass>(reverse(), t));
      prefetch_places(s);
      const int64_t first_row = this->first_row(s) + b0;
      Words* to = sources(s);
#pragma unroll 1
      for (WordCursor e(g); e.row < rows; e.next(g)) {
        const int u = e.word * kPer;
        if (u >= units() || !span(e.row).inside(t)) continue;
#pragma unroll
        for (int i = 0; i < Pass::kSources; ++i) {
          if (!pass.given(i)) continue;
          const Element* row = pass.source(i, t, b0 + e.row, first_row + e.row, picked(s) + e.row);
          const Element* from = row + (d() * source_step(p) + first_unit + u);
          copy_async<sizeof(Words)>(to + i * g.rows * g.pairs + e.slot, from);
        }
      }
    }
    copy_async_commit();
  }

  // Where rows lie, a step before their copies start, so that these need not wait for it.
  __device__ void prefetch_places(int s) {
    if (p.step_row && threadIdx.x == 0 && s + 2 < T) {
      copy_async<8>(first_rows() + unsigned(s + 2) % 4,
                    p.step_row + time_of<Pass>(reverse(), T, s + 2));
    }
    if (!indexed() || s + 1 == T) return;
    const int t = time_of<Pass>(reverse(), T, s + 1);
    const int64_t* from = p.input.index + first_row(s + 1) + b0;
#pragma unroll 1
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      if (span(r).inside(t)) copy_async<8>(picked(s + 1) + r, from + r);
    }
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
#pragma unroll 1
    for (WordCursor e(g); e.row < rows; e.next(g)) {
      const int u = e.word * kPer;
      if (u >= units()) continue;
      A product[kPer];
      sum_parts(e.row, u, product);
      const Place at = place(e, s);
      const Words next = step(e, at, s, product);
      if (s == T) continue;
      Words operand = next;
      if constexpr (Pass::kAny) {
        if (restarts(s, e.row)) operand = pass.template restart<kPer>(at);
      }
#pragma unroll
      for (int j = 0; j < kPer; ++j) operand.x[j] = MicroKernel::operand(operand.x[j]);
      group.publish(n, offset(e), operand);
      pass.store(at, next);
    }
  }

  __device__ Place place(const WordCursor& e, int s) const {
    const int t = time_of<Pass>(reverse(), T, s), d = this->d();
    const int u = e.word * kPer;
    Place at;
    at.row = s < T ? first_row(s) + (b0 + e.row) : 0;
    at.column = d * H + first_unit + u;
    at.state = int64_t(d * B + b0 + e.row) * H + first_unit + u;
    at.units = units() - u;
    set_step(at, p, span(e.row), t);
    return at;
  }

  // The next vectors' word at `at`.
  __device__ Words step(const WordCursor& e, const Place& at, int s,
                        const A (&product)[kPer]) const {
    const int u = e.word * kPer;
    const Words* from = sources(s) + e.slot;
    const Words* read[Pass::kSources];
#pragma unroll
    for (int i = 0; i < Pass::kSources; ++i) read[i] = from + i * g.rows * g.pairs;
    const unsigned char* before = group.buffer(n) + offset(e);
    return pass.step(at, product, read, bias() + u, *reinterpret_cast<const Words*>(before));
  }

  // Where a word lies in the vectors, in bytes.
  __device__ int offset(const WordCursor& e) const {
    return e.row * g.vector_stride + (first_unit + e.word * kPer) * int(sizeof(Element));
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

  // Computed at each use, as registers are few: the direction, 0 or 1, and the slice's units.
  __device__ int d() const { return unknown(group_index) & (p.D - 1); }
  __device__ bool reverse() const { return of_direction(p.reverse, d()); }
  __device__ int units() const { return max(0, min(g.slice, H - unknown(first_unit))); }

  __device__ Span<int> span(int row) const { return {lengths()[row], reverse()}; }
  // The first row of step s, without waiting for memory.
  __device__ int64_t first_row(int s) const {
    return p.step_row ? first_rows()[unsigned(s) % 4] : int64_t(time_of<Pass>(reverse(), T, s)) * B;
  }
  __device__ bool indexed() const { return !Pass::kBackward && p.input.index; }
  // Whether what this row hands on from step s is replaced because of a reset.
  __device__ bool restarts(int s, int row) const {
    const int mark = mark_of<Pass>(reverse(), time_of<Pass>(reverse(), T, s));
    return p.marks && replaces<Pass>(mark, lengths()[row]) && marks(s)[row];
  }

  // The parts of shared memory.
  __device__ A* parts() const { return reinterpret_cast<A*>(shared + g.part_offset); }
  __device__ A* bias() const { return reinterpret_cast<A*>(shared + g.bias_offset); }
  __device__ int* lengths() const { return reinterpret_cast<int*>(shared + g.length_offset); }
  __device__ int* marks(int s) const { return lengths() + (1 + unsigned(s) % 2) * g.rows; }
  // Of four steps, Timeline::step_row; of two, the tile's RowSource::index.
  __device__ int64_t* first_rows() const {
    return reinterpret_cast<int64_t*>(shared + g.place_offset);
  }
  __device__ int64_t* picked(int s) const {
    return first_rows() + 4 + unsigned(unknown(s)) % 2 * g.rows;
  }
  __device__ Words* sources(int s) const {
    return reinterpret_cast<Words*>(shared + g.input_offset) +
           unsigned(s) % 2 * Pass::kSources * g.rows * g.pairs;
  }
};

template <class MicroKernel, class Pass, class Group>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_kernel(const DeviceCall p, const Geometry g) {
  if constexpr (kArchitecture >= Group::kArchitecture) {
    Resident<MicroKernel, Pass, Group>(p, g, shared_memory()).run();
  } else {
    __trap();  // choose() keeps older code from being launched
  }
}

template <class MicroKernel, class Pass>
Kernel kernel_with(const Geometry& g) {
  if (g.path == Path::block) return recurrence_kernel<MicroKernel, Pass, BlockGroup>;
  if (g.path == Path::cluster) return recurrence_kernel<MicroKernel, Pass, ClusterGroup>;
  if (g.path == Path::grid) return recurrence_kernel<MicroKernel, Pass, GridGroup>;
  return nullptr;
}

template <class MicroKernel>
Kernel kernel_of(const Geometry& g, CellKind cell, bool backward) {
  using T = typename MicroKernel::Storage;
  using Tanh = FixedActivation<Nonlinearity::tanh>;
  using Relu = FixedActivation<Nonlinearity::relu>;
  switch (cell) {
    case CellKind::tanh:
      return backward ? kernel_with<MicroKernel, BackwardPass<T, Tanh>>(g)
                      : kernel_with<MicroKernel, ForwardPass<T, Tanh>>(g);
    case CellKind::relu:
      return backward ? kernel_with<MicroKernel, BackwardPass<T, Relu>>(g)
                      : kernel_with<MicroKernel, ForwardPass<T, Relu>>(g);
    default:
      return backward ? kernel_with<MicroKernel, AnyBackwardPass<T>>(g)
                      : kernel_with<MicroKernel, AnyForwardPass<T>>(g);
  }
}

}  // namespace rnnext::cuda
