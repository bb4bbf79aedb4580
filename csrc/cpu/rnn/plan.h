// How a team shares one call, and the workspace that goes with it.
#pragma once

#include "cpu/gemm/product.h"
#include "cpu/runtime/team.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Part i of n of the range [0, total), in multiples of `unit`.
struct Range {
  int64_t begin, end;
};
inline Range part(int64_t total, int64_t i, int64_t n, int64_t unit = 1) {
  const int64_t units = divide_up(total, unit);
  return {min_of(total, units * i / n * unit), min_of(total, units * (i + 1) / n * unit)};
}

// Estimated cycles of one step over `rows` sequences and `columns` hidden units, K factors each:
// bound by the FMAs, of which a core does 64 bytes a cycle, or by the memory that holds the
// weights.
template <class F>
double step_cycles(int64_t rows, int64_t columns, int64_t K) {
  const double bytes = static_cast<double>(columns) * K * sizeof(F);
  const double bytes_per_cycle = bytes < 24e3 ? 64 : bytes < 900e3 ? 28 : 10;
  const double tiles = static_cast<double>(divide_up(rows, kTileRows));
  const double fma = static_cast<double>(rows) * bytes / 64;
  // Past the cache's first level the panels are read once per tile of rows from the second level.
  const double read = bytes / bytes_per_cycle + (tiles - 1) * bytes / 64;
  return fma > read ? fma : read;
}

constexpr int64_t kFewRows = 4;  // below this a step is bound by reading the weights

// Sequences need no synchronisation, so directions and batch rows are shared out first; hidden
// units are split, and members wait for each other's, only where few rows meet large weights.
struct Plan {
  int64_t batch_parts;   // for each direction
  int64_t hidden_parts;  // workers that share a unit
  int64_t units;         // D * batch_parts
  int64_t pieces = 1;    // of the state: products take up each when its writer is done
  double cycles = 0;     // of a step's product with the state, estimated

  template <class F>
  static Plan choose(const Recurrence& p, int size) {
    const int64_t K = factors_in<F>(p.H);
    const int64_t per_direction = size % p.D == 0 ? size / p.D : size;
    Plan best{min_of(per_direction, p.B), 1, p.D * min_of(per_direction, p.B)};
    best.cycles =
        step_cycles<F>(divide_up(p.B, best.batch_parts), p.H, K) * divide_up(best.units, size);
    if (size < p.D) return best;
    // Cycles that members wait for each other, and for each line of what another wrote.
    constexpr double kWait = 700, kLine = 20;
    const int64_t workers = size / p.D;
    for (int64_t hidden = 2; hidden <= min_of(workers, panels_in<F>(p.H)); ++hidden) {
      const int64_t batch = min_of(workers / hidden, p.B);
      const int64_t columns = divide_up(panels_in<F>(p.H), hidden) * kPanel<F>;
      const int64_t rows = divide_up(p.B, batch);
      const double lines = static_cast<double>(rows * (p.H - columns)) * sizeof(F) / 64;
      const double cycles =
          step_cycles<F>(rows, columns, K) + (p.T > 1 ? kWait + kLine * lines : 0);
      if (cycles < best.cycles) {
        // More rows have work enough to wait for all of the state at once.
        best = {batch, hidden, p.D * batch, p.T > 1 && rows < kFewRows ? hidden : 1, cycles};
      }
    }
    return best;
  }
};

// The sequences in n parts: as many in each, or, where they differ in length, about as many steps.
struct Split {
  Range own;     // part i
  int64_t most;  // sequences in any part
};
inline Split split_sequences(const Recurrence& p, int64_t i, int64_t n) {
  int64_t steps = 0, before = 0;
  for (int64_t b = 0; b < p.B; ++b) steps += p.length(b);
  Split split{{0, 0}, 0};
  for (int64_t k = 0, begin = 0, end = 0; k < n;) {
    const bool full = k + 1 == n ? end == p.B : before * n >= steps * (k + 1);
    if (!full) {
      before += p.length(end++);
      continue;
    }
    if (k == i) split.own = {begin, end};
    split.most = max_of(split.most, end - begin);
    begin = end;
    ++k;
  }
  return split;
}

// What one worker does of one unit: a direction, sequences [b0, b1), panels [p0, p1).
struct Unit {
  int d;
  int64_t b0, b1, p0, p1;
  int group, members;  // workers group * members and up share the sequences
};
template <class C>
Unit unit_of(const Plan& plan, const Recurrence& p, int64_t u, int64_t slice) {
  const Range b = split_sequences(p, u % plan.batch_parts, plan.batch_parts).own;
  const Range h = part(panels_in<C>(p.H), slice, plan.hidden_parts);
  return {
      static_cast<int>(u / plan.batch_parts), b.begin, b.end, h.begin, h.end, static_cast<int>(u),
      static_cast<int>(plan.hidden_parts)};
}

// Piece m of the state: the values that a member writes, or all.
template <class C>
Range piece_of(const Plan& plan, const Recurrence& p, int64_t m) {
  const Range panels = part(panels_in<C>(p.H), m, plan.pieces);
  return {panels.begin * kPanel<C>, min_of(panels.end * kPanel<C>, p.H)};
}
// Panels [q0, q1) of a weight that is multiplied with the state, piece by piece.
template <class C, class S, class F>
void pack_pieces(const Plan& plan, const Recurrence& p, const Matrix<S, F>& weight, F* packed,
                 int64_t q0, int64_t q1) {
  for (int64_t m = 0; m < plan.pieces; ++m) {
    const Range k = piece_of<C>(plan, p, m);
    const Matrix<S, F> piece = weight.piece(k.begin, k.end);
    for (int64_t q = q0; q < q1; ++q)
      piece.pack(q, packed + weight.piece_at(k.begin) + q * piece.panel_size());
  }
}
// A piece of the state, K factors of each row, and where its weights lie among the packed ones.
template <class F>
struct Piece {
  Rows<F> state;
  int64_t K, packed_at;
};
// Piece m of a unit's state, once those that write it have advanced n times; what they wrote is
// asked for.
template <class C, class S, class F>
Piece<F> await_piece(const Plan& plan, const Recurrence& p, const Unit& unit,
                     const Matrix<S, F>& weight, int64_t m, int64_t n, const Rows<F>& state,
                     int64_t rows, const Worker& worker) {
  const Range k = piece_of<C>(plan, p, m);
  const Piece<F> piece{{state.first + k.begin / kDepth<F>, state.stride},
                       factors_in<F>(k.end - k.begin),
                       weight.piece_at(k.begin)};
  const int first = unit.group * unit.members + static_cast<int>(plan.pieces > 1 ? m : 0);
  const int last = plan.pieces > 1 ? first + 1 : first + unit.members;
  if (unit.members == 1 || (first == worker.rank && plan.pieces > 1)) return piece;
  for (int other = first; other < last; ++other)
    if (other != worker.rank) worker.wait_for(other, n);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < piece.K; i += 64 / static_cast<int64_t>(sizeof(F)))
      __builtin_prefetch(piece.state.first + row * piece.state.stride + i);
  return piece;
}

// The row of features, or of ready pre-activations, of sequence b at step t.
template <class S>
const S* input_row(const Recurrence& p, int64_t t, int64_t b) {
  return static_cast<const S*>(p.input.data) + p.input.offset(p, t, b);
}

// What the pre-activations of hidden units j and up start from; past H zeros.
template <class S>
Vec<Compute<S>> bias_of(const Recurrence& p, int d, int64_t j) {
  if (!p.bias_ih[0]) return Vec<Compute<S>>{};
  return load_some(static_cast<const S*>(p.bias_ih[d]) + j, p.H - j) +
         load_some(static_cast<const S*>(p.bias_hh[d]) + j, p.H - j);
}

// How many of the unit's sequences have a row at step t.
inline int64_t sequences(const Recurrence& p, const Unit& unit, int64_t t) {
  return max_of(0, min_of(unit.b1, p.batch(t)) - unit.b0);
}
// Steps [t, t + n) of a unit, which have `rows` rows and are worked on while these are in cache.
struct Chunk {
  int64_t t, n, rows;
};
// The steps that follow the first `done`, in ascending or descending time: as many as have `limit`
// rows at most, but one at least.
inline Chunk next_chunk(const Recurrence& p, const Unit& unit, int64_t done, bool descending,
                        int64_t limit) {
  Chunk chunk{descending ? p.T - done : done, 0, 0};
  while (done + chunk.n < p.T) {
    const int64_t rows = sequences(p, unit, descending ? chunk.t - 1 : chunk.t + chunk.n);
    if (chunk.n > 0 && chunk.rows + rows > limit) break;
    chunk.rows += rows;
    ++chunk.n;
    chunk.t -= descending;
  }
  return chunk;
}

// Calls run(context, unit) for what is `worker`'s share.
template <class C, class Kernel>
void run_units(const Kernel& kernel, const Plan& plan, const Recurrence& p, Worker& worker) {
  if (plan.hidden_parts > 1) {
    const int64_t u = worker.rank / plan.hidden_parts;
    if (u < plan.units) kernel.run(unit_of<C>(plan, p, u, worker.rank % plan.hidden_parts), worker);
    return;
  }
  for (int64_t u = worker.rank; u < plan.units; u += worker.size)
    kernel.run(unit_of<C>(plan, p, u, 0), worker);
}

// A layer's place in a stack whose layers are computed at once: it waits for the steps of the one
// below. With no worker there is no stack.
struct Place {
  Worker* worker = nullptr;  // of the stack's team
  int below = 0;             // the rank of the worker that computes the layer below
  int64_t steps_before = 0;  // how often that one has advanced when it begins with that layer

  void await(int64_t steps) const {
    if (worker && below != worker->rank) worker->wait_for(below, steps_before + steps);
  }
  void advance() const {
    if (worker) worker->advance();
  }
};

// What one worker writes lies this far from what another does: between them a prefetch would take
// lines from the other's core.
constexpr int64_t kApart = 4096;
// Packed weights up to this size are packed by each worker for itself: lines that one core wrote
// travel slowly to another that shares no cache with it.
constexpr size_t kOwnWeights = 512 << 10;

// The lines of a result this large come from far memory when they are written, or from another
// core, whose prefetches take them along with those of its own rows beside them.
constexpr int64_t kFar = 1 << 20;

// Rows this many bytes apart or more may push each other out of the first cache.
constexpr int64_t kSameSet = 4096;

// Hands out pieces of a workspace; with no base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

}  // namespace rnnext::RNNEXT_ISA
