// The forward pass. The sums start from the bias, add W_ih x and W_hh h, and go through the
// epilogue. If the plan projects, W_ih x of a chunk of steps is computed first, into scratch; for a
// gated cell it always does, and the product with the state goes to scratch too, where its gates
// read both.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/gates.h"
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
  Rows<const C> start;  // the bias, or rows of pre-activations; column 0
  Rows<const F> state;
  Rows<const F> features = {};
  int64_t I = 0;  // factors of the features
  Rows<F> next = {};
  int64_t next_end = 0;  // where a row of `next` ends
  Rows<C> output = {};   // none: it is `next`, or ForwardStates::finish_step writes it
  bool far = false;      // whether the output's lines come from far memory
  LeakRows<C> leak = {};
  C* far_saved = nullptr;  // leak.saved, if its lines may come from far memory too

  template <class Extent>
  RNNEXT_TILE void tile(Extent extent, int64_t row, int64_t column, const F* panels, int64_t K,
                        const Ahead* ahead) const {
    if (far) {
      F* const to = next[row] + column / kDepth<F>;
      if (output) extent.template prefetch<true>(output[row] + column, output.stride);
      if (!output) extent.template prefetch<true, kDepth<F>>(to, next.stride);
      if (far_saved)
        extent.template prefetch<true>(far_saved + row * leak.row_stride + column, leak.row_stride);
    }
    typename Extent::template Tile<E> sums(extent);
    sums.load(start[row] + column, start.stride);
    sums.add(features[row], features.stride, packed_ih + column * I, I);
    sums.add(state[row], state.stride, panels, K, ahead);
    sums.finish(*this, row, column);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    if (epilogue.out_of_line) return epilogue.call(*this, sums, row, column);
    for_inlined(epilogue.name, [&](auto name) {
      for_block<R, NV>([&](int r, int j) {
        sums[r][j] = Activation<C, decltype(name)::value>::forward(sums[r][j]);
      });
    });
    store_factors(sums, next[row], next.stride, column, next_end);
    if (output) store_tile(sums, output[row] + column, output.stride, H - column);
  }
};

// Where the weights, the states and each worker's scratch lie.
template <class S, class E>
struct ForwardLayout {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  Arrays<F> ih, hh;     // packed weights: a copy for each unit or each direction
  Arrays<bool> finite;  // for each panel of each copy: whether W_hh is finite there
  ForwardStates<S, E> states;
  GateColumns<C> order;  // of the columns of a product
  int64_t columns;       // of a worker's part of the hidden units, of all gates
  Arrays<char> scratch;  // [workers] of Scratch
  size_t bytes;

  ForwardLayout(const Recurrence& p, const ForwardPlan& plan, int workers, Arena arena)
      : p(p),
        plan(plan),
        ih(arena.take_apart<F>(plan.copies(p.D), weight_ih(0).packed_size())),
        hh(arena.take_apart<F>(plan.copies(p.D), weight_hh(0).packed_size())),
        finite(arena.take_apart<bool>(plan.copies(p.D), weight_hh(0).panels())),
        states(p, plan, arena),
        order{p.H, p.gates()},
        columns(plan.member_panels(panels_in<C>(p.H)) * p.gates() * kPanel<C>) {
    if (plan.weights == Weights::given) {
      ih.first = static_cast<F*>(const_cast<void*>(p.packed_weights));
      hh.first = ih.first + weight_ih(0).packed_size();
    }
    scratch = arena.take<char>(workers, Scratch(*this, nullptr).bytes);
    bytes = arena.used;
  }

  struct Scratch {  // of one worker
    C *bias, *alpha, *noise, *pre;
    C *bias_hh,
        *hidden;  // of a gated cell, where `bias` is bias_ih alone: [hidden_rows] of columns
    F* features;
    F *ih, *hh;                // the panels that are streamed
    int64_t *order, *present;  // the unit's, if sequences are sorted
    size_t bytes;
    Scratch(const ForwardLayout& at, char* base) {
      Arena arena{base};
      bias = arena.take<C>(at.columns);
      alpha = arena.take<C>(is_leaky(at.p.cell) ? at.columns : 0);
      const bool gated = is_gated(at.p.cell);
      bias_hh = arena.take<C>(gated ? at.columns : 0);
      hidden = arena.take<C>(gated ? at.plan.unit_rows * at.hidden_stride() : 0);
      noise = arena.take<C>(at.p.noise[0] ? at.columns : 0);
      pre = arena.take<C>(at.starts_from_rows() ? at.plan.chunk_rows * scratch_stride<C>(at.columns)
                                                : 0);
      const int64_t rows = divide_up(at.plan.chunk_rows, E::kRowBlock) * E::kRowBlock;
      features = arena.take<F>(at.p.I > 0 ? rows * scratch_stride<F>(at.p.I) : 0);
      const int64_t panels = at.plan.weights == Weights::streamed ? kStreamed<F> : 0;
      ih = arena.take<F>(panels * at.weight_ih(0).panel_size());
      hh = arena.take<F>(panels * at.weight_hh(0).panel_size());
      order = arena.take<int64_t>(at.plan.sorts ? at.plan.unit_rows : 0);
      present = arena.take<int64_t>(at.plan.sorts ? at.p.T : 0);
      arena.take<char>(kApart);
      bytes = arena.used;
    }
  };
  Scratch scratch_of(const Worker& worker) const { return {*this, scratch[worker.rank]}; }

  // How many panels of units are multiplied with the state before their gates follow: as many as
  // leave the products of a step in the first cache, or all if a product comes in pieces.
  int64_t hidden_panels() const {
    const int64_t all = plan.member_panels(panels_in<C>(p.H));
    if (plan.pieces > 1) return all;
    const int64_t bytes = plan.unit_rows * p.gates() * kPanel<C> * static_cast<int64_t>(sizeof(C));
    return min_of(all, max_of(1, kGateBytes / bytes));
  }
  int64_t hidden_stride() const {
    return scratch_stride<C>(hidden_panels() * p.gates() * kPanel<C>);
  }
  // Whether each step's sums start from rows of scratch instead of the bias.
  bool starts_from_rows() const { return plan.projects || p.noise[0]; }
  int64_t copy_of(const Unit& unit) const {
    return plan.weights == Weights::own ? unit.group : unit.d;
  }
  Matrix<S, F> weight_ih(int d) const {
    return {static_cast<const S*>(p.weight_ih[d]), p.I, p.H, true, p.I, p.gates()};
  }
  Matrix<S, F> weight_hh(int d) const {
    return {static_cast<const S*>(p.weight_hh[d]), p.H, p.H, true, p.H, p.gates()};
  }

  // Packs panels [u0, u1) of units of direction d into a copy.
  void pack(int d, int64_t copy, int64_t u0, int64_t u1) const {
    const int64_t q0 = order.panels(u0), q1 = order.panels(u1);
    const Matrix<S, F> weight = weight_ih(d);
    for (int64_t q = q0; q < q1; ++q) weight.pack(q, ih[copy] + q * weight.panel_size());
    if (!p.multiplies_state()) return;
    const StateWeights<S, E> state{plan, weight_hh(d)};
    for (int64_t q = q0; q < q1; ++q) finite[copy][q] = state.pack(hh[copy], q, q + 1);
  }
  // Whether the unit's part of W_hh is finite.
  bool is_finite(const Unit& unit) const {
    const bool* const of_copy = finite[copy_of(unit)];
    for (int64_t q = order.panels(unit.p0), end = order.panels(unit.p1);
         q < end && of_copy && p.multiplies_state(); ++q)
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

  RNNEXT_TILE void steps(const Unit& unit, Worker& worker, const Wavefront& wavefront) const {
    const auto s = at.scratch_of(worker);
    const int64_t first_column = at.order.begin(unit.p0), copy = at.copy_of(unit);
    const bool gated = is_gated(p.cell);
    const Rows<C> pre{s.pre - first_column, scratch_stride<C>(at.columns)};
    if (plan.weights == Weights::own) at.pack(unit.d, unit.group, unit.p0, unit.p1);
    const auto fill = [&](C* values, const auto& of) {
      for (int64_t j = 0; j < at.columns; j += kLanes<C>) store(values + j, of(first_column + j));
    };
    const auto of_gates = [&](const void* biases) {
      return [&, biases](int64_t j) {
        return biases ? RNNEXT_ISA::of_gates<S>(p, biases, j / kLanes<C>) : Vec<C>{};
      };
    };
    if (gated) {
      fill(s.bias, of_gates(p.bias_ih[unit.d]));
      fill(s.bias_hh, of_gates(p.bias_hh[unit.d]));
    } else {
      fill(s.bias, [&](int64_t j) { return bias_of<S>(p, unit.d, j); });
    }
    const StateWeights<S, E> weights{plan, at.weight_hh(0)};
    ForwardStep<E> step{.epilogue = epilogue_of<ForwardEpilogue, S, ForwardStep<E>>(p, kNative<S>),
                        .packed = at.hh[copy],
                        .packed_ih = at.ih[copy],
                        .H = p.H,
                        .start = {s.bias - first_column, 0},
                        .state = at.states.initial_state(unit)};
    if (unit.members > 1) worker.advance();
    step.far = plan.far;
    if (is_leaky(p.cell)) {
      fill(s.alpha, [&](int64_t j) { return alpha_of<S>(p, unit.d, j); });
      step.leak.alpha = s.alpha - first_column;
    }
    if (p.noise[0]) fill(s.noise, [&](int64_t j) { return of_unit<S>(p, p.noise[unit.d], j); });
    // A state of zeros needs no product, unless a weight that is not finite turns zeros into NaN.
    const bool starts_from_zeros =
        !p.hx && !p.reset_state && p.cell != Cell::voltage && at.is_finite(unit);
    const bool reverse = p.reverse[unit.d];
    for (int64_t done = 0; done < p.T;) {
      const Chunk chunk = next_chunk(p, unit, done, reverse, plan.projects ? plan.chunk_rows : 0);
      wavefront.await(done + chunk.n);
      if (p.I > 0) step.features = feature_rows<S, E>(p, unit, chunk, s.features);
      if (p.noise[0]) draw_noise(unit, chunk, s, first_column);
      if (plan.projects) {
        const Rows<const C> bias{s.bias - first_column, 0};
        fill_pre(unit, chunk, step, p.noise[0] ? pre : bias, pre);
      } else {
        step.I = factors_in<F>(p.I);
      }
      int64_t row = reverse ? chunk.rows : 0;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? p.T - 1 - done : done;
        const int64_t rows = sequences(p, unit, t);
        if (reverse) row -= rows;
        const Rows<C> own{pre[row], pre.stride};
        if (at.starts_from_rows()) step.start = own;
        at.states.set_destinations(step, unit, t, done);
        const bool from_zeros = done == 0 && starts_from_zeros;
        if (gated) {
          gated_step(step, unit, s, own, rows, done + 1, from_zeros, worker);
        } else if (plan.weights == Weights::streamed) {
          if (!plan.from_hx && p.multiplies_state())
            weights.await(unit, 0, done + 1, step.state, rows, worker);
          stream(step, unit, s, rows);
        } else if (from_zeros || (done == 0 && plan.from_hx)) {
          // The members need not wait for each other.
          step.packed = at.hh[copy];
          sweep(step, rows, unit.p0, unit.p1, p.H, plan.from_hx ? factors_in<F>(p.H) : 0);
        } else {
          weights.multiply(step, unit, at.hh[copy], own, rows, done + 1, worker);
        }
        at.states.finish_step(step, unit, t, done, rows);
        if (!reverse) row += rows;
        if (unit.members > 1) worker.advance();
      }
      wavefront.advance(chunk.n);
    }
  }

  // Computes a step of a gated cell, whose pre-activations from the input are at `x`: the product
  // with the state, some panels of units at a time, and their gates. n: as StateWeights::multiply.
  template <class Step>
  void gated_step(Step& step, const Unit& unit, const typename ForwardLayout<S, E>::Scratch& s,
                  const Rows<C>& x, int64_t rows, int64_t n, bool from_zeros,
                  const Worker& worker) const {
    const StateWeights<S, E> weights{plan, at.weight_hh(0)};
    const GateColumns<C>& order = at.order;
    const int64_t first = order.begin(unit.p0), some = at.hidden_panels();
    const Rows<const F> state = step.state;
    for (int64_t m = 0; m < plan.pieces; ++m) {
      typename StateWeights<S, E>::Piece piece{state, 0, 0};
      if (!from_zeros) piece = weights.await(unit, m, n, state, rows, worker);
      for (int64_t u0 = unit.p0; u0 < unit.p1; u0 += some) {
        const int64_t u1 = min_of(u0 + some, unit.p1), begin = order.begin(u0);
        const Rows<C> hidden{s.hidden - begin, at.hidden_stride()};
        const Projection<E> product{
            .packed = at.hh[at.copy_of(unit)] + piece.packed_at,
            .a = piece.state,
            .start = m == 0 ? Rows<const C>{s.bias_hh - first, 0} : Rows<const C>(hidden),
            .out = hidden,
            .end = order.begin(u1)};
        const int64_t then = u1 < unit.p1 ? order.panels(u1) : order.panels(unit.p0);
        sweep(product, rows, order.panels(u0), order.panels(u1), order.begin(u1), piece.K,
              plan.fetches ? then : -1);
        if (m + 1 < plan.pieces) continue;
        with_gates<S>(p.cell, [&]<class Gates>(Gates) {
          forward_gates<Gates, S>(step, Rows<const C>(x), Rows<const C>(hidden), rows, u0, u1);
        });
      }
    }
  }

  // Computes a single step: some panels at a time are packed to one place and multiplied with all
  // rows from there.
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

  // Fills a chunk's rows with the biases and the noise, from which all other sums start.
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

  // Fills `pre` with a chunk's pre-activations without the recurrent term, which start from the
  // rows at `start`. Both begin with column 0.
  template <class Step>
  void fill_pre(const Unit& unit, const Chunk& chunk, const Step& step, const Rows<const C>& start,
                const Rows<C>& pre) const {
    if (p.I > 0) {
      const Projection<E> project{.packed = step.packed_ih,
                                  .a = step.features,
                                  .start = start,
                                  .out = pre,
                                  .end = at.order.panels() * kPanel<C>};
      return sweep(project, chunk.rows, at.order.panels(unit.p0), at.order.panels(unit.p1),
                   at.order.begin(unit.p1), factors_in<F>(p.I),
                   plan.fetches ? at.order.panels(unit.p0) : -1);
    }
    int64_t to = 0;
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t i = 0, n = sequences(p, unit, t); i < n; ++i, ++to) {
        const S* const row = p.input.data
                                 ? input_row<S>(p, t, unit.sequence(i)) + unit.d * p.gates() * p.H
                                 : nullptr;
        for (int64_t j = at.order.begin(unit.p0); j < at.order.begin(unit.p1); j += kLanes<C>) {
          Vec<C> x = load(start[to] + j);
          if (row) x += of_gates<S>(p, row, j / kLanes<C>);
          store(pre[to] + j, x);
        }
      }
  }
};

template <class S, class E>
size_t forward_workspace(const Recurrence& p, int threads) {
  size_t bytes = 0;  // the most of all teams, which may be smaller than asked for
  for (int size = 1; size <= threads; ++size) {
    const ForwardPlan plan = plan_forward(p, kShape<S, E>, this_machine(), size);
    const size_t needed = plan.weights == Weights::unpacked
                              ? size * OneStep<S, E>(p, nullptr).bytes
                              : ForwardLayout<S, E>(p, plan, size, Arena{nullptr}).bytes;
    if (needed > bytes) bytes = needed;
  }
  return bytes;
}

template <class S, class E>
void forward(const Recurrence& p, char* workspace, Worker& worker) {
  [[maybe_unused]] const typename E::Task task;
  const ForwardPlan plan = plan_forward(p, kShape<S, E>, this_machine(), worker.size);
  if (plan.weights == Weights::unpacked) {
    const size_t bytes = OneStep<S, E>(p, nullptr).bytes;
    return OneStep<S, E>(p, workspace + worker.rank * bytes).run(worker);
  }
  const Forward<S, E> kernel{p, plan, {p, plan, worker.size, Arena{workspace}}};
  if (plan.weights == Weights::shared) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, plan, p, worker);
}

// Packs W_ih, then W_hh, as a call whose state is one piece packs them for itself.
template <class S, class E>
void pack(const Recurrence& p, char* packed) {
  using F = typename E::Factor;
  [[maybe_unused]] const typename E::Task task;
  F* to = reinterpret_cast<F*>(packed);
  const auto pack_all = [&](const void* values, int64_t K) {
    const Matrix<S, F> weight{static_cast<const S*>(values), K, p.H, true, K, p.gates()};
    for (int64_t q = 0; q < weight.panels(); ++q) weight.pack(q, to + q * weight.panel_size());
    to += weight.packed_size();
  };
  pack_all(p.weight_ih[0], p.I);
  pack_all(p.weight_hh[0], p.H);
}

}  // namespace rnnext::RNNEXT_ISA
