// Where the state lies that one step of the forward pass writes and the next one reads, and what
// becomes of it where a sequence lacks the step. The plan chooses the home (plan.h); everything
// that depends on it, or on sequences having different lengths, is here.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/work_items.h"

namespace rnnext::RNNEXT_ISA {

// The states of the forward pass. With Home::rows they are the output. In scratch two buffers take
// turns. They have the storage type's precision, so that a sequence which is cut into several calls
// gives the same bits. Where sequences are sorted, the rows of a step do not follow each other in
// the output, so they are written to scratch first.
template <class S, class MK>
struct ForwardStates {
  using F = typename MK::Operand;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  RowBuffers<F> buffers;
  // The states for the next step's leak or gates, where W_hh multiplies rounded or other numbers.
  RowBuffers<C> carry;
  // Rows that a step of sorted sequences writes beside the state: the output, if it cannot be read
  // from the state, and what is saved.
  RowBuffers<C> apart_output, apart_saved;

  ForwardStates(const Recurrence& p, const ForwardPlan& plan, Arena& arena)
      : p(p),
        plan(plan),
        buffers(plan, p.H, 2, arena, MK::kRowBlock),
        carry(plan, p.H, traits_of(p.cell).keeps_beside || (p.cell != Cell::elman && kParts<F> > 0),
              arena),
        apart_output(plan, p.H, plan.sorts && writes_output_apart(), arena),
        apart_saved(plan, traits_of(p.cell).saved * p.H, plan.sorts && p.saved, arena) {}

  // Whether a step's tiles write its output beside the state, whose operands are rounded.
  static constexpr bool writes_output_apart() { return kNative<S> && !kStoredAsOperands<S, F>; }

  // The state that the work item's first step reads: hx, reset_state or zeros. Two buffers get it,
  // since a sequence that begins late may find it in either. A sequence without steps ends with it.
  Rows<const F> initial_state(const WorkItem& item) const {
    if (plan.from_hx) {
      for (int64_t i = 0; carry.count && i < item.size; ++i) {
        const S* const c = state_row<S>(p, p.hx, item.d, item.b0 + i, traits_of(p.cell).states - 1);
        for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>)
          store(carry.row(item, 0, i) + j, load_state(c, j, p.H - j));
      }
      return {reinterpret_cast<const F*>(state_row<S>(p, p.hx, item.d, item.b0)), p.H / kKPack<F>};
    }
    const int64_t t = p.reverse[item.d] ? p.T - 1 : 0;
    for (int64_t i = 0; i < item.size; ++i) {
      const int64_t b = item.sequence(i);
      const void* const start = p.restarts(item.d, b, t) ? p.reset_state : p.hx;
      for (int buffer = 0; buffer < 2; ++buffer)
        store_state(item, i, start, buffers.row(item, buffer, i));
      for (int which = 0; p.length(b) == 0 && which < traits_of(p.cell).states; ++which)
        for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>)
          store_some(h_n_row(item, b, which) + j,
                     load_state(state_row<S>(p, p.hx, item.d, b, which), j, p.H - j), p.H - j);
    }
    return buffers.all(item, 0);
  }

  // Sets where step t writes, which follows `done` others.
  template <class Step>
  void set_destinations(Step& step, const WorkItem& item, int64_t t, int64_t done) const {
    const int64_t width = p.D * p.H;
    S* const output = plan.sorts ? nullptr : output_row<S>(p, p.output, item.d, t, item.b0);
    if (plan.state_home == Home::rows) {
      step.next = {reinterpret_cast<F*>(output), width / kKPack<F>};
      step.next_end = p.H;
    } else {
      step.next = buffers.all(item, (done + 1) % 2);
      step.next_end = panels_in<C>(p.H) * kPanel<C>;
      if constexpr (kNative<S>) {
        step.output = {output, width};
        if (plan.sorts && writes_output_apart()) step.output = apart_output.all(item, 0);
      }
    }
    if (p.cell == Cell::elman) return;
    step.state.row_stride = plan.sorts ? apart_saved.stride : p.D * traits_of(p.cell).saved * p.H;
    if (p.saved && plan.sorts) step.state.saved = apart_saved.row(item, 0);
    if (p.saved && !plan.sorts) {
      S* const saved = saved_row<S>(p, item.d, t, item.b0);
      step.state.saved = saved;
      step.past_caches = plan.past_caches && in_vectors<C>(saved, p.H);
      if constexpr (kNative<S>)
        if (!step.past_caches) step.far_saved = saved;
    }
    step.state.before = {reinterpret_cast<const C*>(step.a.first), step.a.stride};
    if (carry.count) step.state.before = step.state.carry = carry.all(item, 0);
  }

  // Makes the state that the next step reads, completes the output, writes h_n of what ends here.
  template <class Step>
  RNNEXT_INLINE void finish_step(Step& step, const WorkItem& item, int64_t t, int64_t done,
                                 int64_t rows) const {
    if (plan.state_home == Home::scratch) {
      if (item.last) clear_row_ends(step.next.first, rows, buffers.stride, p.H);
      if (plan.sorts) clear_padding(item, t, rows, p.output, 1);
      if (plan.sorts && p.saved) clear_padding(item, t, rows, p.saved, traits_of(p.cell).saved);
      if (!kNative<S> || plan.sorts) write_output(item, t, rows, step.next);
    }
    if (p.ragged() || done + 1 == p.T) write_h_n(item, t, rows);
    if (p.reset && done + 1 < p.T) {
      const int64_t next = p.reverse[item.d] ? t - 1 : t + 1;
      for (int64_t i = 0; i < item.size; ++i) {
        const int64_t b = item.sequence(i);
        if (p.restarts(item.d, b, next)) store_state(item, i, p.reset_state, step.next[i]);
      }
    }
    step.a = step.next;
  }

 private:
  S* h_n_row(const WorkItem& item, int64_t b, int which = 0) const {
    return const_cast<S*>(state_row<S>(p, p.h_n, item.d, b, which));
  }
  // Gives the i-th sequence its state from `states`; the next step reads it from the row `next`.
  void store_state(const WorkItem& item, int64_t i, const void* states, F* next) const {
    const int64_t b = item.sequence(i);
    const S* const state = state_row<S>(p, states, item.d, b);
    const S* const beside = state_row<S>(p, states, item.d, b, traits_of(p.cell).states - 1);
    for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) {
      const Vec<C> x = load_state(state, j, p.H - j);
      if (carry.count) store(carry.row(item, 0, i) + j, load_state(beside, j, p.H - j));
      Operands<F>::store(next, j, output_of<S>(p, x));
    }
  }
  // Clears rows past the ends of sequences, of `parts` times H numbers each. Clearing whole steps
  // is fastest, though the rows that exist are written afterwards: their lines are then in cache.
  void clear_padding(const WorkItem& item, int64_t t, int64_t present, void* rows,
                     int64_t parts) const {
    const int64_t from = item.u0 * kPanel<C>, to = min_of(item.u1 * kPanel<C>, p.H);
    if (p.D == 1 && to - from == p.H) {
      __builtin_memset(output_row<S>(p, rows, 0, t, item.b0, parts), 0,
                       item.size * parts * p.H * sizeof(S));
    } else if (present < item.size) {
      for (int64_t b = item.b0; b < item.b0 + item.size; ++b)
        for (int64_t k = 0; !p.inside(b, t) && k < parts; ++k)
          __builtin_memset(output_row<S>(p, rows, item.d, t, b, parts) + k * p.H + from, 0,
                           (to - from) * sizeof(S));
    }
  }
  // Writes the output, and what is saved, where tiles did not. A 16-bit state is rounded with it.
  void write_output(const WorkItem& item, int64_t t, int64_t rows, const Rows<F>& states) const {
    const int64_t from = item.u0 * kPanel<C>, to = min_of(item.u1 * kPanel<C>, p.H);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = item.sequence(i);
      F* const next = states[i];
      S* const output = output_row<S>(p, p.output, item.d, t, b);
      for (int64_t j = from; j < to; j += kLanes<C>) {
        if constexpr (writes_output_apart()) {
          store_some(output + j, load(apart_output.row(item, 0, i) + j), p.H - j);
        } else if constexpr (kNative<S>) {
          store_some(output + j, load(next + j), p.H - j);
        } else if constexpr (kStoredAsOperands<S, F>) {
          __builtin_memcpy(output + j, next + j / kKPack<F>,
                           min_of(kLanes<C>, p.H - j) * sizeof(S));
        } else {
          store_some(output + j, load(next + j), p.H - j);
          store(next + j, load_some(output + j, p.H - j));  // as a later call would read it
        }
      }
      if (!plan.sorts || !p.saved) continue;
      const S* const saved =
          reinterpret_cast<const S*>(apart_saved.row(item, 0)) + i * apart_saved.stride;
      for (int64_t k = 0; k < traits_of(p.cell).saved * p.H; k += p.H)
        __builtin_memcpy(saved_row<S>(p, item.d, t, b) + k + from, saved + k + from,
                         (to - from) * sizeof(S));
    }
  }
  void write_h_n(const WorkItem& item, int64_t t, int64_t rows) const {
    const int64_t from = item.u0 * kPanel<C>, to = min_of(item.u1 * kPanel<C>, p.H);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = item.sequence(i);
      if (!p.ends(item.d, b, t)) continue;
      if (p.cell != Cell::voltage) {
        const S* const output = output_row<S>(p, p.output, item.d, t, b);
        __builtin_memcpy(h_n_row(item, b) + from, output + from, (to - from) * sizeof(S));
      }
      if (!traits_of(p.cell).keeps_beside) continue;
      S* const beside = h_n_row(item, b, traits_of(p.cell).states - 1);
      for (int64_t j = from; j < to; j += kLanes<C>)
        store_some(beside + j, load(carry.row(item, 0, i) + j), p.H - j);
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
