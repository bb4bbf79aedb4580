// The layout of a backward pass's workspace.
#pragma once

#include "cpu/rnn/epilogue.h"
#include "cpu/rnn/feature_grad.h"
#include "cpu/rnn/grad_pre_buffers.h"
#include "cpu/rnn/weight_grad.h"

namespace rnnext::RNNEXT_ISA {

// Where the weights, the gradients of the pre-activations and each worker's scratch lie.
template <class S, class MK>
struct BackwardLayout : BackwardCall {
  using F = typename MK::Operand;
  using C = Compute<S>;
  F* ih;             // W_ih of all directions, if all workers pack it together, else null
  Arrays<F> hh;      // packed W_hh: a copy for each group or each direction; null: it is streamed
  Arrays<F> panels;  // [workers] of some panels of W_hh, where it is streamed
  GradPreBuffers<S, MK> buffers;
  int64_t step_stride, grad_width, grad_stride;
  C* grad_pre;            // [N, D*grad_width], or null: a chunk's rows are kept, in chunk_grad
  Arrays<C> chunk_grad;   // [workers] of [chunk_rows][grad_stride]
  Arrays<C> step_inputs;  // [workers] of StepArray, each [group_rows][step_stride], the last wider
  Arrays<char> features;  // [workers] of FeatureGradients
  Arrays<char> weight_sums;  // [groups or workers] of WeightGradients
  // A leak's alpha, and the sums of its gradient: [groups] of [H], in whole panels, the sums twice
  // that (StateRows::alpha_grad).
  Arrays<C> alpha, alpha_sums;
  // For voltage, the outputs of hx and of reset_state, which W_hh multiplies: [D,B,H] each.
  S *start_output, *reset_output;
  Arrays<const void*> states_before;  // [workers] of [group_rows], for a GRU
  Arrays<int64_t> order, present;  // [workers] of [group_rows] and [T], where sequences are sorted
  size_t bytes;

  BackwardLayout(const BackwardCall& call, int workers, Arena arena)
      : BackwardCall(call),
        ih(out.input && plan.features == FeatureGradient::shared
               ? arena.take<F>(FeatureGradients<S, MK>::packed_size(p))
               : nullptr),
        hh(arena.take_padded<F>(plan.copies(p.D), weight_hh(0).packed_size())),
        panels(arena.take_padded<F>(plan.weights == Weights::streamed ? workers : 0,
                                    streamed_size(weight_hh(0)))),
        buffers(call, arena),
        step_stride(scratch_stride<C>(p.H)),
        grad_width(buffers.parts * p.H),
        grad_stride(scratch_stride<C>(grad_width)) {
    // (out.pre of a GRU has three parts, and grad_pre four.)
    grad_pre = buffers.parts == p.gates() ? static_cast<C*>(out.pre) : nullptr;
    if (!grad_pre && !plan.by_step()) grad_pre = arena.take<C>(p.rows() * p.D * grad_width);
    chunk_grad = arena.take_padded<C>(plan.by_step() ? workers : 0, plan.chunk_rows * grad_stride);
    const int64_t arrays = plan.sorts && buffers.carries() ? kSaved : kOutput;
    const int64_t saved = plan.sorts && buffers.carries() ? plan.group_rows * saved_stride() : 0;
    step_inputs = arena.take_padded<C>(workers, arrays * step_array_size() + saved);
    features = arena.take_padded<char>(out.input ? workers : 0,
                                       FeatureGradients<S, MK>(*this, ih, nullptr).bytes);
    const int64_t most = divide_up(divide_up(p.H, MK::kMR), plan.own_sums ? 1 : workers) * MK::kMR;
    weight_sums =
        arena.take_padded<char>(plan.own_sums ? plan.groups : workers,
                                WeightGradients<S, MK>(*this, {0, most}, 0, nullptr).bytes);
    alpha = arena.take<C>(is_leaky(p.cell) ? plan.groups : 0, buffers.padded());
    alpha_sums = arena.take_padded<C>(out.alpha[0] ? plan.groups : 0, 2 * buffers.padded());
    const int64_t state_size = p.cell == Cell::voltage ? p.D * p.B * p.H : 0;
    start_output = arena.take<S>(state_size);
    reset_output = arena.take<S>(p.reset ? state_size : 0);
    states_before =
        arena.take_padded<const void*>(p.cell == Cell::gru ? workers : 0, plan.group_rows);
    order = arena.take<int64_t>(plan.sorts ? workers : 0, plan.group_rows);
    present = arena.take<int64_t>(plan.sorts ? workers : 0, p.T);
    bytes = arena.used;
  }

  Matrix<S, F> weight_hh(int d) const { return backward_weight<S, F>(p, p.weight_hh[d], p.H); }
  void pack_hh(int d, int64_t copy, int64_t q0, int64_t q1) const {
    weight_hh(d).pack(hh[copy], q0, q1);
  }

  // The rows that W_hh multiplies in the first step, or in one with a reset; null: zeros.
  const S* start_operand() const {
    return p.cell == Cell::voltage ? start_output : static_cast<const S*>(p.hx);
  }
  const S* reset_operand() const {
    return p.cell == Cell::voltage ? reset_output : static_cast<const S*>(p.reset_state);
  }
  RowCursor<S> cursor(const WorkItem& item, int64_t t) const {
    return {p, start_operand(), reset_operand(), item, t};
  }
  // Fills the work item's part of alpha, start_output and reset_output. If a reset comes with the
  // first step, nothing reads hx, and its output is that of zeros.
  void begin_state_rows(const WorkItem& item) const {
    const int64_t from = item.u0 * kPanel<C>, to = item.u1 * kPanel<C>;
    const int64_t first = p.reverse[item.d] ? p.T - 1 : 0;
    for (int64_t j = from; is_leaky(p.cell) && j < to; j += kLanes<C>) {
      store(alpha[item.group] + j, alpha_of<S>(p, item.d, j));
      for (int64_t i = 0; out.alpha[0] && item.begins && i < 2; ++i)
        store(alpha_sums[item.group] + i * buffers.padded() + j, Vec<C>{});
    }
    for (int64_t i = 0; i < item.size && p.cell == Cell::voltage; ++i) {
      const int64_t b = item.sequence(i);
      const void* const start = p.restarts(item.d, b, first) ? nullptr : p.hx;
      for (int64_t j = from; j < to; j += kLanes<C>) {
        const int64_t at = (item.d * p.B + b) * p.H + j;
        const Vec<C> hx = load_state(state_row<S>(p, start, item.d, b), j, p.H - j);
        store_some(start_output + at, output_of<S>(p, hx), p.H - j);
        if (!p.reset) continue;
        const Vec<C> anew = load_state(state_row<S>(p, p.reset_state, item.d, b), j, p.H - j);
        store_some(reset_output + at, output_of<S>(p, anew), p.H - j);
      }
    }
  }

  // A step's rows in scratch: the gradient of the output and the results of f, and, where sequences
  // are sorted, the output for a leak, and what a leak or gates saved.
  enum StepArray { kGrad, kValues, kOutput, kSaved };
  int64_t saved_stride() const { return scratch_stride<C>(traits_of(p.cell).saved * p.H); }
  int64_t step_array_size() const { return plan.group_rows * step_stride; }
  Rows<C> inputs_of(int worker, StepArray which) const {
    return {step_inputs[worker] + which * step_array_size(), step_stride};
  }
  FeatureGradients<S, MK> features_of(const Worker& worker) const {
    return {*this, ih, features[worker.rank]};
  }
  // The sums of a group, or of a worker, for one part of the gradient of the pre-activations.
  WeightGradients<S, MK> sums_of(int64_t owner, int k, const Range& units) const {
    return {*this, units, k, weight_sums[owner]};
  }
};

}  // namespace rnnext::RNNEXT_ISA
