// The backward pass, the forward's twin. A step hands on the gradient of its pre-activations,
// grad_pre: the sums of the step before it start from the gradient of the output, add W_hh^T times
// that, and are multiplied by the derivative of f. The gradients of the features and of the weights
// are products over all rows. The plan says whether they are computed step by step and chunk by
// chunk, while rows are in cache, or when all steps are done.
//
// Steps are first, last, before and after each other as the forward pass takes them; the backward
// pass takes the last one first, and the one before it next.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/gates.h"
#include "cpu/rnn/step_inputs.h"

namespace rnnext::RNNEXT_ISA {

// One step of a work item, as if every sequence had a step t: GradPreBuffers::finish_step corrects
// shorter ones. A product for macro_kernel().
template <class MK>
struct BackwardStep {
  using MicroKernel = MK;
  using F = typename MK::Operand;
  using C = Compute<F>;
  Epilogue<BackwardStep, C> epilogue;
  StateRows<C> state;
  const F* packed;  // W_hh; null: there is only one step
  int64_t H;
  Rows<const C> start;   // the gradient of the output; or none: zeros
  Rows<const C> values;  // the results of f; of a gated cell rows that are prefetched, not read
  Rows<const F> a;       // what W_hh^T multiplies: grad_pre of the step after
  Rows<C> grad_pre;
  Rows<F> next;  // grad_pre as operands; none: its rows serve as such
  // The gradient and the values of the step before, both as far apart as `values`; or null.
  const C *grad_ahead, *values_ahead;
  const C* far_saved;  // of a gated cell: state.saved, if tiles read the tensor itself
  bool past_caches;    // whether grad_pre is written past the caches
  bool far;            // whether what is prefetched comes from far memory

  template <class Extent>
  RNNEXT_NOINLINE void tile(Extent extent, int64_t row, int64_t column, const F* panels, int64_t K,
                            const Ahead* ahead) const {
    constexpr bool kSpreads = !kTiled<F> && MK::kSumBlock > 1;
    const bool spreads = kSpreads && far && K > MK::kSumBlock;
    if (!spreads) prefetch(extent, row, column);
    typename Extent::template Tile<MK> sums(extent);
    start ? sums.load(start[row] + column, start.stride, H - column) : sums.clear();
    if constexpr (kSpreads) {
      sums.add(a[row], a.stride, panels, K, ahead, spreads, [=, this](int64_t r) RNNEXT_NOINLINE {
        prefetch(extent.one_row(), row + r, column);
      });
    } else {
      sums.add(a[row], a.stride, panels, K, ahead);
    }
    sums.finish(*this, row, column);
  }
  // Prefetches what the epilogue reads of a row, and what the step before will read of its row.
  template <class Extent>
  RNNEXT_INLINE void prefetch(Extent extent, int64_t row, int64_t column) const {
    const int64_t next_row = row * values.stride + column;
    if (grad_ahead) extent.prefetch(grad_ahead + next_row, values.stride);
    if (values_ahead) extent.prefetch(values_ahead + next_row, values.stride);
    for (int k = 0; far_saved && k < traits_of(epilogue.cell).saved; ++k)
      extent.prefetch(far_saved + row * state.row_stride + k * H + column, state.row_stride);
    if (!state.carry) return;  // else other panels pushed these rows out of the cache
    extent.prefetch(state.carry[row] + column, state.carry.stride);
    extent.prefetch(values[row] + column, values.stride);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    if (epilogue.out_of_line) return epilogue.call(*this, sums, row, column);
    Vec<C> h[R][NV];
    load_tile(h, values[row] + column, values.stride, H - column);
    for_inlined(epilogue.nonlinearity, [&](auto name) {
      for_block<R, NV>([&](int r, int j) {
        sums[r][j] = Activation<C, decltype(name)::value>::backward(sums[r][j], h[r][j]);
      });
    });
    store_tile(sums, grad_pre[row], grad_pre.stride, column, H);
    if (next) store_tile(sums, next[row], next.stride, column, column + NV * kLanes<C>);
  }
};

template <class S, class MK>
struct BackwardRun : BackwardCall {
  using F = typename MK::Operand;
  using C = Compute<S>;
  const RecurrenceGrad& g;
  BackwardLayout<S, MK> at;

  void pack_share(const Worker& worker) const {
    for (int d = 0; at.ih && d < p.D; ++d) at.features_of(worker).pack(d, worker.rank, worker.size);
    const Range share = share_of(panels_in<F>(p.H), worker.rank, worker.size);
    for (int d = 0; plan.weights == Weights::shared && d < p.D; ++d)
      at.pack_hh(d, d, share.begin, share.end);
  }

  RNNEXT_NOINLINE void run(const WorkItem& unsorted, Worker& worker) const {
    const WorkItem item =
        plan.sorts ? sorted(unsorted, p, at.order[worker.rank], at.present[worker.rank]) : unsorted;
    Rows<const F> grad_pre = at.buffers.initial(item);
    C* const alpha_grad = at.alpha_sums[item.group];
    StateRows<C> state = state_rows_of(item, alpha_grad);
    const bool own = plan.weights == Weights::own;
    if (own && item.begins) at.pack_hh(item.d, item.group, item.u0, item.u1);
    const F* const packed = at.hh[own ? item.group : item.d];
    const int64_t K = operands_in<F>(at.weight_hh(item.d).K);
    if (item.members > 1) worker.advance();
    const FeatureGradients<S, MK> features = at.features_of(worker);
    const bool writes_features = plan.by_step() && out.input;
    if (writes_features && item.begins) features.pack(item.d, 0, 1);
    const bool reverse = p.reverse[item.d];
    const StepInputs<S, MK> inputs{BackwardCall{p, out, plan}, g, at, worker.rank};
    const Rows<C> chunk_grad{at.chunk_grad[worker.rank], at.grad_stride};
    // Tiles read past a row's end: no value there counts, but subnormal ones are multiplied slowly.
    for (int64_t row = 0; plan.by_step() && row < plan.chunk_rows; ++row)
      __builtin_memset(chunk_grad[row] + at.grad_width, 0, 64);
    for (int64_t done = 0; done < p.T;) {
      const int64_t limit = plan.own_sums || plan.by_step() ? plan.chunk_rows : p.rows();
      const Chunk chunk = next_chunk(p, item, done, !reverse, limit);
      int64_t row = reverse ? 0 : chunk.rows;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? done : p.T - 1 - done;
        const int64_t rows = sequences(p, item, t);
        if (!reverse) row -= rows;
        const auto in = inputs.rows_of(item, t, done, rows);
        if (at.buffers.carries()) inputs.add_state_rows(state, item, t, rows);
        BackwardStep<MK> step{.epilogue = end_of_step(),
                              .state = state,
                              .packed = packed,
                              .H = p.H,
                              .start = in.grad,
                              .values = in.values,
                              .a = at.buffers.times_hh(grad_pre),
                              .grad_pre = plan.by_step() ? Rows<C>{chunk_grad[row], at.grad_stride}
                                                         : grad_pre_rows(item, t),
                              .next = at.buffers.next_buffer(item, done),
                              .grad_ahead = in.grad_ahead,
                              .values_ahead = in.values_ahead,
                              .far_saved = kNative<S> && !plan.sorts && is_gated(p.cell)
                                               ? static_cast<const C*>(state.saved)
                                               : nullptr,
                              .past_caches = plan.past_caches && in_vectors<C>(at.grad_pre, p.H),
                              .far = p.rows() * p.D * at.grad_width * sizeof(S) >= kFarReadBytes};
        if (done > 0) await_members(item, done + 1, step.a, K, rows, worker);
        // The first step has no grad_pre to multiply.
        macro_kernel(step, rows, item.u0, item.u1, p.H, done > 0 ? K : 0,
                     {done % 2 > 0, plan.fetches, plan.pair_bytes});
        grad_pre = at.buffers.finish_step(item, t, rows, step.next, step.grad_pre);
        if (writes_features) features.write(item, t, rows, grad_pre);
        at.buffers.stop_at_starts(item, t, rows, step.next, step.grad_pre, alpha_grad);
        if (reverse) row += rows;
        if (item.members > 1) worker.advance();
      }
      if (plan.own_sums)
        at.sums_of(item.group, 0, {0, p.H})
            .add(at.cursor(item, chunk.t), chunk.rows,
                 plan.by_step() ? chunk_grad : Rows<C>{at.grad_pre, 0},
                 item.begins && done == chunk.n);
      if (plan.by_step() && done < p.T) grad_pre = at.buffers.copied(item, grad_pre);
    }
    state_gradients(item, packed, grad_pre, worker);
  }

  Epilogue<BackwardStep<MK>, C> end_of_step() const {
    if (!is_gated(p.cell)) return epilogue_of<BackwardEpilogue, S, BackwardStep<MK>>(p, true);
    return with_gates(p.cell, [&]<class Gates>(Gates) {
      return Epilogue<BackwardStep<MK>, C>{p.nonlinearity, p.cell,
                                           backward_gates<Gates, S, BackwardStep<MK>>};
    });
  }
  // Rows of the whole grad_pre, of a work item whose sequences are not sorted.
  Rows<C> grad_pre_rows(const WorkItem& item, int64_t t) const {
    return {at.grad_pre + (p.row(t, item.b0) * p.D + item.d) * at.grad_width, p.D * at.grad_width};
  }
  // The work item's rows beside the sums, without those of a step.
  StateRows<C> state_rows_of(const WorkItem& item, C* alpha_grad) const {
    StateRows<C> state;
    if (!at.buffers.carries()) return state;
    at.begin_state_rows(item);
    state.alpha = at.alpha[item.group];
    state.carry = at.buffers.state_grads.all(item, at.buffers.kCarry);
    state.mixed = at.buffers.state_grads.all(item, at.buffers.kMixed);
    state.alpha_grad = alpha_grad;
    // (What gates save is wider; they do not read `output`.)
    state.row_stride = p.D * traits_of(p.cell).saved * p.H;
    if (plan.sorts) state.row_stride = is_gated(p.cell) ? at.saved_stride() : at.step_stride;
    return state;
  }

  // The gradients of hx and reset_state, after all steps. A member has advanced once more than T.
  void state_gradients(const WorkItem& item, const F* packed, const Rows<const F>& grad_pre,
                       Worker& worker) const {
    const int64_t advanced = 1 + p.T;
    if (out.hx)
      grad_state(item, packed, at.buffers.times_hh(at.buffers.first_steps(item, grad_pre)),
                 at.buffers.kFirst, at.start_operand(), out.hx, advanced, worker);
    if (!out.reset_state) return;
    const Rows<const F> resets = at.buffers.times_hh(at.buffers.reset_sums(item));
    if (item.members > 1) worker.advance();
    grad_state(item, packed, resets, at.buffers.kResetCarry, at.reset_operand(), out.reset_state,
               advanced + 1, worker);
  }

  // Writes the gradient of hx or of reset_state: W_hh^T times rows of the gradient of
  // pre-activations, and what a leak or gates add without W_hh. output: what W_hh multiplied.
  void grad_state(const WorkItem& item, const F* packed, const Rows<const F>& first, int carry,
                  const S* output, void* grad, int64_t n, const Worker& worker) const {
    const Matrix<S, F> weight = at.weight_hh(item.d);
    const int64_t K = operands_in<F>(weight.K);
    const Rows<C> rows = at.inputs_of(worker.rank, at.kGrad);
    await_members(item, n, first, K, item.size, worker);
    const PlainProduct<MK> product{packed, first, {nullptr, rows.stride}, rows, p.H};
    if (packed) {
      macro_kernel(product, item.size, item.u0, item.u1, p.H, K);
    } else {  // there is only one step
      stream(product, weight, at.panels[worker.rank], item.size, item.u0, item.u1);
    }
    for (int64_t i = 0; i < item.size; ++i) {
      const int64_t b = item.sequence(i);
      const int64_t row = (item.d * p.B + b) * p.H;
      S* to = static_cast<S*>(grad) + row;
      const S* grad_h_n = static_cast<const S*>(g.grad_h_n) + row;
      const bool hand_on = g.grad_h_n && grad == out.hx && p.length(b) == 0;  // h_n was hx
      const bool apart = traits_of(p.cell).states > 1;  // c's gradient does not come through W_hh
      for (int64_t j = item.u0 * kPanel<C>; j < item.u1 * kPanel<C>; j += kLanes<C>) {
        Vec<C> x = load(rows[i] + j);
        if (p.cell == Cell::voltage) {
          const Vec<C> sum = x, h = load_some(output + row + j, p.H - j);
          for_nonlinearity(p.nonlinearity, [&]<Nonlinearity name>(Fixed<name>) {
            x = Activation<C, name>::backward(sum, h);
          });
          x = sum == 0 ? sum : x;  // a row that no step read may hold NaN
        }
        Vec<C> past = {};
        if (at.buffers.carries()) past = load(at.buffers.state_grads.row(item, carry, i) + j);
        if (!apart) x += past;
        if (hand_on) x = load_some(grad_h_n + j, p.H - j);
        store_some(to + j, x, p.H - j);
        if (!apart) continue;
        if (hand_on) past = load_some(grad_h_n + p.state_size() + j, p.H - j);
        store_some(to + p.state_size() + j, past, p.H - j);
      }
    }
  }

  // This worker's share of the features' gradient, when grad_pre is complete.
  void feature_gradients(const Worker& worker) const {
    const FeatureGradients<S, MK> features = at.features_of(worker);
    if constexpr (kNative<S>)
      if (plan.features == FeatureGradient::streamed)
        return features.stream(at.grad_pre, worker.rank, worker.size);
    for (int d = 0; plan.features == FeatureGradient::own && d < p.D; ++d) features.pack(d, 0, 1);
    const Range share = share_of(p.rows(), worker.rank, worker.size, MK::kMR);
    features.write_all(at.grad_pre, share.begin, share.end);
  }

  // Writes this worker's share of a direction's weight gradients: its sums, or those of the groups.
  void weight_gradients(const Worker& worker, int d) const {
    const Range share = share_of(p.H, worker.rank, worker.size, MK::kMR);
    const Range units = plan.own_sums ? Range{0, p.H} : share;
    const int64_t owner = plan.own_sums ? d * plan.batch_parts : worker.rank;
    if (!plan.own_sums) {
      WorkItem all{};
      all.d = d, all.size = p.B;
      at.sums_of(owner, 0, units).add(at.cursor(all, 0), p.rows(), {at.grad_pre, 0}, true);
    }
    for (int k = 0; k < at.buffers.parts; ++k) {
      const WeightGradients<S, MK> sums = at.sums_of(owner, k, units);
      for (int64_t i = 1; plan.own_sums && i < plan.batch_parts; ++i)
        sums.add(at.sums_of(owner + i, k, units), share.begin, share.end);
      sums.write(d, share.begin - units.begin, share.end - units.begin);
    }
  }
  // Writes the gradient of alpha: adds the groups' sums, one after the other.
  void alpha_gradients() const {
    for (int d = 0; d < p.D; ++d)
      for (int64_t j = 0; j < p.H; j += kLanes<C>) {
        Vec<C> sum = {};
        for (int64_t i = 0; i < plan.batch_parts; ++i) {
          const C* const part = at.alpha_sums[d * plan.batch_parts + i] + j;
          sum += total_of(part, part + at.buffers.padded());
        }
        store_some(static_cast<S*>(out.alpha[d]) + j, sum, p.H - j);
      }
  }
  // Copies this worker's rows of a GRU's gradient of precomputed input, whose order is torch's.
  void copy_grad_pre(const Worker& worker) const {
    const Range share = share_of(p.rows() * p.D, worker.rank, worker.size);
    for (int64_t row = share.begin; row < share.end; ++row)
      for (int k = 0; k < p.gates(); ++k)
        __builtin_memcpy(static_cast<C*>(out.pre) + (row * p.gates() + gate_of(p, k).ih) * p.H,
                         at.grad_pre + row * at.grad_width + k * p.H, p.H * sizeof(C));
  }
};

template <class S, class MK>
size_t backward_workspace(const Recurrence& p, const RecurrenceGradOut& out,
                          const BackwardPlan& plan, int threads) {
  return BackwardLayout<S, MK>({p, out, plan}, threads, Arena{nullptr}).bytes;
}

template <class S, class MK>
void backward(const Recurrence& p, const RecurrenceGrad& g, const RecurrenceGradOut& out,
              const BackwardPlan& plan, char* workspace, Worker& worker) {
  [[maybe_unused]] const typename MK::Task task;
  const BackwardCall call{p, out, plan};
  const BackwardRun<S, MK> kernel{call, g, {call, worker.size, Arena{workspace}}};
  if (kernel.at.ih || plan.weights == Weights::shared) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_items<Compute<S>>(kernel, plan, p, worker);
  worker.wait();
  if (out.input && !plan.by_step()) kernel.feature_gradients(worker);
  for (int d = 0; wants_weights(out) && d < p.D; ++d) kernel.weight_gradients(worker, d);
  if (out.pre && out.pre != kernel.at.grad_pre) kernel.copy_grad_pre(worker);
  if (out.alpha[0] && worker.rank == 0) kernel.alpha_gradients();
}

}  // namespace rnnext::RNNEXT_ISA
