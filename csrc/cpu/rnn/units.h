// A unit at work: the pieces of its state that members wait for, its weights and rows, and the
// memory that a layout hands out.
#pragma once

#include "cpu/gemm/pack.h"
#include "cpu/gemm/sweep.h"
#include "cpu/rnn/plan.h"
#include "cpu/runtime/team.h"

namespace rnnext::RNNEXT_ISA {

// The shape of the kernels of storage type S and engine E, for the plan.
template <class S, class E>
constexpr KernelShape kShape = {.storage_bytes = sizeof(S),
                                .compute_bytes = sizeof(Compute<S>),
                                .factor_bytes = sizeof(typename E::Factor),
                                .depth = kDepth<typename E::Factor>,
                                .panel = kPanel<Compute<S>>,
                                .tile_rows = E::kTileRows,
                                .sum_block = E::kSumBlock,
                                .grain = kGrain<typename E::Factor>,
                                .row_block = E::kRowBlock,
                                .tiles = kTiled<typename E::Factor>,
                                .stored_as_factors = kStoredAsFactors<S, typename E::Factor>};

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

// Elements between what is one thread's and what is the next one's, of so many threads.
template <class T>
constexpr int64_t gap(int64_t threads) {
  return threads > 1 ? kApart / static_cast<int64_t>(sizeof(T)) : 0;
}

// Piece m of the state: the values that a member writes, or all.
template <class C>
Range piece_of(const Plan& plan, int64_t H, int64_t m) {
  const Range panels = part(panels_in<C>(H), m, plan.pieces, plan.panel_group);
  return {panels.begin * kPanel<C>, min_of(panels.end * kPanel<C>, H)};
}

// W_hh, packed piece by piece of the state that it is multiplied with.
template <class S, class E>
struct StateWeights {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Plan& plan;
  Matrix<S, F> weight;

  // Panels [q0, q1); whether all values are finite.
  bool pack(F* packed, int64_t q0, int64_t q1) const {
    bool finite = true;
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const Range k = piece_of<C>(plan, weight.K, m);
      const Matrix<S, F> piece = weight.piece(k.begin, k.end);
      for (int64_t q = q0; q < q1; ++q)
        finite =
            piece.pack(q, packed + weight.piece_at(k.begin) + q * piece.panel_size()) && finite;
    }
    return finite;
  }

  // A piece of the state, K factors of each row, and where its weights lie among the packed ones.
  struct Piece {
    Rows<F> state;
    int64_t K, packed_at;
  };
  // Piece m of a unit's state, once those that write it have advanced n times; its lines are
  // prefetched.
  Piece await(const Unit& unit, int64_t m, int64_t n, const Rows<F>& state, int64_t rows,
              const Worker& worker) const {
    const Range k = piece_of<C>(plan, weight.K, m);
    const Piece piece{{state.first + k.begin / kDepth<F>, state.stride},
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

  // `step` over a unit's panels and the product with the state before it. Where a unit is shared,
  // the sums take up each member's piece when it is there, in the order of k. They begin from the
  // step's own start, and meanwhile wait in `sums`: rows `stride` apart, from column 0 on.
  template <class Step>
  void multiply(Step& step, const Unit& unit, const F* packed, C* sums, int64_t stride,
                int64_t rows, int64_t n, const Worker& worker) const {
    const Rows<F> state = step.state;
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const Piece piece = await(unit, m, n, state, rows, worker);
      step.packed = packed + piece.packed_at;
      step.state = piece.state;
      if (m + 1 == plan.pieces) {
        sweep(step, rows, unit.p0, unit.p1, weight.columns, piece.K);
      } else {
        sweep(step.adding(sums, stride), rows, unit.p0, unit.p1, weight.columns, piece.K);
        step.start_from(sums, stride);
      }
    }
    step.state = state;
  }
};

// The input row of sequence b at step t: features, or precomputed pre-activations.
template <class S>
const S* input_row(const Recurrence& p, int64_t t, int64_t b) {
  return static_cast<const S*>(p.input.data) + p.input.offset(p, t, b);
}

// Rows of features of a chunk, in memory's order: where they lie, or copied to scratch.
template <class S, class E, class F = typename E::Factor>
Rows<F> feature_rows(const Recurrence& p, const Unit& unit, const Chunk& chunk, F* scratch) {
  const bool sorted = unit.order != nullptr;
  int64_t apart = 0;
  if (kStoredAsFactors<S, F> && !sorted &&
      p.input.direct(p, chunk.n, unit.b0, unit.b0 + unit.size, &apart) && p.I % kGrain<F> == 0 &&
      apart % kDepth<F> == 0 && chunk.rows % E::kRowBlock == 0)
    return {reinterpret_cast<const F*>(input_row<S>(p, chunk.t, unit.b0)), apart / kDepth<F>};
  const Rows<F> rows{scratch, scratch_stride<F>(p.I)};
  // Rows of sequences that are sorted lie here and there.
  const int64_t ahead = sorted && !p.input.index ? p.input.stride_t : 0;
  for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t) {
    const int64_t later = p.reverse[unit.d] ? t - chunk.n : t + chunk.n;
    const bool fetches = ahead && later >= 0 && later < p.T;
    for (int64_t i = 0, n = sequences(p, unit, t); i < n; ++i, scratch += rows.stride) {
      const S* const row = input_row<S>(p, t, unit.sequence(i));
      const S* const next = row + (later - t) * ahead;
      for (int64_t j = 0; j < factors_in<F>(p.I) * kDepth<F>; j += kLanes<Compute<S>>) {
        if (fetches) __builtin_prefetch(next + j);
        Factors<F>::store(scratch, j, load_some(row + j, p.I - j));
      }
    }
  }
  return rows;
}

// The values [H] of hidden units j and up; past H zeros.
template <class S>
Vec<Compute<S>> of_unit(const Recurrence& p, const void* values, int64_t j) {
  return load_some(static_cast<const S*>(values) + j, p.H - j);
}

// What the pre-activations of hidden units j and up start from; past H zeros.
template <class S>
Vec<Compute<S>> bias_of(const Recurrence& p, int d, int64_t j) {
  if (!p.bias_ih[0]) return Vec<Compute<S>>{};
  return of_unit<S>(p, p.bias_ih[d], j) + of_unit<S>(p, p.bias_hh[d], j);
}

// alpha of hidden units j and up; past H ones.
template <class S>
Vec<Compute<S>> alpha_of(const Recurrence& p, int d, int64_t j) {
  Vec<Compute<S>> a = of_unit<S>(p, p.alpha[d], j);
  for (int64_t i = max_of(0, p.H - j); i < kLanes<Compute<S>>; ++i) a[i] = 1;
  return a;
}

// Calls kernel.run(unit, worker) for what is `worker`'s share.
template <class C, class Kernel>
void run_units(const Kernel& kernel, const Plan& plan, const Recurrence& p, Worker& worker) {
  const int64_t panels = panels_in<C>(p.H);
  if (plan.hidden_parts > 1) {
    const int64_t u = worker.rank / plan.hidden_parts;
    if (u < plan.units)
      kernel.run(unit_of(plan, p, panels, u, worker.rank % plan.hidden_parts), worker);
    return;
  }
  for (int64_t u = 0; u < plan.units; ++u)
    if ((plan.joined ? u % plan.batch_parts : u) % worker.size == worker.rank)
      kernel.run(unit_of(plan, p, panels, u, 0), worker);
}

}  // namespace rnnext::RNNEXT_ISA
