// The recurrence, forward. The accumulators start from the bias, add W_ih x and W_hh h and go
// through the cell. Few rows would read W_ih from far memory at every step: for them, steps are
// taken in chunks, whose pre-activations come first, in one product, into scratch. The state is the
// output of the step before, or, where that has other numbers or is written by others, a row of
// scratch, rounded to the storage type: a sequence cut into several calls gives the same bits. S is
// the storage type, F that of the factors.
#pragma once

#include "cpu/rnn/cell.h"
#include "cpu/rnn/one_step.h"
#include "cpu/rnn/plan.h"

namespace rnnext::RNNEXT_ISA {

// One step of one unit, as if every sequence had a step t: Forward::finish_step mends the others.
template <class Factor, class Cell>
struct ForwardStep {
  using F = Factor;
  using C = Compute<F>;
  const F* packed;  // hh
  const F* packed_ih;
  int64_t H, p0;
  const C* start;  // the bias of panel p0, or, start_stride apart, rows of pre-activations
  Rows<F> state;
  int64_t next_stride, next_end;  // row stride, and where a row of `next` ends
  int64_t output_stride;
  int64_t start_stride = 0;
  Rows<F> features = {};
  int64_t I = 0;  // factors of the features
  F* next = nullptr;
  C* output = nullptr;  // null: it is `next`, or finish_step writes it
  bool far = false;     // the output's lines come from far memory

  template <int R, int NV>
  RNNEXT_TILE void tile(int64_t row, int64_t column, const F* panels, int64_t K) const {
    if (far) {
      constexpr int kFactors = (NV + kDepth<F> - 1) / kDepth<F>;
      F* const to = next + row * next_stride + column / kDepth<F>;
      if (output) fetch_tile<R, NV, true>(output + row * output_stride + column, output_stride);
      if (!output) fetch_tile<R, kFactors, true>(to, next_stride);
    }
    Vec<C> acc[R][NV];
    load_tile(acc, start + row * start_stride + column - p0 * kPanel<C>, start_stride);
    accumulate<false, F, R, NV>(acc, features.first + row * features.stride, features.stride,
                                packed_ih + column * I, I);
    accumulate<false, F, R, NV>(acc, state.first + row * state.stride, state.stride, panels, K);
    apply<Cell>(acc);
    store_factors(acc, next + row * next_stride, next_stride, column, next_end);
    if (output)
      store_tile_some(acc, output + row * output_stride + column, output_stride, H - column);
  }
};

template <class S, class F>
struct Forward {
  using C = Compute<S>;
  static constexpr int64_t kChunkBytes = 96 << 10;

  const Recurrence& p;
  Plan plan;
  bool own_weights;   // each unit packs its own
  bool projects;      // pre-activations come first, for a chunk of steps
  bool in_output;     // the state of the step before is its output
  bool in_h0;         // and that of the only step's is h0
  F *ih, *hh;         // packed weights: a copy for each unit or each direction
  int64_t unit_rows;  // the most sequences of a unit
  F* state;           // [units] of [2][unit_rows][state_stride]
  int64_t state_stride;
  int64_t columns;  // of a worker's chunk
  int64_t chunk_rows;
  char* scratch;
  size_t scratch_size;
  size_t bytes;

  // stacked: chunks are as short as a product allows that is not bound by reading the weights,
  // since the layer above waits for them.
  Forward(const Recurrence& p, int size, char* workspace, bool stacked = false)
      : p(p), plan(Plan::choose<F>(p, size)) {
    Arena arena{workspace};
    const int64_t sizes = weight_ih(0).packed_size() + weight_hh(0).packed_size();
    const bool small = sizes * sizeof(F) <= kOwnWeights;
    own_weights = !p.packed && (plan.batch_parts == 1 || small);
    const int64_t copies = p.packed ? 0 : own_weights ? plan.units : p.D;
    ih = arena.take<F>(copies * weight_ih(0).packed_size());
    hh = arena.take<F>(copies * weight_hh(0).packed_size());
    if (p.packed) {
      ih = static_cast<F*>(const_cast<void*>(p.packed));
      hh = ih + weight_ih(0).packed_size();
    }
    state_stride = scratch_stride<F>(p.H);
    unit_rows = split_sequences(p, 0, plan.batch_parts).most;
    projects = p.I == 0 || (p.T > 1 && (unit_rows < kFewRows || !small || plan.pieces > 1));
    const bool stored = kStoredAsFactors<S, F> && p.H % kDepth<F> == 0 && !p.lengths;
    in_output =
        stored && plan.hidden_parts == 1 && p.D * p.H * static_cast<int64_t>(sizeof(S)) < kSameSet;
    in_h0 = stored && p.hx && p.T == 1;
    state = arena.take<F>(plan.units * unit_state_size());
    columns = divide_up(panels_in<C>(p.H), plan.hidden_parts) * kPanel<C>;
    const int64_t row_bytes = max_of(scratch_stride<C>(columns), scratch_stride<F>(p.I)) *
                              static_cast<int64_t>(sizeof(C));
    const int64_t fit = stacked ? kFewRows : kChunkBytes / row_bytes;
    chunk_rows = projects ? max_of(unit_rows, min_of(fit, p.T * p.B)) : unit_rows;
    scratch_size = Scratch(*this, nullptr).bytes;
    scratch = arena.take<char>(size * static_cast<int64_t>(scratch_size));
    bytes = arena.used;
  }

  struct Scratch {  // of one worker
    C *bias, *pre;
    F* features;
    size_t bytes;
    Scratch(const Forward& f, char* base) {
      Arena arena{base};
      bias = arena.take<C>(f.columns);
      pre = arena.take<C>(f.projects ? f.chunk_rows * scratch_stride<C>(f.columns) : 0);
      features = arena.take<F>(f.p.I > 0 ? f.chunk_rows * scratch_stride<F>(f.p.I) : 0);
      arena.take<char>(kApart);
      bytes = arena.used;
    }
  };

  Matrix<S, F> weight_ih(int d) const {
    return {static_cast<const S*>(p.weight_ih[d]), p.I, p.H, true};
  }
  Matrix<S, F> weight_hh(int d) const {
    return {static_cast<const S*>(p.weight_hh[d]), p.H, p.H, true};
  }

  void pack_share(const Worker& worker) const {
    const Range share = part(panels_in<F>(p.H), worker.rank, worker.size);
    for (int d = 0; d < p.D; ++d) pack(d, d, share.begin, share.end);
  }
  void pack(int d, int64_t copy, int64_t q0, int64_t q1) const {
    const Matrix<S, F> weight_ih = this->weight_ih(d), weight_hh = this->weight_hh(d);
    for (int64_t q = q0; q < q1; ++q)
      weight_ih.pack(q, ih + (copy * weight_ih.panels() + q) * weight_ih.panel_size());
    pack_pieces<C>(plan, p, weight_hh, hh + copy * weight_hh.packed_size(), q0, q1);
  }
  int64_t copy_of(const Unit& unit) const { return own_weights ? unit.group : unit.d; }

  void run(const Unit& unit, Worker& worker, const Place& place = {}) const {
    with_activation(p.nonlinearity, Steps{*this, unit, worker, place});
  }
  struct Steps {
    const Forward& kernel;
    const Unit& unit;
    Worker& worker;
    const Place& place;
    template <Nonlinearity name>
    void operator()(Named<name>) const {
      kernel.steps<Activation<C, name>>(unit, worker, place);
    }
  };

  template <class Cell>
  void steps(const Unit& unit, Worker& worker, const Place& place) const {
    using Step = ForwardStep<F, Cell>;
    const Scratch s(*this, scratch + worker.rank * scratch_size);
    const int64_t pre_stride = scratch_stride<C>(columns), width = p.D * p.H;
    if (own_weights) pack(unit.d, unit.group, unit.p0, unit.p1);
    fill_bias(unit, s.bias);
    if (!in_h0) fill_state(unit);
    if (unit.members > 1) worker.advance();
    F* buffers[2] = {state_row(unit, 0, unit.b0), state_row(unit, 1, unit.b0)};
    Step step{packed_hh(unit), packed_ih(unit),  p.H,  unit.p0, s.bias, {buffers[0], state_stride},
              state_stride,    padded_columns(), width};
    if (in_h0) step.state = h0_rows(unit);
    step.far =
        (in_output || kNative<S>) && p.rows() * width * static_cast<int64_t>(sizeof(S)) >= kFar;
    const bool reverse = p.reverse[unit.d];
    for (int64_t done = 0; done < p.T;) {
      const Chunk chunk = next_chunk(p, unit, done, reverse, projects ? chunk_rows : 0);
      place.await(done + chunk.n);
      if (p.I > 0) step.features = features(unit, chunk, s);
      if (projects) {
        fill_pre(unit, chunk, step.features, s);
      } else {
        step.I = factors_in<F>(p.I);
      }
      int64_t row = reverse ? chunk.rows : 0;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? p.T - 1 - done : done;
        const int64_t rows = sequences(p, unit, t);
        if (reverse) row -= rows;
        S* output = static_cast<S*>(p.output) + (p.first_row(t) + unit.b0) * width + unit.d * p.H;
        if (projects) step.start = s.pre + row * pre_stride, step.start_stride = pre_stride;
        if (in_output) {
          step.next = reinterpret_cast<F*>(output);
          step.next_stride = width / kDepth<F>;
          step.next_end = p.H;
        } else {
          step.next = buffers[~done & 1];
          if constexpr (kNative<S>) step.output = output;
        }
        if (done > 0 || (p.hx && !in_h0)) {
          multiply(step, unit, rows, done, worker);
        } else {
          // In h0 nobody waits for anybody; or every state is zero.
          sweep(step, rows, unit.p0, unit.p1, p.H, in_h0 ? factors_in<F>(p.H) : 0);
        }
        if (!in_output) {
          if (unit.p1 == panels_in<C>(p.H)) clear_half_pairs(step.next, rows, state_stride, p.H);
          if (!kNative<S> || p.lengths)
            finish_step(unit, t, rows, step.state.first, step.next, output);
        }
        if (p.lengths || done + 1 == p.T) write_h_n(unit, t, rows, output);
        step.state = {step.next, step.next_stride};
        if (!reverse) row += rows;
        if (unit.members > 1) worker.advance();
        place.advance();
      }
    }
  }

  // The step's product with the state. Where a unit is shared, the sums take up each member's piece
  // of the state when it is there, in the order of k, and wait in `start`, rows of pre-activations.
  template <class Step>
  void multiply(Step& step, const Unit& unit, int64_t rows, int64_t done,
                const Worker& worker) const {
    const F* const weights = packed_hh(unit);
    const Rows<F> state = step.state;
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const Piece<F> piece =
          await_piece<C>(plan, p, unit, weight_hh(0), m, done + 1, state, rows, worker);
      step.packed = weights + piece.packed_at;
      step.state = piece.state;
      if (m + 1 == plan.pieces) {
        sweep(step, rows, unit.p0, unit.p1, p.H, piece.K);
      } else {
        const int64_t stride = step.start_stride;
        C* sums = const_cast<C*>(step.start) - unit.p0 * kPanel<C>;
        const Projection<F> add{step.packed, step.state,      sums, stride, sums,
                                stride,      padded_columns()};
        sweep(add, rows, unit.p0, unit.p1, p.H, piece.K);
      }
    }
    step.state = state;
  }

  // What a step does beyond its product where the state is scratch: 16-bit outputs, rows past their
  // sequence's end.
  void finish_step(const Unit& unit, int64_t t, int64_t rows, const F* state, F* next,
                   S* output) const {
    const int64_t from = unit.p0 * kPanel<C>, to = min_of(unit.p1 * kPanel<C>, p.H);
    for (int64_t row = 0; row < rows;
         ++row, state += state_stride, next += state_stride, output += p.D * p.H) {
      const bool past = t >= p.length(unit.b0 + row);
      for (int64_t j = from; j < to; j += kLanes<C>) {
        if (past) {
          copy_factors(next, state, j);
          store_some(output + j, Vec<C>{}, p.H - j);
        } else if constexpr (!kNative<S> && kStoredAsFactors<S, F>) {
          __builtin_memcpy(output + j, next + j / kDepth<F>,
                           min_of(kLanes<C>, p.H - j) * sizeof(S));
        } else if constexpr (!kNative<S>) {
          store_some(output + j, load(next + j), p.H - j);
          store(next + j, load_some(output + j, p.H - j));  // as a later call would read it
        }
      }
    }
  }
  // The state of the sequences whose last step t is.
  void write_h_n(const Unit& unit, int64_t t, int64_t rows, const S* output) const {
    const int64_t from = unit.p0 * kPanel<C>, to = min_of(unit.p1 * kPanel<C>, p.H);
    for (int64_t row = 0; row < rows; ++row, output += p.D * p.H) {
      const int64_t b = unit.b0 + row;
      if (!p.ends(unit.d, b, t) || t >= p.length(b)) continue;
      __builtin_memcpy(static_cast<S*>(p.h_n) + (unit.d * p.B + b) * p.H + from, output + from,
                       (to - from) * sizeof(S));
    }
  }

  int64_t unit_state_size() const { return 2 * unit_rows * state_stride + kApart / sizeof(F); }
  F* state_row(const Unit& unit, int buffer, int64_t b) const {
    return state + unit.group * unit_state_size() +
           (buffer * unit_rows + b - unit.b0) * state_stride;
  }

  void fill_bias(const Unit& unit, C* bias) const {
    for (int64_t j = 0; j < columns; j += kLanes<C>)
      store(bias + j, bias_of<S>(p, unit.d, unit.p0 * kPanel<C> + j));
  }

  // Both buffers start from h0: a sequence that begins late finds it in either.
  void fill_state(const Unit& unit) const {
    for (int64_t b = unit.b0; b < unit.b1; ++b) {
      const S* h0 = p.hx ? static_cast<const S*>(p.hx) + (unit.d * p.B + b) * p.H : nullptr;
      S* h_n = static_cast<S*>(p.h_n) + (unit.d * p.B + b) * p.H;
      const bool empty = p.length(b) == 0;
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        const Vec<C> h = h0 ? load_some(h0 + j, p.H - j) : Vec<C>{};
        for (int buffer = 0; buffer < 2; ++buffer)
          Factors<F>::store(state_row(unit, buffer, b), j, h);
        if (empty) store_some(h_n + j, h, p.H - j);
      }
    }
  }

  const F* packed_ih(const Unit& unit) const {
    return ih + copy_of(unit) * weight_ih(0).packed_size();
  }
  const F* packed_hh(const Unit& unit) const {
    return hh + copy_of(unit) * weight_hh(0).packed_size();
  }
  Rows<F> h0_rows(const Unit& unit) const {
    const S* first = static_cast<const S*>(p.hx) + (unit.d * p.B + unit.b0) * p.H;
    return {reinterpret_cast<const F*>(first), p.H / kDepth<F>};
  }
  int64_t padded_columns() const { return panels_in<C>(p.H) * kPanel<C>; }

  // Rows of features of a chunk, in memory's order: where they lie, or copied.
  Rows<F> features(const Unit& unit, const Chunk& chunk, const Scratch& s) const {
    Rows<F> rows;
    if (in_place(unit, chunk, &rows)) return rows;
    rows = {s.features, scratch_stride<F>(p.I)};
    F* x = s.features;
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t b = unit.b0; b < unit.b0 + sequences(p, unit, t); ++b, x += rows.stride)
        for (int64_t j = 0; j < p.I; j += kLanes<C>)
          Factors<F>::store(x, j, load_some(input_row<S>(p, t, b) + j, p.I - j));
    return rows;
  }

  // Pre-activations of a chunk without the recurrent term.
  void fill_pre(const Unit& unit, const Chunk& chunk, const Rows<F>& features,
                const Scratch& s) const {
    const int64_t stride = scratch_stride<C>(columns);
    const int64_t from = unit.p0 * kPanel<C>, to = unit.p1 * kPanel<C>;
    if (p.I > 0) {
      const Projection<F> project{packed_ih(unit), features, s.bias - from,   0,
                                  s.pre - from,    stride,   padded_columns()};
      return sweep(project, chunk.rows, unit.p0, unit.p1, p.H, factors_in<F>(p.I));
    }
    C* pre = s.pre;
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t b = unit.b0; b < unit.b0 + sequences(p, unit, t); ++b, pre += stride)
        for (int64_t j = from; j < to; j += kLanes<C>) {
          Vec<C> x = load(s.bias + j - from);
          if (p.input.data) x += load_some(input_row<S>(p, t, b) + unit.d * p.H + j, p.H - j);
          store(pre + j - from, x);
        }
  }

  // Whether the chunk's features can be read where they lie: rows of factors, one stride.
  bool in_place(const Unit& unit, const Chunk& chunk, Rows<F>* rows) const {
    int64_t apart = 0;
    if (kStoredAsFactors<S, F> && p.input.direct(p, chunk.n, unit.b0, unit.b1, &apart)) {
      const S* first = input_row<S>(p, chunk.t, unit.b0);
      *rows = {reinterpret_cast<const F*>(first), apart / kDepth<F>};
      return p.I % kDepth<F> == 0 && apart % kDepth<F> == 0;
    }
    return false;
  }
};

template <class S, class F>
size_t forward_workspace(const Recurrence& p, int threads) {
  if (OneStep<S, F>::takes(p)) return threads * OneStep<S, F>(p, nullptr).bytes;
  size_t bytes = 0;  // the team may be smaller than asked for
  for (int size = 1; size <= threads; ++size) {
    const size_t needed = Forward<S, F>(p, size, nullptr).bytes;
    if (needed > bytes) bytes = needed;
  }
  return bytes;
}

template <class S, class F>
void forward(const Recurrence& p, char* workspace, Worker& worker) {
  if (OneStep<S, F>::takes(p)) {
    const size_t bytes = OneStep<S, F>(p, nullptr).bytes;
    return OneStep<S, F>(p, workspace + worker.rank * bytes).run(worker);
  }
  const Forward<S, F> kernel(p, worker.size, workspace);
  if (!kernel.own_weights && !p.packed) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, kernel.plan, p, worker);
}

// W_ih, then W_hh, as a call with one piece of the state packs them for itself.
template <class S, class F>
size_t packed_bytes(const Recurrence& p) {
  const Forward<S, F> kernel(p, 1, nullptr);
  return (kernel.weight_ih(0).packed_size() + kernel.weight_hh(0).packed_size()) * sizeof(F);
}
template <class S, class F>
void pack(const Recurrence& p, char* packed) {
  const Forward<S, F> kernel(p, 1, nullptr);
  F* to = reinterpret_cast<F*>(packed);
  for (const Matrix<S, F>& weight : {kernel.weight_ih(0), kernel.weight_hh(0)}) {
    for (int64_t q = 0; q < weight.panels(); ++q) weight.pack(q, to + q * weight.panel_size());
    to += weight.packed_size();
  }
}

}  // namespace rnnext::RNNEXT_ISA
