// The recurrence, forward. Each worker takes steps in chunks: first the pre-activations of a chunk
// of steps into scratch (one product with W_ih, or rows copied), then, step by step, the
// accumulators start from those rows, add W_hh h and go through the cell. The state lives in
// scratch [2][B][H] in the compute type, rounded to the storage type at every step, so that a
// sequence cut into several calls gives the same bits. S is the storage type, F that of the
// factors.
#pragma once

namespace rnnext::RNNEXT_ISA {

// out[row] = start + a[row] * panels: rows of scratch from rows of features.
template <class Factor>
struct Projection {
  using F = Factor;
  using C = Compute<F>;
  const F* packed;
  const F* a;
  int64_t a_stride;
  const C* start;  // [panels]
  C* out;
  int64_t out_stride, p0;

  template <int R, int NV>
  RNNEXT_TILE void tile(int64_t row, int64_t column, const F* panels, int64_t K) const {
    const int64_t at = column - p0 * kPanel<C>;
    C* to = out + row * out_stride + at;
    Vec<C> acc[R][NV];
    load_tile(acc, start + at, 0);
    accumulate<false, F, R, NV>(acc, a + row * a_stride, a_stride, panels, K);
    store_tile(acc, to, out_stride);
  }
};

// One step of one unit, as if every sequence had a step t: Forward::finish_step mends the others.
template <class Factor, class Cell>
struct ForwardStep {
  using F = Factor;
  using C = Compute<F>;
  const F* packed;  // hh
  int64_t H, p0;
  C* pre;  // first row, panel p0
  int64_t pre_stride;
  const F* state;  // first row
  F* next;
  int64_t state_stride;
  C* output;  // first row, or null: finish_step writes it
  int64_t output_stride;

  template <int R, int NV>
  RNNEXT_TILE void tile(int64_t row, int64_t column, const F* panels, int64_t K) const {
    const C* from = pre + row * pre_stride + column - p0 * kPanel<C>;
    Vec<C> acc[R][NV];
    load_tile(acc, from, pre_stride);
    accumulate<false, F, R, NV>(acc, state + row * state_stride, state_stride, panels, K);
    apply<Cell>(acc);
    store_factors(acc, next + row * state_stride, state_stride, column);
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
  F *ih, *hh;         // packed weights: a copy for each unit or each direction
  int64_t unit_rows;  // the most sequences of a unit
  F* state;           // [units] of [2][unit_rows][state_stride]
  int64_t state_stride;
  int64_t columns;  // of a worker's chunk
  int64_t chunk_rows;
  char* scratch;
  size_t scratch_size;
  size_t bytes;

  Forward(const Recurrence& p, int size, char* workspace) : p(p), plan(Plan::choose<F>(p, size)) {
    Arena arena{workspace};
    const int64_t sizes = weight_ih(0).packed_size() + weight_hh(0).packed_size();
    own_weights = plan.batch_parts == 1 || sizes * sizeof(F) <= kOwnWeights;
    const int64_t copies = own_weights ? plan.units : p.D;
    ih = arena.take<F>(copies * weight_ih(0).packed_size());
    hh = arena.take<F>(copies * weight_hh(0).packed_size());
    state_stride = scratch_stride<F>(p.H);
    unit_rows = split_sequences(p, 0, plan.batch_parts).most;
    state = arena.take<F>(plan.units * unit_state_size());
    columns = divide_up(panels_in<C>(p.H), plan.hidden_parts) * kPanel<C>;
    const int64_t row_bytes = max_of(scratch_stride<C>(columns), scratch_stride<F>(p.I)) *
                              static_cast<int64_t>(sizeof(C));
    const int64_t fit = kChunkBytes / row_bytes;
    chunk_rows = max_of(unit_rows, min_of(fit, p.T * p.B));
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
      pre = arena.take<C>(f.chunk_rows * scratch_stride<C>(f.columns));
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
    for (int64_t q = q0; q < q1; ++q) {
      weight_ih.pack(q, ih + (copy * weight_ih.panels() + q) * weight_ih.panel_size());
      weight_hh.pack(q, hh + (copy * weight_hh.panels() + q) * weight_hh.panel_size());
    }
  }
  int64_t copy_of(const Unit& unit) const { return own_weights ? unit.group : unit.d; }

  void run(const Unit& unit, Worker& worker) const {
    if (p.nonlinearity == Nonlinearity::tanh) return steps<TanhCell<C>>(unit, worker);
    return steps<ReluCell<C>>(unit, worker);
  }

  template <class Cell>
  void steps(const Unit& unit, Worker& worker) const {
    const Scratch s(*this, scratch + worker.rank * scratch_size);
    const int64_t pre_stride = scratch_stride<C>(columns);
    if (own_weights) pack(unit.d, unit.group, unit.p0, unit.p1);
    fill_bias(unit, s.bias);
    fill_state(unit);
    worker.wait(unit.group, unit.members);
    const F* packed = hh + copy_of(unit) * weight_hh(0).packed_size();
    F* buffers[2] = {state_row(unit, 0, unit.b0), state_row(unit, 1, unit.b0)};
    const bool reverse = p.reverse[unit.d];
    for (int64_t done = 0; done < p.T;) {
      const Chunk chunk = next_chunk(p, unit, done, reverse, chunk_rows);
      fill_chunk(unit, chunk, s);
      int64_t row = reverse ? chunk.rows : 0;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? p.T - 1 - done : done;
        const int64_t sequences_now = sequences(p, unit, t);
        if (reverse) row -= sequences_now;
        const F* state = buffers[done & 1];
        F* next = buffers[~done & 1];
        S* output =
            static_cast<S*>(p.output) + (p.first_row(t) + unit.b0) * p.D * p.H + unit.d * p.H;
        ForwardStep<F, Cell> step{packed,     p.H,      unit.p0, s.pre + row * pre_stride,
                                  pre_stride, state,    next,    state_stride,
                                  nullptr,    p.D * p.H};
        if constexpr (kNative<S>) step.output = output;
        const bool has_state = done > 0 || p.h0;  // else every state is zero
        sweep(step, sequences_now, unit.p0, unit.p1, p.H, has_state ? factors_in<F>(p.H) : 0);
        if (unit.p1 == panels_in<C>(p.H)) clear_half_pairs(next, sequences_now, state_stride, p.H);
        if (!kNative<S> || p.lengths || done + 1 == p.T)
          finish_step(unit, t, sequences_now, state, next, output);
        if (!reverse) row += sequences_now;
        if (done + 1 < p.T) worker.wait(unit.group, unit.members);
      }
    }
  }

  // What a step does beyond its product: 16-bit outputs, rows past their sequence's end, h_n.
  void finish_step(const Unit& unit, int64_t t, int64_t rows, const F* state, F* next,
                   S* output) const {
    const int64_t from = unit.p0 * kPanel<C>, to = min_of(unit.p1 * kPanel<C>, p.H);
    for (int64_t row = 0; row < rows;
         ++row, state += state_stride, next += state_stride, output += p.D * p.H) {
      const int64_t b = unit.b0 + row;
      const bool past = t >= p.length(b);
      S* h_n = p.last_step(unit.d, b, t) && !past
                   ? static_cast<S*>(p.h_n) + (unit.d * p.B + b) * p.H
                   : nullptr;
      for (int64_t j = from; j < to; j += kLanes<C>) {
        const size_t size = min_of(kLanes<C>, p.H - j) * sizeof(S);
        if (past) {
          copy_factors(next, state, j);
          store_some(output + j, Vec<C>{}, p.H - j);
          continue;
        }
        if constexpr (!kNative<S> && kStoredAsFactors<S, F>) {
          __builtin_memcpy(output + j, next + j / kDepth<F>, size);
        } else if constexpr (!kNative<S>) {
          store_some(output + j, load(next + j), p.H - j);
          store(next + j, load_some(output + j, p.H - j));  // as a later call would read it
        }
        if (h_n) __builtin_memcpy(h_n + j, output + j, size);
      }
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
      const S* h0 = p.h0 ? static_cast<const S*>(p.h0) + (unit.d * p.B + b) * p.H : nullptr;
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

  // Pre-activations of a chunk, in memory's order, without the recurrent term.
  void fill_chunk(const Unit& unit, const Chunk& chunk, const Scratch& s) const {
    const int64_t stride = scratch_stride<C>(columns);
    const int64_t from = unit.p0 * kPanel<C>, to = unit.p1 * kPanel<C>;
    if (p.I == 0) {
      C* pre = s.pre;
      for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
        for (int64_t b = unit.b0; b < unit.b0 + sequences(p, unit, t); ++b, pre += stride)
          for (int64_t j = from; j < to; j += kLanes<C>) {
            Vec<C> x = load(s.bias + j - from);
            if (p.input) x += load_some(input_row<S>(p, t, b) + unit.d * p.H + j, p.H - j);
            store(pre + j - from, x);
          }
      return;
    }
    const F* a;
    int64_t a_stride;
    if (!in_place(unit, chunk, &a, &a_stride)) {
      a = s.features;
      a_stride = scratch_stride<F>(p.I);
      F* x = s.features;
      for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
        for (int64_t b = unit.b0; b < unit.b0 + sequences(p, unit, t); ++b, x += a_stride)
          for (int64_t j = 0; j < p.I; j += kLanes<C>)
            Factors<F>::store(x, j, load_some(input_row<S>(p, t, b) + j, p.I - j));
    }
    const Projection<F> project{ih + copy_of(unit) * weight_ih(0).packed_size(),
                                a,
                                a_stride,
                                s.bias,
                                s.pre,
                                stride,
                                unit.p0};
    sweep(project, chunk.rows, unit.p0, unit.p1, p.H, factors_in<F>(p.I));
  }

  // Whether the chunk's features can be read where they lie: rows of factors, one stride.
  bool in_place(const Unit& unit, const Chunk& chunk, const F** a, int64_t* stride) const {
    if constexpr (kStoredAsFactors<S, F>) {
      const bool whole = unit.b0 == 0 && unit.b1 == p.B;
      const bool contiguous = p.step_row || p.input_stride_t == p.B * p.input_stride_b;
      if (chunk.n == 1 || (whole && contiguous) || (p.B == 1 && !p.step_row)) {
        const int64_t apart = p.B == 1 && !p.step_row ? p.input_stride_t : p.input_stride_b;
        *a = reinterpret_cast<const F*>(input_row<S>(p, chunk.t, unit.b0));
        *stride = apart / kDepth<F>;
        return p.I % kDepth<F> == 0 && apart % kDepth<F> == 0;
      }
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
  if (!kernel.own_weights) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, kernel.plan, p, worker);
}

}  // namespace rnnext::RNNEXT_ISA
