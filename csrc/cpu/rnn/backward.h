// The recurrence, backward: the forward's twin. The state is the gradient of the pre-activations,
// the accumulators start from the gradient of the output, add W_hh^T times that state and are
// multiplied by the cell's derivative. The gradients of the features and of the weights are
// products over all rows: step by step and chunk by chunk while these are in cache, where a worker
// has sequences of its own and room for the sums; else when all is done.
#pragma once

#include "cpu/rnn/cell.h"
#include "cpu/rnn/feature_grad.h"
#include "cpu/rnn/plan.h"
#include "cpu/rnn/weight_grad.h"

namespace rnnext::RNNEXT_ISA {

// One step of one unit, as if every sequence had a step t: Backward::finish_step mends the others.
template <class Factor, class Cell>
struct BackwardStep {
  using F = Factor;
  using C = Compute<F>;
  const F* packed;  // hh; null: there is only one step
  int64_t H;
  const C* grad;  // of the output, first row; or null: zeros
  int64_t grad_stride;
  const C* output;
  int64_t output_stride;
  Rows<F> state;
  C* grad_pre;
  int64_t grad_pre_stride;
  F* next;  // or null: it is grad_pre
  int64_t next_stride;
  // What the next step will read as grad and as output, both output_stride apart; or null.
  const C *grad_ahead, *output_ahead;

  template <int R, int NV>
  RNNEXT_TILE void tile(int64_t row, int64_t column, const F* panels, int64_t K) const {
    const int64_t left = H - column;
    if (grad_ahead) fetch_tile<R, NV>(grad_ahead + row * output_stride + column, output_stride);
    if (output_ahead) fetch_tile<R, NV>(output_ahead + row * output_stride + column, output_stride);
    Vec<C> acc[R][NV];
    if (grad) {
      load_tile_some(acc, grad + row * grad_stride + column, grad_stride, left);
    } else {
      clear_tile(acc);
    }
    accumulate<false, F, R, NV>(acc, state.first + row * state.stride, state.stride, panels, K);
    Vec<C> h[R][NV];
    load_tile_some(h, output + row * output_stride + column, output_stride, left);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = Cell::backward(acc[r][j], h[r][j]);
    store_tile_some(acc, grad_pre + row * grad_pre_stride + column, grad_pre_stride, left);
    if (next)
      store_factors(acc, next + row * next_stride, next_stride, column, column + NV * kLanes<C>);
  }
};

template <class S, class F>
struct Backward {
  using C = Compute<S>;
  static constexpr int64_t kChunkBytes = 128 << 10;

  const Recurrence& p;
  const RecurrenceGrad& g;
  const RecurrenceGradOut& out;
  Plan plan;
  bool own_weights;  // each unit packs its own W_hh, each worker its own W_ih
  bool own_sums;     // each unit sums the gradients of the weights over its own rows
  bool own_rows;     // and keeps the rows of grad_pre for a chunk only: nobody else reads them
  bool in_grad_pre;  // the state of the step after is its rows of grad_pre
  F* ih;             // packed W_ih of all directions, or null: each worker packs its own
  F* hh;             // packed W_hh: a copy for each unit or each direction
  F* state;          // [units] of [2][unit_rows][state_stride], then [unit_rows] of first states
  int64_t state_stride;
  int64_t unit_rows;  // the most sequences of a unit
  int64_t step_stride;
  int64_t chunk_rows;
  C* grad_pre;             // [N, D*H], or null: own_rows
  C* chunk_scratch;        // [workers][chunk_rows][step_stride], the rows of grad_pre
  C* step_scratch;         // [workers] of [2][unit_rows][step_stride]
  char* features_scratch;  // [workers] of FeatureGradients
  int64_t features_bytes;
  char* weights_scratch;  // [units or workers] of WeightGradients
  int64_t weights_bytes;
  size_t bytes;

  // asked: the plan is made for as many threads even if fewer come, since sums of the units' own
  // depend on it, and a gradient must not depend on who came. (Members that share a sequence must
  // all be there; their sums are those of any number.)
  Backward(const Recurrence& p, const RecurrenceGrad& g, const RecurrenceGradOut& out, int asked,
           int size, char* workspace)
      : p(p), g(g), out(out), plan(Plan::choose<F>(p, asked)) {
    const bool shares = plan.hidden_parts > 1;
    if (shares) plan = Plan::choose<F>(p, size);
    Arena arena{workspace};
    const int64_t ih_size = FeatureGradients<S, F>::packed_size(p);
    const int64_t sizes = ih_size / p.D + weight_hh(0).packed_size();
    own_weights = sizes * sizeof(F) <= kOwnWeights;
    ih = out.input && !own_weights ? arena.take<F>(ih_size) : nullptr;
    const int64_t copies = own_weights ? plan.units : p.D;
    hh = needs_hh() ? arena.take<F>(copies * weight_hh(0).packed_size()) : nullptr;
    state_stride = scratch_stride<F>(p.H);
    unit_rows = split_sequences(p, 0, plan.batch_parts).most;
    state = arena.take<F>(plan.units * unit_state_size());
    step_stride = scratch_stride<C>(p.H);
    const bool own = own_weights && !shares;
    // Few rows travel faster from one core to another than the sums over them.
    const bool wanted = WeightGradients<S, F>::wanted(out);
    own_sums = own && wanted && (plan.batch_parts == 1 || p.rows() >= p.H);
    own_rows = own && p.D == 1 && p.I > 0 && own_sums == wanted;
    in_grad_pre = kDepth<F> == 1 && !p.lengths && plan.hidden_parts == 1 &&
                  (own_rows || p.D * p.H * static_cast<int64_t>(sizeof(C)) < kSameSet);
    const int64_t fit = kChunkBytes / (step_stride * static_cast<int64_t>(sizeof(C)));
    chunk_rows = max_of(unit_rows, min_of(fit, WeightGradients<S, F>::kChunkRows));
    grad_pre = static_cast<C*>(out.pre);
    if (!grad_pre && !own_rows) grad_pre = arena.take<C>(p.rows() * p.D * p.H);
    chunk_scratch = arena.take<C>(own_rows ? size * chunk_rows * step_stride : 0);
    step_scratch = arena.take<C>(size * step_scratch_size());
    features_bytes =
        out.input ? FeatureGradients<S, F>(p, out, own_weights, ih, unit_rows, nullptr).bytes : 0;
    features_scratch = arena.take<char>(size * features_bytes);
    const int64_t most = divide_up(divide_up(p.H, kTileRows), own_sums ? 1 : size) * kTileRows;
    weights_bytes = WeightGradients<S, F>(p, out, {0, most}, nullptr).bytes;
    weights_scratch = arena.take<char>((own_sums ? plan.units : size) * weights_bytes);
    bytes = arena.used;
  }

  bool needs_hh() const { return p.T > 1 || out.hx; }
  Matrix<S, F> weight_hh(int d) const {
    return {static_cast<const S*>(p.weight_hh[d]), p.H, p.H, false};
  }
  int64_t unit_state_size() const { return 3 * unit_rows * state_stride + kApart / sizeof(F); }
  // Buffers 0 and 1 take turns; buffer 2 keeps the states of the sequences' first steps.
  F* state_row(const Unit& unit, int buffer, int64_t b) const {
    return state + unit.group * unit_state_size() +
           (buffer * unit_rows + b - unit.b0) * state_stride;
  }
  F* first_row(const Unit& unit, int64_t b) const { return state_row(unit, 2, b); }

  void pack_share(const Worker& worker) const {
    if (out.input) features_of(worker).pack(worker.rank, worker.size);
    for (int d = 0; hh && d < p.D; ++d)
      pack_hh(d, d, part(weight_hh(d).panels(), worker.rank, worker.size));
  }
  void pack_hh(int d, int64_t copy, const Range& panels) const {
    pack_pieces<C>(plan, p, weight_hh(d), packed_hh(copy), panels.begin, panels.end);
  }
  F* packed_hh(int64_t copy) const { return hh + copy * weight_hh(0).packed_size(); }

  void run(const Unit& unit, Worker& worker) const {
    with_activation(p.nonlinearity, Steps{*this, unit, worker});
  }
  struct Steps {
    const Backward& kernel;
    const Unit& unit;
    Worker& worker;
    template <Nonlinearity name>
    void operator()(Named<name>) const {
      kernel.steps<Activation<C, name>>(unit, worker);
    }
  };

  template <class Cell>
  void steps(const Unit& unit, Worker& worker) const {
    for (int64_t b = unit.b0; b < unit.b1; ++b)
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>)
        for (F* row : {state_row(unit, 0, b), state_row(unit, 1, b), first_row(unit, b)})
          Factors<F>::store(row, j, Vec<C>{});
    if (hh && own_weights) pack_hh(unit.d, unit.group, {unit.p0, unit.p1});
    const F* packed = hh ? packed_hh(own_weights ? unit.group : unit.d) : nullptr;
    if (unit.members > 1) worker.advance();
    const FeatureGradients<S, F> features = features_of(worker);
    if (own_rows && out.input) features.pack(0, 1);
    const WeightGradients<S, F> sums = sums_of(unit.group);
    const bool reverse = p.reverse[unit.d];
    const int64_t width = p.D * p.H;
    C* const chunk_grad = chunk_scratch + worker.rank * chunk_rows * step_stride;
    if (own_rows) clear_tails(chunk_grad);
    Rows<F> state{first_row(unit, unit.b0), state_stride};  // zeros
    for (int64_t done = 0; done < p.T;) {
      const int64_t limit = own_sums || own_rows ? chunk_rows : p.rows();
      const Chunk chunk = next_chunk(p, unit, done, !reverse, limit);
      int64_t row = reverse ? 0 : chunk.rows;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? done : p.T - 1 - done;
        const int64_t at = (p.first_row(t) + unit.b0) * width + unit.d * p.H;
        const int64_t rows = sequences(p, unit, t);
        if (!reverse) row -= rows;
        F* next = in_grad_pre ? nullptr : state_row(unit, ~done & 1, unit.b0);
        const StepRows in = step_rows(unit, t, done, rows, at, worker);
        // Converted rows are in cache; the others' next step is far in memory.
        const bool fetches = kNative<S> && in.grad_stride == width && done + 1 < p.T;
        const int64_t t_next = reverse ? t + 1 : t - 1;
        const int64_t ahead = fetches ? (p.first_row(t_next) - p.first_row(t)) * width : 0;
        BackwardStep<F, Cell> step{packed,
                                   p.H,
                                   in.grad,
                                   in.grad_stride,
                                   in.output,
                                   in.output_stride,
                                   state,
                                   own_rows ? chunk_grad + row * step_stride : grad_pre + at,
                                   own_rows ? step_stride : width,
                                   next,
                                   state_stride,
                                   fetches && in.grad ? in.grad + ahead : nullptr,
                                   fetches ? in.output + ahead : nullptr};
        if (done > 0) {
          multiply(step, unit, rows, done, worker);
        } else {
          sweep(step, rows, unit.p0, unit.p1, p.H, 0);  // no step came before
        }
        if (in_grad_pre) {
          state = {reinterpret_cast<const F*>(step.grad_pre), step.grad_pre_stride};
        } else {
          if (unit.p1 == panels_in<C>(p.H)) clear_half_pairs(next, rows, state_stride, p.H);
          if (p.lengths) finish_step(unit, t, rows, next, step.grad_pre, step.grad_pre_stride);
          state = {next, state_stride};
        }
        if (own_rows && out.input) features.write(p.first_row(t) + unit.b0, rows, state);
        if (reverse) row += rows;
        if (unit.members > 1) worker.advance();
      }
      if (own_sums) {
        RowCursor<S> cursor{p, unit.d, unit.b0, unit.b1, chunk.t};
        sums.add(cursor, chunk.rows, own_rows ? chunk_grad : grad_pre, own_rows ? step_stride : 0,
                 done == chunk.n);
      }
      if (in_grad_pre && own_rows && done < p.T) state = keep(unit, state);
    }
    if (p.lengths) state = {first_row(unit, unit.b0), state_stride};
    if (out.hx) grad_hx(unit, packed, state, worker);
  }

  // The step's product with the state. Where a unit is shared, the sums take up each member's piece
  // of the state when it is there, in the order of k, and wait in scratch.
  template <class Step>
  void multiply(Step step, const Unit& unit, int64_t rows, int64_t done,
                const Worker& worker) const {
    const F* const weights = step.packed;
    const Rows<F> state = step.state;
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const Piece<F> piece =
          await_piece<C>(plan, p, unit, weight_hh(0), m, done + 1, state, rows, worker);
      step.packed = weights + piece.packed_at;
      step.state = piece.state;
      if (m + 1 == plan.pieces) {
        sweep(step, rows, unit.p0, unit.p1, p.H, piece.K);
      } else {
        C* sums = converted(worker, 0);
        const Projection<F> add{step.packed, step.state,  step.grad, step.grad_stride,
                                sums,        step_stride, p.H};
        sweep(add, rows, unit.p0, unit.p1, p.H, piece.K);
        step.grad = sums;
        step.grad_stride = step_stride;
      }
    }
  }

  // What vectors and tiles read past a row's end, of which they keep nothing: a line at most.
  void clear_tails(C* rows) const {
    for (int64_t row = 0; row < chunk_rows; ++row, rows += step_stride)
      __builtin_memset(rows + p.H, 0, 64);
  }

  // Rows that lie where the next chunk's will, in a place of their own.
  Rows<F> keep(const Unit& unit, const Rows<F>& rows) const {
    for (int64_t b = unit.b0; b < unit.b1; ++b)
      for (int64_t j = 0; j < p.H; j += kLanes<C>)
        copy_factors(state_row(unit, 0, b), rows.first + (b - unit.b0) * rows.stride, j);
    return {state_row(unit, 0, unit.b0), state_stride};
  }

  // Where a step finds the output and its gradient: in the tensors, or in scratch where they are
  // stored in 16 bits or grad_h_n joins in.
  struct StepRows {
    const C* grad;
    int64_t grad_stride;
    const C* output;
    int64_t output_stride;
  };
  StepRows step_rows(const Unit& unit, int64_t t, int64_t done, int64_t rows, int64_t at,
                     const Worker& worker) const {
    const S* grad = g.grad_output ? static_cast<const S*>(g.grad_output) + at : nullptr;
    const S* output = static_cast<const S*>(p.output) + at;
    const bool joins = g.grad_h_n && (p.lengths || done == 0);
    const int64_t width = p.D * p.H;
    StepRows in{nullptr, width, nullptr, width};
    if constexpr (kNative<S>) {
      in.grad = grad;
      in.output = output;
      if (!joins) return in;
    }
    const int64_t from = unit.p0 * kPanel<C>, to = unit.p1 * kPanel<C>;
    C* const rows_of_grad = converted(worker, 0);
    C* const rows_of_output = converted(worker, 1);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = unit.b0 + row;
      const S* grad_h_n = joins && p.ends(unit.d, b, t)
                              ? static_cast<const S*>(g.grad_h_n) + (unit.d * p.B + b) * p.H
                              : nullptr;
      for (int64_t j = from; j < to; j += kLanes<C>) {
        Vec<C> x = grad ? load_some(grad + row * width + j, p.H - j) : Vec<C>{};
        if (grad_h_n) x += load_some(grad_h_n + j, p.H - j);
        store(rows_of_grad + row * step_stride + j, x);
        if (!kNative<S>)
          store(rows_of_output + row * step_stride + j,
                load_some(output + row * width + j, p.H - j));
      }
    }
    in.grad = rows_of_grad;
    in.grad_stride = step_stride;
    if (!kNative<S>) {
      in.output = rows_of_output;
      in.output_stride = step_stride;
    }
    return in;
  }
  int64_t step_scratch_size() const { return 2 * unit_rows * step_stride + kApart / sizeof(C); }
  C* converted(const Worker& worker, int which) const {
    return step_scratch + worker.rank * step_scratch_size() + which * unit_rows * step_stride;
  }

  // Where sequences differ in length: rows past their end have no gradient; the first step's is
  // kept for grad_hx.
  void finish_step(const Unit& unit, int64_t t, int64_t rows, F* next, C* grad_pre,
                   int64_t stride) const {
    for (int64_t row = 0; row < rows; ++row, next += state_stride, grad_pre += stride) {
      const int64_t b = unit.b0 + row;
      const bool past = t >= p.length(b), starts = p.starts(unit.d, b, t);
      if (!past && !starts) continue;
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>) {
        if (past) {
          Factors<F>::store(next, j, Vec<C>{});
          store_some(grad_pre + j, Vec<C>{}, p.H - j);
        } else {
          copy_factors(first_row(unit, b), next, j);
        }
      }
    }
  }

  void grad_hx(const Unit& unit, const F* packed, const Rows<F>& first,
               const Worker& worker) const {
    // In the compute type first: the state's buffers are free now, but for the slower members.
    C* const rows = converted(worker, 0);
    for (int64_t m = 0; m < plan.pieces; ++m) {
      const int64_t sequences = unit.b1 - unit.b0;
      const Piece<F> piece =
          await_piece<C>(plan, p, unit, weight_hh(0), m, p.T + 1, first, sequences, worker);
      const F* const weights = packed + piece.packed_at;
      const C* const sums = m > 0 ? rows : nullptr;
      const Projection<F> project{weights, piece.state, sums, step_stride, rows, step_stride, p.H};
      sweep(project, sequences, unit.p0, unit.p1, p.H, piece.K);
    }
    for (int64_t b = unit.b0; b < unit.b1; ++b) {
      const int64_t row = (unit.d * p.B + b) * p.H;
      S* to = static_cast<S*>(out.hx) + row;
      const S* grad_h_n = static_cast<const S*>(g.grad_h_n) + row;
      const bool hand_on = g.grad_h_n && p.length(b) == 0;  // no step: h_n was h0
      for (int64_t j = unit.p0 * kPanel<C>; j < unit.p1 * kPanel<C>; j += kLanes<C>)
        store_some(to + j,
                   hand_on ? load_some(grad_h_n + j, p.H - j)
                           : load(rows + (b - unit.b0) * step_stride + j),
                   p.H - j);
    }
  }

  FeatureGradients<S, F> features_of(const Worker& worker) const {
    return {p, out, own_weights, ih, unit_rows, features_scratch + worker.rank * features_bytes};
  }
  // All rows, shared out, when grad_pre is complete.
  void feature_gradients(const Worker& worker) const {
    const FeatureGradients<S, F> features = features_of(worker);
    if (own_weights) features.pack(0, 1);
    const Range share = part(p.rows(), worker.rank, worker.size, kTileRows);
    features.write_all(grad_pre, share.begin, share.end);
  }

  WeightGradients<S, F> sums_of(int64_t unit) const {
    return {p, out, {0, p.H}, weights_scratch + unit * weights_bytes};
  }
  // This worker's share of the hidden units: its sums over all rows, or all units' sums.
  void weight_gradients(const Worker& worker) const {
    const Range share = part(p.H, worker.rank, worker.size, kTileRows);
    for (int d = 0; d < p.D; ++d) {
      if (own_sums) {
        const WeightGradients<S, F> sums = sums_of(d * plan.batch_parts);
        for (int64_t part = 1; part < plan.batch_parts; ++part)
          sums.add(sums_of(d * plan.batch_parts + part), share.begin, share.end);
        sums.write(d, share.begin, share.end);
      } else {
        const WeightGradients<S, F> sums(p, out, share,
                                         weights_scratch + worker.rank * weights_bytes);
        RowCursor<S> cursor{p, d, 0, p.B, 0};
        sums.add(cursor, p.rows(), grad_pre, 0, true);
        sums.write(d, 0, share.end - share.begin);
      }
    }
  }
};

template <class S, class F>
size_t backward_workspace(const Recurrence& p, const RecurrenceGradOut& out, int threads) {
  size_t bytes = 0;
  for (int size = 1; size <= threads; ++size) {
    const size_t needed = Backward<S, F>(p, RecurrenceGrad{}, out, threads, size, nullptr).bytes;
    if (needed > bytes) bytes = needed;
  }
  return bytes;
}

template <class S, class F>
void backward(const Recurrence& p, const RecurrenceGrad& g, const RecurrenceGradOut& out,
              char* workspace, Worker& worker) {
  const Backward<S, F> kernel(p, g, out, worker.asked, worker.size, workspace);
  if (!kernel.own_weights) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_units<Compute<S>>(kernel, kernel.plan, p, worker);
  worker.wait();
  if (out.input && !kernel.own_rows) kernel.feature_gradients(worker);
  if (WeightGradients<S, F>::wanted(out)) kernel.weight_gradients(worker);
}

}  // namespace rnnext::RNNEXT_ISA
