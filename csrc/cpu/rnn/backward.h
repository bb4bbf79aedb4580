// The recurrence, backward: the forward's twin. The state is the gradient of the pre-activations:
// the sums start from the gradient of the output, add W_hh^T times that state and are multiplied by
// the cell's derivative. The gradients of the features and of the weights are products over all
// rows: step by step and chunk by chunk while these are in cache, where the plan says so; else when
// all is done.
#pragma once

#include "cpu/rnn/backward_layout.h"
#include "cpu/rnn/epilogue.h"

namespace rnnext::RNNEXT_ISA {

// One step of one unit, as if every sequence had a step t: BackwardStates::finish_step mends the
// others. Work for sweep.
template <class E>
struct BackwardStep {
  using Engine = E;
  using F = typename E::Factor;
  using C = Compute<F>;
  Epilogue<BackwardStep, C> epilogue;
  LeakRows<C> leak;
  const F* packed;  // W_hh; null: there is only one step
  int64_t H;
  const C* start;  // the gradient of the output, first row; or null: zeros
  int64_t start_stride;
  const C* values;  // that f gave
  int64_t values_stride;
  Rows<F> state;
  C* grad_pre;
  int64_t grad_pre_stride;
  F* next;  // or null: it is grad_pre
  int64_t next_stride;
  // What the next step will read as gradient and as values, both values_stride apart; or null.
  const C *grad_ahead, *values_ahead;

  template <class Extent>
  RNNEXT_TILE void tile(Extent extent, int64_t row, int64_t column, const F* panels,
                        int64_t K) const {
    const int64_t ahead = row * values_stride + column;
    if (grad_ahead) extent.prefetch(grad_ahead + ahead, values_stride);
    if (values_ahead) extent.prefetch(values_ahead + ahead, values_stride);
    typename Extent::template Tile<E> sums(extent);
    if (start) {
      sums.load(start + row * start_stride + column, start_stride, H - column);
    } else {
      sums.clear();
    }
    if (leak.carry) {  // the end needs two rows at once, that other panels pushed out
      extent.prefetch(leak.carry + row * leak.stride + column, leak.stride);
      extent.prefetch(values + ahead, values_stride);
    }
    sums.add(state.first + row * state.stride, state.stride, panels, K);
    sums.finish(*this, row, column);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    if (epilogue.out_of_line) return epilogue.call(*this, sums, row, column);
    Vec<C> h[R][NV];
    load_tile(h, values + row * values_stride + column, values_stride, H - column);
    backward_block<C>(epilogue.name, sums, h);
    store_tile(sums, grad_pre + row * grad_pre_stride + column, grad_pre_stride, H - column);
    if (next)
      store_factors(sums, next + row * next_stride, next_stride, column, column + NV * kLanes<C>);
  }

  // The product with a piece of the state, added to the sums where they are.
  Projection<E> adding(C* sums, int64_t stride) const {
    return {.packed = packed,
            .a = state,
            .start = start,
            .start_stride = start_stride,
            .out = sums,
            .out_stride = stride,
            .end = H};
  }
  void start_from(const C* sums, int64_t stride) { start = sums, start_stride = stride; }
};

template <class S, class E>
struct Backward {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const RecurrenceGrad& g;
  const RecurrenceGradOut& out;
  const BackwardPlan& plan;
  BackwardLayout<S, E> at;

  void pack_share(const Worker& worker) const {
    for (int d = 0; at.ih && d < p.D; ++d) at.features_of(worker).pack(d, worker.rank, worker.size);
    const Range share = part(panels_in<F>(p.H), worker.rank, worker.size);
    for (int d = 0; at.hh && !plan.own_weights && d < p.D; ++d)
      at.pack_hh(d, d, share.begin, share.end);
  }

  void run(const Unit& unit, Worker& worker) const {
    steps(plan.sorts ? sorted(unit, p, at.order_of(worker), at.present_of(worker)) : unit, worker);
  }

  void steps(const Unit& unit, Worker& worker) const {
    Rows<F> state = at.states.initial_state(unit);
    C* const alpha_grad = at.alpha_sums_of(unit.group);
    LeakRows<C> leak = leak_rows(unit, alpha_grad);
    if (at.hh && plan.own_weights) at.pack_hh(unit.d, unit.group, unit.p0, unit.p1);
    const F* const packed = at.packed_hh(unit);
    const StateWeights<S, E> weights{plan, at.weight_hh(0)};
    if (unit.members > 1) worker.advance();
    const FeatureGradients<S, E> features = at.features_of(worker);
    const bool writes_features = plan.own_rows && out.input;
    if (writes_features) features.pack(unit.d, 0, 1);
    const WeightGradients<S, E> sums = at.sums_of(unit.group);
    const bool reverse = p.reverse[unit.d];
    const int64_t width = p.D * p.H;
    C* const chunk_grad = at.chunk_of(worker);
    if (plan.own_rows) clear_tails(chunk_grad);
    for (int64_t done = 0; done < p.T;) {
      const int64_t limit = plan.own_sums || plan.own_rows ? plan.chunk_rows : p.rows();
      const Chunk chunk = next_chunk(p, unit, done, !reverse, limit);
      int64_t row = reverse ? 0 : chunk.rows;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? done : p.T - 1 - done;
        const int64_t first = p.row(t, unit.b0) * width + unit.d * p.H;  // unless they are sorted
        const int64_t rows = sequences(p, unit, t);
        if (!reverse) row -= rows;
        const int64_t t_next = reverse ? t + 1 : t - 1;
        const int64_t ahead = done + 1 < p.T ? (p.first_row(t_next) - p.first_row(t)) * width : 0;
        const StepRows in = step_rows(unit, t, done, rows, ahead, worker);
        if (at.states.leaks()) {
          leak.saved = p.saved ? static_cast<S*>(p.saved) + first : nullptr;
          leak.output = static_cast<const S*>(p.output) + first;
          if (plan.sorts) {
            leak.output = gather(unit, t, rows, p.output, at.step_rows_of(worker, at.kOutput));
            if (p.saved)
              leak.saved = gather(unit, t, rows, p.saved, at.step_rows_of(worker, at.kSaved));
          }
        }
        // Copied rows are in cache; the others' next step is far in memory.
        const bool prefetches = kNative<S> && in.grad_stride == width && done + 1 < p.T;
        BackwardStep<E> step{
            .epilogue = backward_epilogue<S, BackwardStep<E>>(p),
            .leak = leak,
            .packed = packed,
            .H = p.H,
            .start = in.grad,
            .start_stride = in.grad_stride,
            .values = in.values,
            .values_stride = in.values_stride,
            .state = state,
            .grad_pre = plan.own_rows ? chunk_grad + row * at.step_stride : at.grad_pre + first,
            .grad_pre_stride = plan.own_rows ? at.step_stride : width,
            .next = at.states.next_buffer(unit, done),
            .next_stride = at.states.buffers.stride,
            .grad_ahead = prefetches && in.grad ? in.grad + ahead : nullptr,
            .values_ahead = prefetches ? in.values + ahead : nullptr};
        if (done > 0) {
          weights.multiply(step, unit, packed, at.step_rows_of(worker, at.kGrad), at.step_stride,
                           rows, done + 1, worker);
        } else {
          sweep(step, rows, unit.p0, unit.p1, p.H, 0);  // no step came before
        }
        state =
            at.states.finish_step(unit, t, rows, step.next, step.grad_pre, step.grad_pre_stride);
        if (writes_features) features.write(unit, t, rows, state);
        at.states.stop_at_starts(unit, t, rows, step.next, step.grad_pre, step.grad_pre_stride,
                                 alpha_grad);
        if (reverse) row += rows;
        if (unit.members > 1) worker.advance();
      }
      if (plan.own_sums) {
        RowCursor<S> cursor = at.cursor(unit, chunk.t);
        sums.add(cursor, chunk.rows, plan.own_rows ? chunk_grad : at.grad_pre,
                 plan.own_rows ? at.step_stride : 0, done == chunk.n);
      }
      if (plan.own_rows && done < p.T) state = at.states.copied(unit, state);
    }
    state_gradients(unit, packed, state, worker);
  }

  // The unit's rows of a leak, but for those of each step.
  LeakRows<C> leak_rows(const Unit& unit, C* alpha_grad) const {
    LeakRows<C> leak;
    if (!at.states.leaks()) return leak;
    at.begin_leak(unit);
    leak.alpha = at.alpha_of_unit(unit);
    leak.stride = at.states.sums.stride;
    leak.carry = at.states.sums.row(unit, at.states.kCarry);
    leak.mixed = at.states.sums.row(unit, at.states.kMixed);
    leak.alpha_grad = alpha_grad;
    leak.row_stride = plan.sorts ? at.step_stride : p.D * p.H;
    return leak;
  }

  // When all steps are done. A member has advanced once before them and once with each.
  void state_gradients(const Unit& unit, const F* packed, const Rows<F>& state,
                       Worker& worker) const {
    const int64_t advanced = 1 + p.T;
    if (out.hx)
      grad_state(unit, packed, at.states.first_steps(unit, state), at.states.kFirst, at.starts(),
                 out.hx, advanced, worker);
    if (!out.reset_state) return;
    const Rows<F> resets = at.states.reset_sums(unit);
    if (unit.members > 1) worker.advance();
    grad_state(unit, packed, resets, at.states.kResetCarry, at.resets(), out.reset_state,
               advanced + 1, worker);
  }

  // What vectors and tiles read past a row's end, of which they keep nothing: a line at most.
  void clear_tails(C* rows) const {
    for (int64_t row = 0; row < plan.chunk_rows; ++row, rows += at.step_stride)
      __builtin_memset(rows + p.H, 0, 64);
  }

  // What f gave, of all steps: the output, but of rate.
  const S* values() const {
    return static_cast<const S*>(p.form == Form::rate ? p.saved : p.output);
  }
  // Rows of step t of the output, or of what has its shape, as they are, step_stride apart.
  S* gather(const Unit& unit, int64_t t, int64_t rows, void* from, C* scratch) const {
    S* const to = reinterpret_cast<S*>(scratch);
    for (int64_t i = 0; i < rows; ++i)
      __builtin_memcpy(to + i * at.step_stride, output_row<S>(p, from, unit.d, t, unit.sequence(i)),
                       p.H * sizeof(S));
    return to;
  }
  // Where a step finds these and the output's gradient: in the tensors, or in scratch where they
  // are stored in 16 bits or sorted, or grad_h_n joins in. What lies past a sequence's end must not
  // reach a leak.
  struct StepRows {
    const C* grad;
    int64_t grad_stride;
    const C* values;
    int64_t values_stride;
  };
  // What the next step needs lies `ahead` of it.
  StepRows step_rows(const Unit& unit, int64_t t, int64_t done, int64_t rows, int64_t ahead,
                     const Worker& worker) const {
    const int64_t first = p.row(t, unit.b0) * p.D * p.H + unit.d * p.H;
    const bool joins = g.grad_h_n && (p.ragged() || done == 0);
    const int64_t width = p.D * p.H;
    StepRows in{nullptr, width, nullptr, width};
    if constexpr (kNative<S>) {
      in.grad = g.grad_output ? static_cast<const S*>(g.grad_output) + first : nullptr;
      // (The identity's derivative reads none: any rows will do.)
      const bool reads = p.nonlinearity != Nonlinearity::identity || p.form != Form::none;
      in.values = reads || !in.grad ? values() + first : in.grad;
      if (!plan.sorts && !joins && !(p.ragged() && at.states.leaks())) return in;
    }
    C* const rows_of_grad = at.step_rows_of(worker, at.kGrad);
    C* const rows_of_values = at.step_rows_of(worker, at.kValues);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = unit.sequence(row);
      const int64_t place = (p.row(t, b) * p.D + unit.d) * p.H;
      const S* grad = g.grad_output ? static_cast<const S*>(g.grad_output) + place : nullptr;
      const S* values = this->values() + place;
      if (plan.sorts)  // what the sums for the weights will read
        for (int64_t j = 0; p.input.data && j < p.I; j += 64 / static_cast<int64_t>(sizeof(S)))
          __builtin_prefetch(input_row<S>(p, t, b) + j);
      const S* grad_h_n = joins && p.ends(unit.d, b, t)
                              ? static_cast<const S*>(g.grad_h_n) + (unit.d * p.B + b) * p.H
                              : nullptr;
      const bool past = !p.inside(b, t);
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        Vec<C> x = grad && !past ? load_some(grad + j, p.H - j) : Vec<C>{};
        if (plan.sorts && ahead) {
          if (grad) __builtin_prefetch(grad + ahead + j);
          __builtin_prefetch(values + ahead + j);
        }
        if (grad_h_n && p.form == Form::voltage) {  // h_n is the state, not the output
          C* const carry = at.states.sums.row(unit, at.states.kCarry, row) + j;
          store(carry, load(carry) + load_some(grad_h_n + j, p.H - j));
        } else if (grad_h_n) {
          x += load_some(grad_h_n + j, p.H - j);
        }
        store(rows_of_grad + row * at.step_stride + j, x);
        if (!kNative<S> || plan.sorts)
          store(rows_of_values + row * at.step_stride + j, load_some(values + j, p.H - j));
      }
    }
    in.grad = rows_of_grad;
    in.grad_stride = at.step_stride;
    if (!kNative<S> || plan.sorts) {
      in.values = rows_of_values;
      in.values_stride = at.step_stride;
    }
    return in;
  }

  // The gradient of hx or of reset_state: W_hh^T times rows of the gradient of pre-activations, and
  // what a leak adds past W_hh. output: what entered W_hh. In the compute type first: the states'
  // buffers are free now, but for the slower members.
  void grad_state(const Unit& unit, const F* packed, const Rows<F>& first, int carry,
                  const S* output, void* grad, int64_t n, const Worker& worker) const {
    const StateWeights<S, E> weights{plan, at.weight_hh(0)};
    C* const rows = at.step_rows_of(worker, at.kGrad);
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const auto piece = weights.await(unit, m, n, first, unit.size, worker);
      Projection<E> project{.packed = nullptr,
                            .a = piece.state,
                            .start = m > 0 ? rows : nullptr,
                            .start_stride = at.step_stride,
                            .out = rows,
                            .out_stride = at.step_stride,
                            .end = p.H};
      if (packed) {
        project.packed = packed + piece.packed_at;
        sweep(project, unit.size, unit.p0, unit.p1, p.H, piece.K);
      } else {  // there is only one step
        stream(project, at.weight_hh(unit.d), at.panels_of(worker), unit.size, unit.p0, unit.p1);
      }
    }
    for (int64_t i = 0; i < unit.size; ++i) {
      const int64_t b = unit.sequence(i);
      const int64_t row = (unit.d * p.B + b) * p.H;
      S* to = static_cast<S*>(grad) + row;
      const S* grad_h_n = static_cast<const S*>(g.grad_h_n) + row;
      const bool hand_on = g.grad_h_n && grad == out.hx && p.length(b) == 0;  // h_n was hx
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        Vec<C> x = load(rows + i * at.step_stride + j);
        if (p.form == Form::voltage) {
          const Vec<C> h = load_some(output + row + j, p.H - j);
          for_name(p.nonlinearity, BackwardVectors<C>{&x, &h, 1});
        }
        if (at.states.leaks()) x += load(at.states.sums.row(unit, carry, i) + j);
        store_some(to + j, hand_on ? load_some(grad_h_n + j, p.H - j) : x, p.H - j);
      }
    }
  }

  // All rows, shared out, when grad_pre is complete.
  void feature_gradients(const Worker& worker) const {
    const FeatureGradients<S, E> features = at.features_of(worker);
    if constexpr (kNative<S>)
      if (plan.streams) return features.stream(at.grad_pre, worker.rank, worker.size);
    for (int d = 0; plan.own_features && d < p.D; ++d) features.pack(d, 0, 1);
    const Range share = part(p.rows(), worker.rank, worker.size, E::kTileRows);
    features.write_all(at.grad_pre, share.begin, share.end);
  }

  // This worker's share of the hidden units: its sums over all rows, or all units' sums.
  void weight_gradients(const Worker& worker) const {
    const Range share = part(p.H, worker.rank, worker.size, E::kTileRows);
    for (int d = 0; d < p.D; ++d) {
      if (plan.own_sums) {
        const WeightGradients<S, E> sums = at.sums_of(d * plan.batch_parts);
        for (int64_t part = 1; part < plan.batch_parts; ++part)
          sums.add(at.sums_of(d * plan.batch_parts + part), share.begin, share.end);
        sums.write(d, share.begin, share.end);
      } else {
        const WeightGradients<S, E> sums(p, out, plan, share,
                                         at.sums + worker.rank * at.sums_bytes);
        Unit all{};
        all.d = d, all.size = p.B;
        RowCursor<S> cursor = at.cursor(all, 0);
        sums.add(cursor, p.rows(), at.grad_pre, 0, true);
        sums.write(d, 0, share.end - share.begin);
      }
    }
  }
};

template <class S, class E>
size_t backward_workspace(const Recurrence& p, const RecurrenceGradOut& out, int threads) {
  size_t bytes = 0;
  for (int size = 1; size <= threads; ++size) {
    const BackwardPlan plan = plan_backward(p, out, kShape<S, E>, this_machine(), threads, size);
    const size_t needed = BackwardLayout<S, E>(p, out, plan, size, Arena{nullptr}).bytes;
    if (needed > bytes) bytes = needed;
  }
  return bytes;
}

template <class S, class E>
void backward(const Recurrence& p, const RecurrenceGrad& g, const RecurrenceGradOut& out,
              char* workspace, Worker& worker) {
  const BackwardPlan plan =
      plan_backward(p, out, kShape<S, E>, this_machine(), worker.asked, worker.size);
  [[maybe_unused]] const typename E::Task task;
  const Backward<S, E> kernel{p, g, out, plan, {p, out, plan, worker.size, Arena{workspace}}};
  if (kernel.at.ih || (kernel.at.hh && !plan.own_weights)) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, plan, p, worker);
  worker.wait();
  if (out.input && !plan.own_rows) kernel.feature_gradients(worker);
  if (wants_weights(out)) kernel.weight_gradients(worker);
  if (out.alpha[0] && worker.rank == 0) alpha_gradients(kernel.at);
}

}  // namespace rnnext::RNNEXT_ISA
