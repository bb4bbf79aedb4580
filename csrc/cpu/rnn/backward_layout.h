// What lies where in the workspace of a backward pass, and what of it all steps read.
#pragma once

#include "cpu/rnn/feature_grad.h"
#include "cpu/rnn/state_store.h"
#include "cpu/rnn/weight_grad.h"

namespace rnnext::RNNEXT_ISA {

// Where the weights, the states, the gradient of the pre-activations and each worker's scratch lie.
template <class S, class E>
struct BackwardLayout {
  using F = typename E::Factor;
  using C = Compute<S>;
  const Recurrence& p;
  const RecurrenceGradOut& out;
  const BackwardPlan& plan;
  F* ih;      // packed W_ih of all directions, or null: nobody packs it for all
  F* hh;      // packed W_hh: a copy for each unit or each direction; null: there is only one step
  F* panels;  // [workers] of some panels of W_hh, which one step does not pack as a whole
  BackwardStates<S, E> states;
  int64_t step_stride;
  C* grad_pre;     // [N, D*H], or null: own_rows
  C* chunk_grad;   // [workers][chunk_rows][step_stride], the rows of grad_pre
  C* step_rows;    // [workers] of StepArray, each [unit_rows][step_stride]
  char* features;  // [workers] of FeatureGradients
  size_t features_bytes;
  char* sums;  // [units or workers] of WeightGradients
  // Of a leak: alpha and the sums of its gradient, [units] of [H], in whole panels.
  C *alpha, *alpha_sums;
  // Of voltage: what enters W_hh of hx and of reset_state, [D,B,H] each.
  S *start_output, *reset_output;
  int64_t* order;  // [workers] of [unit_rows] and [T], where sequences are sorted
  size_t sums_bytes, bytes;

  BackwardLayout(const Recurrence& p, const RecurrenceGradOut& out, const BackwardPlan& plan,
                 int workers, Arena arena)
      : p(p),
        out(out),
        plan(plan),
        ih(out.input && !plan.own_features && !plan.streams
               ? arena.take<F>(FeatureGradients<S, E>::packed_size(p))
               : nullptr),
        hh(p.T > 1 ? arena.take<F>(copies() * hh_size()) : nullptr),
        panels(arena.take<F>(p.T > 1 ? 0 : workers * panels_size())),
        states(p, out, plan, arena),
        step_stride(scratch_stride<C>(p.H)) {
    grad_pre = static_cast<C*>(out.pre);
    if (!grad_pre && !plan.own_rows) grad_pre = arena.take<C>(p.rows() * p.D * p.H);
    chunk_grad = arena.take<C>(plan.own_rows ? workers * plan.chunk_rows * step_stride : 0);
    step_rows = arena.take<C>(workers * step_rows_size());
    features_bytes = out.input ? FeatureGradients<S, E>(p, out, plan, ih, nullptr).bytes : 0;
    features = arena.take<char>(workers * static_cast<int64_t>(features_bytes));
    const int64_t parts = plan.own_sums ? 1 : workers;
    const int64_t most = divide_up(divide_up(p.H, E::kTileRows), parts) * E::kTileRows;
    sums_bytes = WeightGradients<S, E>(p, out, plan, {0, most}, nullptr).bytes;
    sums =
        arena.take<char>((plan.own_sums ? plan.units : workers) * static_cast<int64_t>(sums_bytes));
    alpha = arena.take<C>(states.leaks() ? plan.units * padded() : 0);
    alpha_sums = arena.take<C>(out.alpha[0] ? plan.units * padded() : 0);
    const int64_t state_size = p.form == Form::voltage ? p.D * p.B * p.H : 0;
    start_output = arena.take<S>(state_size);
    reset_output = arena.take<S>(p.reset ? state_size : 0);
    order = arena.take<int64_t>(plan.sorts ? workers * (plan.unit_rows + p.T) : 0);
    bytes = arena.used;
  }

  int64_t* order_of(const Worker& worker) const {
    return order + worker.rank * (plan.unit_rows + p.T);
  }
  int64_t* present_of(const Worker& worker) const { return order_of(worker) + plan.unit_rows; }
  int64_t copies() const { return plan.own_weights ? plan.units : p.D; }
  Matrix<S, F> weight_hh(int d) const {
    return {static_cast<const S*>(p.weight_hh[d]), p.H, p.H, false};
  }
  int64_t panels_size() const { return kStreamed<F> * weight_hh(0).panel_size() + gap<F>(2); }
  F* panels_of(const Worker& worker) const { return panels + worker.rank * panels_size(); }
  int64_t hh_size() const { return weight_hh(0).packed_size() + gap<F>(copies()); }
  F* packed_hh(int64_t copy) const { return hh + copy * hh_size(); }
  const F* packed_hh(const Unit& unit) const {
    return hh ? packed_hh(plan.own_weights ? unit.group : unit.d) : nullptr;
  }
  void pack_hh(int d, int64_t copy, int64_t q0, int64_t q1) const {
    StateWeights<S, E>{plan, weight_hh(d)}.pack(packed_hh(copy), q0, q1);
  }

  int64_t padded() const { return panels_in<C>(p.H) * kPanel<C>; }
  C* alpha_of_unit(const Unit& unit) const { return alpha + unit.group * padded(); }
  C* alpha_sums_of(int64_t unit) const {
    return out.alpha[0] ? alpha_sums + unit * padded() : nullptr;
  }
  // What entered W_hh before the first step, or after a reset; null: zeros.
  const S* starts() const {
    return p.form == Form::voltage ? start_output : static_cast<const S*>(p.hx);
  }
  const S* resets() const {
    return p.form == Form::voltage ? reset_output : static_cast<const S*>(p.reset_state);
  }
  RowCursor<S> cursor(const Unit& unit, int64_t t) const {
    return {p, starts(), resets(), unit, t};
  }
  // The unit's part of all this. Where a reset comes with the first step, hx enters nothing: its
  // place holds f of zeros.
  void begin_leak(const Unit& unit) const {
    const int64_t from = unit.p0 * kPanel<C>, to = unit.p1 * kPanel<C>;
    const int64_t first = p.reverse[unit.d] ? p.T - 1 : 0;
    for (int64_t j = from; j < to; j += kLanes<C>) {
      store(alpha_of_unit(unit) + j, alpha_of<S>(p, unit.d, j));
      if (out.alpha[0]) store(alpha_sums_of(unit.group) + j, Vec<C>{});
    }
    for (int64_t i = 0; i < unit.size && p.form == Form::voltage; ++i) {
      const int64_t b = unit.sequence(i);
      const void* const start = p.restarts(unit.d, b, first) ? nullptr : p.hx;
      for (int64_t j = from; j < to; j += kLanes<C>) {
        const int64_t at = (unit.d * p.B + b) * p.H + j;
        const Vec<C> hx = load_state(state_row<S>(p, start, unit.d, b), j, p.H - j);
        store_some(start_output + at, output_of<S>(p, hx), p.H - j);
        if (!p.reset) continue;
        const Vec<C> anew = load_state(state_row<S>(p, p.reset_state, unit.d, b), j, p.H - j);
        store_some(reset_output + at, output_of<S>(p, anew), p.H - j);
      }
    }
  }

  C* chunk_of(const Worker& worker) const {
    return chunk_grad + worker.rank * plan.chunk_rows * step_stride;
  }
  // A step's rows in scratch: the gradient of the output and what f gave; of a leak over sorted
  // sequences also the output and what is saved.
  enum StepArray { kGrad, kValues, kOutput, kSaved, kStepArrays };
  int64_t step_rows_size() const {
    const int64_t arrays = plan.sorts && states.leaks() ? kStepArrays : kOutput;
    return arrays * plan.unit_rows * step_stride + kApart / sizeof(C);
  }
  C* step_rows_of(const Worker& worker, StepArray which) const {
    return step_rows + worker.rank * step_rows_size() + which * plan.unit_rows * step_stride;
  }
  FeatureGradients<S, E> features_of(const Worker& worker) const {
    return {p, out, plan, ih, features + worker.rank * features_bytes};
  }
  WeightGradients<S, E> sums_of(int64_t unit) const {
    return {p, out, plan, {0, p.H}, sums + unit * sums_bytes};
  }
};

// The units' sums, one after the other.
template <class S, class E>
void alpha_gradients(const BackwardLayout<S, E>& at) {
  using C = Compute<S>;
  const Recurrence& p = at.p;
  for (int d = 0; d < p.D; ++d)
    for (int64_t j = 0; j < p.H; j += kLanes<C>) {
      Vec<C> sum = {};
      for (int64_t part = 0; part < at.plan.batch_parts; ++part)
        sum += load(at.alpha_sums_of(d * at.plan.batch_parts + part) + j);
      store_some(static_cast<S*>(at.out.alpha[d]) + j, sum, p.H - j);
    }
}

}  // namespace rnnext::RNNEXT_ISA
