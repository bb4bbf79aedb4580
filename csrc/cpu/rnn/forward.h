// The recurrence, forward. The sums start from the bias, add W_ih x and W_hh h and go through the
// cell. Where the plan projects, W_ih x of a chunk of steps comes first, into scratch.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/one_step.h"
#include "cpu/rnn/state_store.h"
#include "cpu/simd/normal.h"

namespace rnnext::RNNEXT_ISA {

// A layer's place in a wavefront of layers (stack.h): it waits for the steps of the one below.
struct Wavefront {
  Worker* worker = nullptr;  // of the stack's team; null: there is no stack
  int below = 0;             // the rank of the worker that computes the layer below
  int64_t steps_before = 0;  // how far that one has advanced when it begins with that layer

  void await(int64_t steps) const {
    if (worker && below != worker->rank) worker->wait_for(below, steps_before + steps);
  }
  void advance(int64_t steps) const {
    if (worker) worker->advance(steps);
  }
};

// One step of one unit, as if every sequence had a step t: ForwardStates::finish_step mends the
// others. Work for sweep.
template <class E>
struct ForwardStep {
  using Engine = E;
  using F = typename E::Factor;
  using C = Compute<F>;
  Epilogue<ForwardStep, C> epilogue;
  const F* packed;  // W_hh
  const F* packed_ih;
  int64_t H;
  const C* start;  // the bias, or, start_stride apart, rows of pre-activations; column 0
  Rows<F> state;
  int64_t output_stride = 0;
  int64_t next_stride = 0, next_end = 0;  // row stride, and where a row of `next` ends
  int64_t start_stride = 0;
  Rows<F> features = {};
  int64_t I = 0;  // factors of the features
  F* next = nullptr;
  C* output = nullptr;  // null: it is `next`, or ForwardStates::finish_step writes it
  bool far = false;     // the output's lines come from far memory
  LeakRows<C> leak = {};
  C* far_saved = nullptr;  // leak.saved, where its lines come from far memory too

  template <class Extent>
  RNNEXT_TILE void tile(Extent extent, int64_t row, int64_t column, const F* panels,
                        int64_t K) const {
    if (far) {
      F* const to = next + row * next_stride + column / kDepth<F>;
      if (output)
        extent.template prefetch<true>(output + row * output_stride + column, output_stride);
      if (!output) extent.template prefetch<true, kDepth<F>>(to, next_stride);
      if (far_saved)
        extent.template prefetch<true>(far_saved + row * leak.row_stride + column, leak.row_stride);
    }
    typename Extent::template Tile<E> sums(extent);
    sums.load(start + row * start_stride + column, start_stride);
    sums.add(features.first + row * features.stride, features.stride, packed_ih + column * I, I);
    sums.add(state.first + row * state.stride, state.stride, panels, K);
    sums.finish(*this, row, column);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    if (epilogue.out_of_line) return epilogue.call(*this, sums, row, column);
    forward_block<C>(epilogue.name, sums);
    store_factors(sums, next + row * next_stride, next_stride, column, next_end);
    if (output) store_tile(sums, output + row * output_stride + column, output_stride, H - column);
  }

  // The product with a piece of the state, added to the sums where they are.
  Projection<E> adding(C* sums, int64_t stride) const {
    return {.packed = packed,
            .a = state,
            .start = start,
            .start_stride = start_stride,
            .out = sums,
            .out_stride = stride,
            .end = panels_in<C>(H) * kPanel<C>};
  }
  void start_from(const C* sums, int64_t stride) { start = sums, start_stride = stride; }
};

// Where the weights, the states and each worker's scratch lie.
template <class S, class E>
struct ForwardLayout {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  F *ih, *hh;    // packed weights: a copy for each unit or each direction
  bool* finite;  // for each panel of each copy: whether W_hh is finite there
  ForwardStates<S, E> states;
  int64_t columns;  // of a worker's part of the hidden units
  char* scratch;    // [workers] of Scratch
  size_t scratch_bytes, bytes;

  ForwardLayout(const Recurrence& p, const ForwardPlan& plan, int workers, Arena arena)
      : p(p),
        plan(plan),
        ih(arena.take<F>(copies() * ih_size())),
        hh(arena.take<F>(copies() * hh_size())),
        finite(arena.take<bool>(copies() * finite_size())),
        states(p, plan, arena),
        columns(plan.member_panels(panels_in<C>(p.H)) * kPanel<C>) {
    if (p.packed_weights) {
      ih = static_cast<F*>(const_cast<void*>(p.packed_weights));
      hh = ih + weight_ih(0).packed_size();
    }
    scratch_bytes = Scratch(*this, nullptr).bytes;
    scratch = arena.take<char>(workers * static_cast<int64_t>(scratch_bytes));
    bytes = arena.used;
  }

  struct Scratch {  // of one worker
    C *bias, *alpha, *noise, *pre;
    F* features;
    F *ih, *hh;                // of the panels that are streamed
    int64_t *order, *present;  // of the unit, where sequences are sorted
    size_t bytes;
    Scratch(const ForwardLayout& at, char* base) {
      Arena arena{base};
      bias = arena.take<C>(at.columns);
      alpha = arena.take<C>(at.p.form == Form::none ? 0 : at.columns);
      noise = arena.take<C>(at.p.noise[0] ? at.columns : 0);
      pre = arena.take<C>(at.starts_from_rows() ? at.plan.chunk_rows * scratch_stride<C>(at.columns)
                                                : 0);
      const int64_t rows = divide_up(at.plan.chunk_rows, E::kRowBlock) * E::kRowBlock;
      features = arena.take<F>(at.p.I > 0 ? rows * scratch_stride<F>(at.p.I) : 0);
      ih = arena.take<F>(at.plan.streams ? kStreamed<F> * at.weight_ih(0).panel_size() : 0);
      hh = arena.take<F>(at.plan.streams ? kStreamed<F> * at.weight_hh(0).panel_size() : 0);
      order = arena.take<int64_t>(at.plan.sorts ? at.plan.unit_rows : 0);
      present = arena.take<int64_t>(at.plan.sorts ? at.p.T : 0);
      arena.take<char>(kApart);
      bytes = arena.used;
    }
  };
  Scratch scratch_of(const Worker& worker) const {
    return {*this, scratch + worker.rank * scratch_bytes};
  }

  // Whether each step's sums start from rows of their own, and not from the bias.
  bool starts_from_rows() const { return plan.projects || p.noise[0]; }
  int64_t copies() const {
    return p.packed_weights || plan.streams ? 0 : plan.own_weights ? plan.units : p.D;
  }
  int64_t copy_of(const Unit& unit) const { return plan.own_weights ? unit.group : unit.d; }
  Matrix<S, F> weight_ih(int d) const {
    return {static_cast<const S*>(p.weight_ih[d]), p.I, p.H, true};
  }
  Matrix<S, F> weight_hh(int d) const {
    return {static_cast<const S*>(p.weight_hh[d]), p.H, p.H, true};
  }
  // Elements of a copy of the packed weights, and of the gap before the next thread's copy.
  int64_t ih_size() const { return weight_ih(0).packed_size() + gap<F>(copies()); }
  int64_t hh_size() const { return weight_hh(0).packed_size() + gap<F>(copies()); }
  int64_t finite_size() const { return panels_in<C>(p.H) + gap<bool>(copies()); }
  F* packed_ih(int64_t copy) const { return ih + copy * ih_size(); }
  F* packed_hh(int64_t copy) const { return hh + copy * hh_size(); }

  // Panels [q0, q1) of direction d into a copy.
  void pack(int d, int64_t copy, int64_t q0, int64_t q1) const {
    const Matrix<S, F> weight = weight_ih(d);
    for (int64_t q = q0; q < q1; ++q) weight.pack(q, packed_ih(copy) + q * weight.panel_size());
    if (!p.multiplies_state()) return;
    const StateWeights<S, E> state{plan, weight_hh(d)};
    for (int64_t q = q0; q < q1; ++q)
      finite[copy * finite_size() + q] = state.pack(packed_hh(copy), q, q + 1);
  }
  // Whether the unit's part of W_hh is finite.
  bool is_finite(const Unit& unit) const {
    const bool* of_copy = finite + copy_of(unit) * finite_size();
    for (int64_t q = unit.p0; q < unit.p1 && copies() > 0 && p.multiplies_state(); ++q)
      if (!of_copy[q]) return false;
    return true;
  }
};

template <class S, class E>
struct Forward {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  ForwardLayout<S, E> at;

  void pack_share(const Worker& worker) const {
    const Range share = part(panels_in<F>(p.H), worker.rank, worker.size);
    for (int d = 0; d < p.D; ++d) at.pack(d, d, share.begin, share.end);
  }

  void run(const Unit& unit, Worker& worker, const Wavefront& wavefront = {}) const {
    const auto s = at.scratch_of(worker);
    steps(plan.sorts ? sorted(unit, p, s.order, s.present) : unit, worker, wavefront);
  }

  void steps(const Unit& unit, Worker& worker, const Wavefront& wavefront) const {
    const auto s = at.scratch_of(worker);
    const int64_t pre_stride = scratch_stride<C>(at.columns);
    const int64_t first_column = unit.p0 * kPanel<C>, copy = at.copy_of(unit);
    if (plan.own_weights && !plan.streams) at.pack(unit.d, unit.group, unit.p0, unit.p1);
    for (int64_t j = 0; j < at.columns; j += kLanes<C>)
      store(s.bias + j, bias_of<S>(p, unit.d, first_column + j));
    const StateWeights<S, E> weights{plan, at.weight_hh(0)};
    ForwardStep<E> step{.epilogue = forward_epilogue<S, ForwardStep<E>>(p),
                        .packed = at.packed_hh(copy),
                        .packed_ih = at.packed_ih(copy),
                        .H = p.H,
                        .start = s.bias - first_column,
                        .state = at.states.initial_state(unit)};
    if (unit.members > 1) worker.advance();
    step.far = plan.far;
    if (p.form != Form::none) {
      for (int64_t j = 0; j < at.columns; j += kLanes<C>)
        store(s.alpha + j, alpha_of<S>(p, unit.d, first_column + j));
      step.leak.alpha = s.alpha - first_column;
    }
    for (int64_t j = 0; p.noise[0] && j < at.columns; j += kLanes<C>)
      store(s.noise + j, of_unit<S>(p, p.noise[unit.d], first_column + j));
    // Zeros need no product; but a weight that is not finite makes NaN of them.
    const bool starts_from_zeros =
        !p.hx && !p.reset_state && p.form != Form::voltage && at.is_finite(unit);
    const bool reverse = p.reverse[unit.d];
    for (int64_t done = 0; done < p.T;) {
      const Chunk chunk = next_chunk(p, unit, done, reverse, plan.projects ? plan.chunk_rows : 0);
      wavefront.await(done + chunk.n);
      if (p.I > 0) step.features = feature_rows<S, E>(p, unit, chunk, s.features);
      if (p.noise[0]) draw_noise(unit, chunk, s, first_column);
      if (plan.projects) {
        const C* const start = p.noise[0] ? s.pre : s.bias;
        fill_pre(unit, chunk, step, start - first_column, p.noise[0] ? pre_stride : 0,
                 s.pre - first_column);
      } else {
        step.I = factors_in<F>(p.I);
      }
      int64_t row = reverse ? chunk.rows : 0;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? p.T - 1 - done : done;
        const int64_t rows = sequences(p, unit, t);
        if (reverse) row -= rows;
        C* const pre = s.pre + row * pre_stride - first_column;
        if (at.starts_from_rows()) step.start_from(pre, pre_stride);
        at.states.set_destinations(step, unit, t, done);
        if (plan.streams) {
          if (!plan.from_hx && p.multiplies_state())
            weights.await(unit, 0, done + 1, step.state, rows, worker);
          stream(step, unit, s, rows);
        } else if (done == 0 && (plan.from_hx || starts_from_zeros)) {
          // Nobody waits for anybody.
          step.packed = at.packed_hh(copy);
          sweep(step, rows, unit.p0, unit.p1, p.H, plan.from_hx ? factors_in<F>(p.H) : 0);
        } else {
          weights.multiply(step, unit, at.packed_hh(copy), pre, pre_stride, rows, done + 1, worker);
        }
        at.states.finish_step(step, unit, t, done, rows);
        if (!reverse) row += rows;
        if (unit.members > 1) worker.advance();
      }
      wavefront.advance(chunk.n);
    }
  }

  // The only step: panels are packed into one place, and multiplied with all rows from there.
  template <class Step>
  void stream(Step& step, const Unit& unit, const typename ForwardLayout<S, E>::Scratch& s,
              int64_t rows) const {
    const Matrix<S, F> ih = at.weight_ih(unit.d), hh = at.weight_hh(unit.d);
    const int64_t K = p.multiplies_state() ? factors_in<F>(p.H) : 0;
    for (int64_t q = unit.p0; q < unit.p1; q += kStreamed<F>) {
      const int64_t end = min_of(q + kStreamed<F>, unit.p1);
      step.packed_ih = ih.pack_panels(q, end, s.ih);
      if (K > 0) step.packed = hh.pack_panels(q, end, s.hh);
      sweep(step, rows, q, end, p.H, K);
    }
  }

  // The biases and the noise of a chunk's rows: what else is added comes after them, whether the
  // features are multiplied here or in the step.
  void draw_noise(const Unit& unit, const Chunk& chunk,
                  const typename ForwardLayout<S, E>::Scratch& s, int64_t first_column) const {
    C* row = s.pre - first_column;
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t i = 0, n = sequences(p, unit, t); i < n; ++i) {
        add_noise<C>(*p.noise_keys, p.noise_from + t, unit.sequence(i), unit.d,
                     s.noise - first_column, s.bias - first_column, row, first_column,
                     unit.p1 * kPanel<C>);
        row += scratch_stride<C>(at.columns);
      }
  }

  // Pre-activations of a chunk without the recurrent term, from rows of which `start` is the first;
  // start and pre begin with column 0.
  template <class Step>
  void fill_pre(const Unit& unit, const Chunk& chunk, const Step& step, const C* start,
                int64_t start_stride, C* pre) const {
    const int64_t stride = scratch_stride<C>(at.columns);
    if (p.I > 0) {
      const Projection<E> project{.packed = step.packed_ih,
                                  .a = step.features,
                                  .start = start,
                                  .start_stride = start_stride,
                                  .out = pre,
                                  .out_stride = stride,
                                  .end = panels_in<C>(p.H) * kPanel<C>};
      return sweep(project, chunk.rows, unit.p0, unit.p1, p.H, factors_in<F>(p.I));
    }
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t i = 0, n = sequences(p, unit, t); i < n; ++i) {
        const S* const row =
            p.input.data ? input_row<S>(p, t, unit.sequence(i)) + unit.d * p.H : nullptr;
        for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
          Vec<C> x = load(start + j);
          if (row) x += load_some(row + j, p.H - j);
          store(pre + j, x);
        }
        start += start_stride, pre += stride;
      }
  }
};

template <class S, class E>
size_t forward_workspace(const Recurrence& p, int threads) {
  size_t bytes = 0;  // the team may be smaller than asked for
  for (int size = 1; size <= threads; ++size) {
    const ForwardPlan plan = plan_forward(p, kShape<S, E>, this_machine(), size);
    const size_t needed = plan.one_step ? size * OneStep<S, E>(p, nullptr).bytes
                                        : ForwardLayout<S, E>(p, plan, size, Arena{nullptr}).bytes;
    if (needed > bytes) bytes = needed;
  }
  return bytes;
}

template <class S, class E>
void forward(const Recurrence& p, char* workspace, Worker& worker) {
  const ForwardPlan plan = plan_forward(p, kShape<S, E>, this_machine(), worker.size);
  if (plan.one_step) {
    const size_t bytes = OneStep<S, E>(p, nullptr).bytes;
    return OneStep<S, E>(p, workspace + worker.rank * bytes).run(worker);
  }
  [[maybe_unused]] const typename E::Task task;
  const Forward<S, E> kernel{p, plan, {p, plan, worker.size, Arena{workspace}}};
  if (!plan.own_weights && !p.packed_weights) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, plan, p, worker);
}

// W_ih, then W_hh, as a call with one piece of the state packs them for itself.
template <class S, class E>
void pack(const Recurrence& p, char* packed) {
  using F = typename E::Factor;
  F* to = reinterpret_cast<F*>(packed);
  for (const Matrix<S, F>& weight :
       {Matrix<S, F>{static_cast<const S*>(p.weight_ih[0]), p.I, p.H, true},
        Matrix<S, F>{static_cast<const S*>(p.weight_hh[0]), p.H, p.H, true}}) {
    for (int64_t q = 0; q < weight.panels(); ++q) weight.pack(q, to + q * weight.panel_size());
    to += weight.packed_size();
  }
}

}  // namespace rnnext::RNNEXT_ISA
