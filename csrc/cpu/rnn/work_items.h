// What both passes share: the kernels' shape, the memory that a layout hands out and buffers of
// rows in it, the wait for other members, the rows of tensors, and the loop over work items.
#pragma once

#include "cpu/gemm/macro_kernel.h"
#include "cpu/gemm/pack.h"
#include "cpu/rnn/plan.h"
#include "cpu/runtime/team.h"

namespace rnnext::RNNEXT_ISA {

// The shape of the kernels of storage type S and micro-kernel MK, for the plan.
template <class S, class MK>
constexpr KernelShape kShape = {.storage_bytes = sizeof(S),
                                .compute_bytes = sizeof(Compute<S>),
                                .operand_bytes = sizeof(typename MK::Operand),
                                .k_pack = kKPack<typename MK::Operand>,
                                .panel = kPanel<Compute<S>>,
                                .mr = MK::kMR,
                                .k_align = kKAlign<typename MK::Operand>,
                                .row_block = MK::kRowBlock,
                                .tiles = kTiled<typename MK::Operand>,
                                .stored_as_operands = kStoredAsOperands<S, typename MK::Operand>};

// Arrays of one size, or null.
template <class T>
struct Arrays {
  T* first = nullptr;
  int64_t size = 0;

  T* operator[](int64_t i) const { return first ? first + i * size : nullptr; }
};

// Hands out parts of a workspace; without a base it only counts their bytes.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  template <class T>
  Arrays<T> take(int64_t count, size_t size) {
    T* const first = take<T>(count * static_cast<int64_t>(size));
    return {count > 0 ? first : nullptr, static_cast<int64_t>(size)};
  }
  // The same. Each array is written by another thread, so there are gaps between several.
  template <class T>
  Arrays<T> take_padded(int64_t count, int64_t size) {
    return take<T>(count, size + (count > 1 ? kFalseSharing / sizeof(T) : 0));
  }
};

// Waits until the others of a group have advanced n times, and prefetches the rows they wrote.
template <class F>
void await_members(const WorkItem& item, int64_t n, const Rows<const F>& written, int64_t K,
                   int64_t rows, const Worker& worker) {
  if (item.members == 1) return;
  const int first = item.group * item.members;
  for (int other = first; other < first + item.members; ++other)
    if (other != worker.rank) worker.wait_for(other, n);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < K; i += 64 / static_cast<int64_t>(sizeof(F)))
      __builtin_prefetch(written[row] + i);
}

// The input row of sequence b at step t: features, or precomputed pre-activations.
template <class S>
RNNEXT_INLINE const S* input_row(const Recurrence& p, int64_t t, int64_t b) {
  return static_cast<const S*>(p.input.data) + p.input.offset(p, t, b);
}

// A chunk's rows of features in the order of memory: where they lie, or copied to scratch.
template <class S, class MK, class F = typename MK::Operand>
Rows<const F> feature_rows(const Recurrence& p, const WorkItem& item, const Chunk& chunk,
                           F* scratch) {
  const bool sorted = item.order != nullptr;
  int64_t apart = 0;
  if (kStoredAsOperands<S, F> && !sorted &&
      p.input.direct(p, chunk.n, item.b0, item.b0 + item.size, &apart) && p.I % kKAlign<F> == 0 &&
      apart % kKPack<F> == 0 && chunk.rows % MK::kRowBlock == 0)
    return {reinterpret_cast<const F*>(input_row<S>(p, chunk.t, item.b0)), apart / kKPack<F>};
  const Rows<const F> rows{scratch, scratch_stride<F>(p.I)};
  // The rows of sorted sequences do not follow each other, so the next chunk's are prefetched.
  const int64_t ahead = sorted && !p.input.index ? p.input.stride_t : 0;
  for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t) {
    const int64_t later = p.reverse[item.d] ? t - chunk.n : t + chunk.n;
    const bool fetches = ahead && later >= 0 && later < p.T;
    for (int64_t i = 0, n = sequences(p, item, t); i < n; ++i, scratch += rows.stride) {
      const S* const row = input_row<S>(p, t, item.sequence(i));
      const S* const next = row + (later - t) * ahead;
      for (int64_t j = 0; j < operands_in<F>(p.I) * kKPack<F>; j += kLanes<Compute<S>>) {
        if (fetches) __builtin_prefetch(next + j);
        Operands<F>::store(scratch, j, load_some(row + j, p.I - j));
      }
    }
  }
  return rows;
}

// Row (t, b) of direction d of the output, or of what has `parts` times its width.
template <class S>
RNNEXT_INLINE S* output_row(const Recurrence& p, void* rows, int d, int64_t t, int64_t b,
                            int64_t parts = 1) {
  return static_cast<S*>(rows) + (p.row(t, b) * p.D + d) * parts * p.H;
}
// The same of the parts that a cell saves, each [H].
template <class S>
RNNEXT_INLINE S* saved_row(const Recurrence& p, int d, int64_t t, int64_t b) {
  return output_row<S>(p, p.saved, d, t, b, traits_of(p.cell).saved);
}
// The part of row b of direction d of hx, or of what has its shape; `which`: 1 for an LSTM's c.
template <class S>
RNNEXT_INLINE const S* state_row(const Recurrence& p, const void* states, int d, int64_t b,
                                 int which = 0) {
  return states ? static_cast<const S*>(states) + which * p.state_size() + (d * p.B + b) * p.H
                : nullptr;
}
// The state from which direction d takes step t of sequence b, or what W_hh multiplies there: in
// the output, in `start` at the first step, in `anew` at a reset; null: zeros.
template <class S>
RNNEXT_INLINE const S* state_before(const Recurrence& p, const void* start, const void* anew, int d,
                                    int64_t t, int64_t b) {
  if (!p.inside(b, t)) return nullptr;
  if (p.restarts(d, b, t)) return state_row<S>(p, anew, d, b);
  if (p.starts(d, b, t)) return state_row<S>(p, start, d, b);
  return output_row<S>(p, p.output, d, p.before(d, t), b);
}
template <class S>
Vec<Compute<S>> load_state(const S* state, int64_t j, int64_t n) {
  return state ? load_some(state + j, n) : Vec<Compute<S>>{};
}

// A weight [gates * H, K] as the forward pass multiplies it; [gates * H, columns], as the backward.
template <class S, class F>
Matrix<S, F> forward_weight(const Recurrence& p, const void* weight, int64_t K) {
  return {static_cast<const S*>(weight), K, p.H, /*transposed=*/true, p.gates()};
}
template <class S, class F>
Matrix<S, F> backward_weight(const Recurrence& p, const void* weight, int64_t columns,
                             int first_gate = 0) {
  const int64_t K = p.gates() > 1 ? p.gates() * gate_width<F>(p.H) : p.H;
  return {static_cast<const S*>(weight), K, columns, false, p.gates(), p.H, first_gate};
}

// The values, of [H], for hidden units j and up; zeros past H.
template <class S>
Vec<Compute<S>> load_hidden(const Recurrence& p, const void* values, int64_t j) {
  return load_some(static_cast<const S*>(values) + j, p.H - j);
}

// The vector from column j on, in the order of the packed weights, of [gates * H] values or zeros.
template <class S>
Vec<Compute<S>> load_gates(const Recurrence& p, const void* values, int64_t j) {
  using C = Compute<S>;
  if (!values) return Vec<C>{};
  const auto rows = GateColumns<C>{p.H, p.gates()}.vector(j / kLanes<C>);
  if (!rows.mixed) return load_some(static_cast<const S*>(values) + rows.first, rows.count);
  S lanes[kLanes<C>];
  for (int i = 0; i < kLanes<C>; ++i) lanes[i] = static_cast<const S*>(values)[rows.row[i]];
  return load(lanes);
}

// The gates of W_ih and W_hh, or -1 for none, to which a part of the pre-activations' gradient
// belongs. A GRU's n has two parts, W_ih's first and W_hh's last: each weight's gates are adjacent.
struct GateOfPart {
  int ih, hh;
};
inline GateOfPart gate_of(const Recurrence& p, int grad_part) {
  if (p.cell != Cell::gru) return {grad_part, grad_part};
  return {grad_part == 3 ? -1 : (grad_part + 2) % 3, grad_part - 1};
}

// The sum of the biases of hidden units j and up; zeros past H.
template <class S>
Vec<Compute<S>> bias_of(const Recurrence& p, int d, int64_t j) {
  if (!p.bias_ih[0]) return Vec<Compute<S>>{};
  return load_hidden<S>(p, p.bias_ih[d], j) + load_hidden<S>(p, p.bias_hh[d], j);
}

// alpha of hidden units j and up; ones past H.
template <class S>
Vec<Compute<S>> alpha_of(const Recurrence& p, int d, int64_t j) {
  Vec<Compute<S>> a = load_hidden<S>(p, p.alpha[d], j);
  for (int64_t i = max_of(0, p.H - j); i < kLanes<Compute<S>>; ++i) a[i] = 1;
  return a;
}

// Each group's buffers of rows: what its steps hand on, in either pass.
template <class T>
struct RowBuffers {
  int64_t stride, rows;  // of a group, whose rows are rounded up to whole blocks of row_block
  int count;
  Arrays<T> arrays;

  RowBuffers(const Plan& plan, int64_t width, int count, Arena& arena, int64_t row_block = 1)
      : stride(scratch_stride<T>(width)),
        rows(divide_up(plan.group_rows, row_block) * row_block),
        count(count),
        arrays(arena.take_padded<T>(count > 0 ? plan.groups : 0, count * rows * stride)) {}
  // The row of the work item's i-th sequence.
  T* row(const WorkItem& item, int buffer, int64_t i = 0) const {
    return arrays[item.group] + (buffer * rows + i) * stride;
  }
  Rows<T> all(const WorkItem& item, int buffer) const { return {row(item, buffer), stride}; }
};

// Calls kernel.run(item, worker) for each work item of `worker`, a group's one after the other.
template <class C, class Kernel>
void run_items(const Kernel& kernel, const Plan& plan, const Recurrence& p, Worker& worker) {
  const int64_t blocks = panels_in<C>(p.H);
  if (plan.hidden_parts > 1) {
    const int64_t group = worker.rank / plan.hidden_parts;
    if (group < plan.groups)
      kernel.run(work_item(plan, p, blocks, group, worker.rank % plan.hidden_parts), worker);
  } else {
    for (int64_t group = 0; group < plan.groups; ++group) {
      if ((plan.joined ? group % plan.batch_parts : group) % worker.size != worker.rank) continue;
      WorkItem item = work_item(plan, p, blocks, group, 0);
      const int64_t end = item.b0 + item.size;
      do {
        item.size = min_of(plan.group_rows, end - item.b0);
        kernel.run(item, worker);
        item.b0 += item.size, item.begins = false;
      } while (item.b0 < end);
    }
  }
  if (plan.past_caches) finish_past_caches();
}

}  // namespace rnnext::RNNEXT_ISA
