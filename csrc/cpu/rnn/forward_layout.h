// The layout of a forward pass's workspace.
#pragma once

#include "cpu/rnn/forward_states.h"

namespace rnnext::RNNEXT_ISA {

// Where the weights, the states and each worker's scratch lie.
template <class S, class MK>
struct ForwardLayout {
  using F = typename MK::Operand;
  using C = Compute<S>;
  const Recurrence& p;
  const ForwardPlan& plan;
  Arrays<F> ih, hh;     // packed weights: a copy for each group or each direction
  Arrays<bool> finite;  // for each panel of each copy: whether W_hh is finite there
  ForwardStates<S, MK> states;
  GateColumns<C> gate_columns;  // the order of a product's columns
  int64_t columns;              // of a worker's part of the hidden units, of all gates
  Arrays<char> scratch;         // [workers] of Scratch
  size_t bytes;

  ForwardLayout(const Recurrence& p, const ForwardPlan& plan, int workers, Arena arena)
      : p(p),
        plan(plan),
        ih(arena.take_padded<F>(plan.copies(p.D), weight_ih(0).packed_size())),
        hh(arena.take_padded<F>(plan.copies(p.D), weight_hh(0).packed_size())),
        finite(arena.take_padded<bool>(plan.copies(p.D), weight_hh(0).panels())),
        states(p, plan, arena),
        gate_columns{p.H, p.gates()},
        columns(plan.member_blocks(panels_in<C>(p.H)) * p.gates() * kPanel<C>) {
    if (plan.weights == Weights::given) {
      ih.first = static_cast<F*>(const_cast<void*>(p.packed_weights));
      hh.first = ih.first + weight_ih(0).packed_size();
    }
    scratch = arena.take_padded<char>(workers, Scratch(*this, nullptr).bytes);
    bytes = arena.used;
  }

  struct Scratch {  // of one worker
    C *bias, *alpha, *noise;
    // pre: the pre-activations without W_hh h, of a chunk's rows. Gated cells keep the biases
    // apart: `bias` is bias_ih, and pre_hh has W_hh h + bias_hh of gate_blocks() of units,
    // [group_rows] rows gate_stride() apart; pre is as pre_hh, if they do not project.
    C *pre, *bias_hh, *pre_hh;
    F* features;
    F *ih, *hh;                // the panels that are streamed
    int64_t *order, *present;  // the work item's, if sequences are sorted
    size_t bytes;
    Scratch(const ForwardLayout& at, char* base) {
      Arena arena{base};
      bias = arena.take<C>(at.columns);
      alpha = arena.take<C>(is_leaky(at.p.cell) ? at.columns : 0);
      const bool gated = is_gated(at.p.cell);
      bias_hh = arena.take<C>(gated ? at.columns : 0);
      const int64_t for_gates = gated ? at.plan.group_rows * at.gate_stride() : 0;
      pre_hh = arena.take<C>(for_gates);
      noise = arena.take<C>(at.p.noise[0] ? at.columns : 0);
      pre = arena.take<C>(at.starts_from_rows() ? at.plan.chunk_rows * scratch_stride<C>(at.columns)
                                                : for_gates);
      const int64_t rows = divide_up(at.plan.chunk_rows, MK::kRowBlock) * MK::kRowBlock;
      features = arena.take<F>(at.p.I > 0 ? rows * scratch_stride<F>(at.p.I) : 0);
      const int64_t panels = at.plan.weights != Weights::streamed ? 0
                             : gated                              ? at.p.gates()
                                                                  : kStreamed<F>;
      ih = arena.take<F>(panels * at.weight_ih(0).panel_size());
      hh = arena.take<F>(panels * at.weight_hh(0).panel_size());
      order = arena.take<int64_t>(at.plan.sorts ? at.plan.group_rows : 0);
      present = arena.take<int64_t>(at.plan.sorts ? at.p.T : 0);
      bytes = arena.used;
    }
  };
  Scratch scratch_of(const Worker& worker) const { return {*this, scratch[worker.rank]}; }

  // How many blocks of units are multiplied before their gates follow: as many as keep the products
  // of a step in L1d, but at least two of a GRU's, where panels then make pairs.
  int64_t gate_blocks() const {
    if (plan.weights == Weights::streamed) return 1;
    const int64_t bytes = plan.group_rows * p.gates() * kPanel<C> * static_cast<int64_t>(sizeof(C));
    const int64_t least = plan.pair_bytes > 0 && !kTiled<F> && p.gates() % 2 ? 2 : 1;
    return min_of(plan.member_blocks(panels_in<C>(p.H)), max_of(least, kGateBytes / bytes));
  }
  int64_t gate_stride() const { return scratch_stride<C>(gate_blocks() * p.gates() * kPanel<C>); }
  // Whether each step's sums start from rows of scratch instead of the bias.
  bool starts_from_rows() const { return plan.projects || p.noise[0]; }
  int64_t copy_of(const WorkItem& item) const {
    return plan.weights == Weights::own ? item.group : item.d;
  }
  Matrix<S, F> weight_ih(int d) const { return forward_weight<S, F>(p, p.weight_ih[d], p.I); }
  Matrix<S, F> weight_hh(int d) const { return forward_weight<S, F>(p, p.weight_hh[d], p.H); }

  // Packs the weights of blocks [u0, u1) of units of direction d into a copy.
  void pack(int d, int64_t copy, int64_t u0, int64_t u1) const {
    const int64_t q0 = gate_columns.panels(u0), q1 = gate_columns.panels(u1);
    weight_ih(d).pack(ih[copy], q0, q1);
    if (!p.multiplies_state()) return;
    for (int64_t q = q0; q < q1; ++q) finite[copy][q] = weight_hh(d).pack(hh[copy], q, q + 1);
  }
  bool is_finite(const WorkItem& item) const {
    const bool* const of_copy = finite[copy_of(item)];
    for (int64_t q = gate_columns.panels(item.u0), end = gate_columns.panels(item.u1);
         q < end && of_copy && p.multiplies_state(); ++q)
      if (!of_copy[q]) return false;
    return true;
  }
};

}  // namespace rnnext::RNNEXT_ISA
