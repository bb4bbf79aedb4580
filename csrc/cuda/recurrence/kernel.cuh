// The resident recurrence: one kernel runs every step, the matrix stays on chip (engine.cuh),
// the state goes around a group of blocks once a step (group.cuh). Forward and backward are the
// same loop, v_{s+1} = step(M v_s):
//   forward   M = W_hh    v = h    h_t  = f(pre_t + bias + M h_{t-1})
//   backward  M = W_hh^T  v = dG   dG_t = f'(h_t) (grad_output_t + M dG_{t+1})
// docs/cuda.md draws it.
#pragma once

#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/engine.cuh"
#include "cuda/recurrence/group.cuh"

namespace rnnext::cuda {

// A thread's share of a tile's outputs [rows, slice]: one word each kThreads, in row-major order.
// `slot` numbers the words.
struct Elements {
  int slot, row, pair;

  __device__ explicit Elements(const Geometry& g)
      : slot(threadIdx.x), row(slot / g.pairs), pair(slot % g.pairs) {}
  __device__ void next(const Geometry& g) {
    slot += kThreads, row += g.row_step, pair += g.pair_step;
    if (pair >= g.pairs) pair -= g.pairs, ++row;
  }
};

template <class Engine, class Cell, class Group, bool Backward>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_kernel(const RecurrenceParams p, const Geometry g) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older cards take the step path
  using T = typename Engine::Storage;
  using A = Accumulate<T>;
  using Pair = PairOf<T>;
  constexpr int kPer = Pair::kSize;
  constexpr int kSources = Backward ? 2 : 1;  // prefetched: input | output and grad_output

  unsigned char* shared = shared_memory();
  A* parts = reinterpret_cast<A*>(shared + g.part_offset);
  Pair* inputs = reinterpret_cast<Pair*>(shared + g.input_offset);
  A* bias = reinterpret_cast<A*>(shared + g.bias_offset);
  int* lengths = reinterpret_cast<int*>(shared + g.length_offset);

  const int group_index = blockIdx.x / g.blocks, rank = blockIdx.x % g.blocks;
  const int d = group_index % p.D;
  const bool reverse = d ? p.reverse[1] : p.reverse[0];
  const int T_ = static_cast<int>(p.T), B = static_cast<int>(p.B), H = static_cast<int>(p.H);
  const int first_unit = rank * g.slice;
  const int units = max(0, min(g.slice, H - first_unit));
  const int slots = g.rows * g.pairs;
  const int width = p.D * H;  // of a row of output, input and their gradients
  const int column = d * H + first_unit;

  if (!Backward) {
    const T* ih = static_cast<const T*>(d ? p.bias_ih[1] : p.bias_ih[0]);
    const T* hh = static_cast<const T*>(d ? p.bias_hh[1] : p.bias_hh[0]);
#pragma unroll 1
    for (int u = threadIdx.x; u < units; u += kThreads) {
      bias[u] = ih ? to_float(ih[first_unit + u]) + to_float(hh[first_unit + u]) : A(0);
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < g.part_offset; i += kThreads * 16) {  // the vectors' padding
    *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
  }
  Engine engine;
  engine.load(d ? p.weight[1] : p.weight[0], p.weight_stride, first_unit, units, g, shared);
  __syncthreads();
  Group group(p, g, group_index, rank, shared);
  group.start();

  unsigned n = 0;
  for (int b0 = group_index / p.D * g.rows; b0 < B; b0 += g.groups / p.D * g.rows) {
    const int rows = min(g.rows, B - b0);
    const int state_row = d * B + b0;  // of h0, h_n and their gradients
    __syncthreads();                   // the last tile's reads
    for (int r = threadIdx.x; r < rows; r += kThreads) {
      lengths[r] = sequence_length(p, b0 + r);
    }
    for (int r = 0; r < rows; ++r) {  // v_0: h0, or no gradient yet
      T* v = reinterpret_cast<T*>(group.buffer(n) + r * g.vector_stride);
      const int64_t state_at = int64_t(state_row + r) * H;
#pragma unroll 1
      for (int k = threadIdx.x; k < H; k += kThreads) {
        const bool given = !Backward && p.h0;
        const T x = given ? static_cast<const T*>(p.h0)[state_at + k] : from_float<T>(A(0));
        v[k] = Engine::operand(x);
        if (!Backward && k >= first_unit && k - first_unit < units &&
            sequence_length(p, b0 + r) == 0) {
          static_cast<T*>(p.h_n)[state_at + k] = x;
        }
      }
    }
    __syncthreads();

    const auto time_of = [&](int s) { return reverse != Backward ? T_ - 1 - s : s; };
    // Starts the copies of what step s needs beside M v, each thread its own elements.
    const auto prefetch = [&](int s) {
      if (s < T_) {
        const int t = time_of(s);
        const int64_t step_row = p.step_row ? p.step_row[t] : int64_t(t) * B;
        Pair* to = inputs + s % 2 * kSources * slots;
#pragma unroll 1
        for (Elements e(g); e.row < rows; e.next(g)) {
          const int u = e.pair * kPer;
          if (u >= units || t >= lengths[e.row]) continue;
          const int64_t row = step_row + b0 + e.row;
          if (Backward) {
            const int64_t at = row * width + column + u;
            copy_pair(to + e.slot, static_cast<const T*>(p.output) + at, p.paired, u + 1 < units);
            if (p.grad_output) {
              copy_pair(to + slots + e.slot, static_cast<const T*>(p.grad_output) + at, p.paired,
                        u + 1 < units);
            }
          } else {
            const T* from = static_cast<const T*>(p.input) + input_row(p, t, b0 + e.row, row);
            copy_pair(to + e.slot, from + column + u, p.paired, u + 1 < units);
          }
        }
      }
      copy_async_commit();
    };

    // The backward pass takes one step more where the gradient of h0 is wanted: the product alone.
    const int steps = T_ + (Backward && p.grad_h0 != nullptr);
    for (int s = -1; s < steps; ++s) {
      if (s >= 0) group.receive(n, s == 0, rows);
      prefetch(s + 1);
      if (s < 0) continue;
      const int t = time_of(s);
      const int64_t step_row = p.step_row && s < T_ ? p.step_row[t] : int64_t(t) * B;
      const unsigned char* v = group.buffer(n);
      engine.product(v, rows, g, parts);
      __syncthreads();
      copy_async_wait<1>();
      const Pair* in = inputs + s % 2 * kSources * slots;
#pragma unroll 1
      for (Elements e(g); e.row < rows; e.next(g)) {
        const int u = e.pair * kPer;
        if (u >= units) continue;
        const int length = lengths[e.row];
        const bool active = s < T_ && t < length;
        const int64_t state_at = int64_t(state_row + e.row) * H + first_unit + u;
        const int vector_at = e.row * g.vector_stride + (first_unit + u) * int(sizeof(T));
        const A* part = parts + e.row * g.part_stride + u;
        A sum[kPer];
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          sum[j] = part[j];
#pragma unroll 4
          for (int k = 1; k < g.parts; ++k) sum[j] += part[k * g.rows * g.part_stride + j];
        }
        Pair out;
        if (Backward) {
          const bool starts = t == (reverse ? 0 : length - 1);  // where grad_h_n enters
          const bool ended = t == (reverse ? length : -1);      // past the sequence's last step
#pragma unroll
          for (int j = 0; j < kPer; ++j) {
            out.x[j] = from_float<T>(A(0));
            if (u + j >= units) continue;
            A dh = sum[j];
            if (starts && p.grad_h_n) {
              dh += to_float(static_cast<const T*>(p.grad_h_n)[state_at + j]);
            }
            if (ended && p.grad_h0) static_cast<T*>(p.grad_h0)[state_at + j] = from_float<T>(dh);
            if (active) {
              if (p.grad_output) dh += to_float(in[slots + e.slot].x[j]);
              out.x[j] = from_float<T>(Cell::backward(to_float(in[e.slot].x[j])) * dh);
            }
          }
          if (s == T_) continue;
        } else if (active) {
#pragma unroll
          for (int j = 0; j < kPer; ++j) {
            out.x[j] = from_float<T>(A(0));
            if (u + j < units) {
              out.x[j] =
                  from_float<T>(Cell::forward(to_float(in[e.slot].x[j]) + bias[u + j] + sum[j]));
            }
          }
        } else {  // the state waits
          out = *reinterpret_cast<const Pair*>(v + vector_at);
        }
        Pair next;
#pragma unroll
        for (int j = 0; j < kPer; ++j) next.x[j] = Engine::operand(out.x[j]);
        group.publish(n, vector_at, next);
        const bool second = u + 1 < units;
        if (!Backward && active && t == (reverse ? 0 : length - 1)) {
          store_pair(static_cast<T*>(p.h_n) + state_at, out, false, second);
        }
        if (active || !p.step_row) {
          if (!active) {
#pragma unroll
            for (int j = 0; j < kPer; ++j) out.x[j] = from_float<T>(A(0));
          }
          T* to = static_cast<T*>(Backward ? p.grad_pre : p.output);
          store_pair(to + (step_row + b0 + e.row) * width + column + u, out, p.paired, second);
        }
      }
      if (s < T_) group.finish(n++);
    }
    copy_async_wait<0>();
    if (steps == T_) group.close();
  }
#endif
}

}  // namespace rnnext::cuda
