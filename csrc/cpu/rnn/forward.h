// The forward pass. The sums start from the bias, add W_ih x and W_hh h, and go through the
// epilogue. If the plan projects, W_ih x of a chunk of steps is computed first, into scratch. Both
// products of a gated cell go to scratch, where its gates read them.
#pragma once

#include "cpu/rnn/forward_layout.h"
#include "cpu/rnn/gates.h"
#include "cpu/rnn/one_step.h"
#include "cpu/simd/normal.h"

namespace rnnext::RNNEXT_ISA {

// A layer's place in a wavefront of layers (stack()): it waits for the steps of the one below.
struct Wavefront {
  Worker* worker = nullptr;  // of the stack's team; null: there is no stack
  int below = 0;             // the rank of the worker that computes the layer below
  int64_t steps_before = 0;  // how far that worker has advanced when it begins that layer

  void await(int64_t steps) const {
    if (worker && below != worker->rank) worker->wait_for(below, steps_before + steps);
  }
  void advance(int64_t steps) const {
    if (worker) worker->advance(steps);
  }
};

// One step of a work item, of the sequences that have it. A product for macro_kernel().
template <class MK>
struct ForwardStep {
  using MicroKernel = MK;
  using F = typename MK::Operand;
  using C = Compute<F>;
  Epilogue<ForwardStep, C> epilogue;
  const F* packed;  // W_hh, through which the macro-kernel goes
  const F* packed_ih;
  int64_t H;
  Rows<const C> start;  // the bias, or rows of pre-activations, as if they began with column 0
  Rows<const F> a;      // what W_hh multiplies: the state
  Rows<const F> features = {};
  int64_t K_ih = 0;  // operands of the features; 0: W_ih x is in `start`
  Rows<F> next = {};
  int64_t next_end = 0;  // where a row of `next` ends
  Rows<C> output = {};   // none: it is `next`, or ForwardStates::finish_step writes it
  bool far = false;      // whether the output's lines come from far memory
  StateRows<C> state = {};
  C* far_saved = nullptr;    // state.saved, if its lines may come from far memory too
  bool past_caches = false;  // whether state.saved is written past the caches

  template <class Extent>
  RNNEXT_NOINLINE void tile(Extent extent, int64_t row, int64_t column, const F* panels, int64_t K,
                            const Ahead* ahead) const {
    if (far) prefetch(extent, row, column, 1);
    typename Extent::template Tile<MK> sums(extent);
    sums.load(start[row] + column, start.stride);
    const Ahead next = ahead ? ahead->of(packed, K, packed_ih, K_ih) : Ahead{};
    sums.add(features[row], features.stride, packed_ih + column * K_ih, K_ih,
             ahead ? &next : nullptr);
    sums.add(a[row], a.stride, panels, K, ahead);
    sums.finish(*this, row, column);
  }
  // Prefetches the lines in far memory that a tile writes, among them `saved` values of each unit.
  template <class Extent>
  RNNEXT_INLINE void prefetch(Extent extent, int64_t row, int64_t column, int saved) const {
    F* const to = next[row] + column / kKPack<F>;
    if (output) extent.template prefetch<true>(output[row] + column, output.stride);
    if (!output) extent.template prefetch<true, kKPack<F>>(to, next.stride);
    for (int k = 0; far_saved && k < saved; ++k)
      extent.template prefetch<true>(far_saved + row * state.row_stride + k * H + column,
                                     state.row_stride);
  }
  template <int R, int NV>
  RNNEXT_INLINE void finish(Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
    if (epilogue.out_of_line) return epilogue.call(*this, sums, row, column);
    for_inlined(epilogue.nonlinearity, [&](auto name) {
      for_block<R, NV>([&](int r, int j) {
        sums[r][j] = Activation<C, decltype(name)::value>::forward(sums[r][j]);
      });
    });
    store_tile(sums, next[row], next.stride, column, next_end);
    if (output) store_tile(sums, output[row], output.stride, column, H);
  }
};

template <class S, class MK>
struct ForwardRun {
  using F = typename MK::Operand;
  using C = Compute<S>;
  using Step = ForwardStep<MK>;
  using Scratch = typename ForwardLayout<S, MK>::Scratch;
  const Recurrence& p;
  const ForwardPlan& plan;
  ForwardLayout<S, MK> at;

  void pack_share(const Worker& worker) const {
    const Range share = share_of(panels_in<F>(p.H), worker.rank, worker.size);
    for (int d = 0; d < p.D; ++d) at.pack(d, d, share.begin, share.end);
  }

  RNNEXT_NOINLINE void run(const WorkItem& unsorted, Worker& worker,
                           const Wavefront& wavefront = {}) const {
    const auto s = at.scratch_of(worker);
    const WorkItem item = plan.sorts ? sorted(unsorted, p, s.order, s.present) : unsorted;
    const int64_t first_column = at.gate_columns.begin(item.u0), copy = at.copy_of(item);
    const bool gated = is_gated(p.cell);
    const Rows<C> pre{s.pre - first_column, scratch_stride<C>(at.columns)};
    if (plan.weights == Weights::own && item.begins) at.pack(item.d, item.group, item.u0, item.u1);
    const auto fill = [&](C* values, const auto& of) {
      for (int64_t j = 0; j < at.columns; j += kLanes<C>) store(values + j, of(first_column + j));
    };
    if (gated) {
      fill(s.bias, [&](int64_t j) { return load_gates<S>(p, p.bias_ih[item.d], j); });
      fill(s.bias_hh, [&](int64_t j) { return load_gates<S>(p, p.bias_hh[item.d], j); });
    } else {
      fill(s.bias, [&](int64_t j) { return bias_of<S>(p, item.d, j); });
    }
    Step step{.epilogue = epilogue_of<ForwardEpilogue, S, Step>(p, kNative<S>),
              .packed = at.hh[copy],
              .packed_ih = at.ih[copy],
              .H = p.H,
              .start = {s.bias - first_column, 0},
              .a = at.states.initial_state(item)};
    if (item.members > 1) worker.advance();
    step.far = plan.far;
    if (is_leaky(p.cell)) {
      fill(s.alpha, [&](int64_t j) { return alpha_of<S>(p, item.d, j); });
      step.state.alpha = s.alpha - first_column;
    }
    if (p.noise[0]) fill(s.noise, [&](int64_t j) { return load_hidden<S>(p, p.noise[item.d], j); });
    // A state of zeros needs no product, unless a weight that is not finite turns zeros into NaN.
    const bool starts_from_zeros =
        !p.hx && !p.reset_state && p.cell != Cell::voltage && at.is_finite(item);
    const bool reverse = p.reverse[item.d];
    bool chunk_back = false;
    for (int64_t done = 0; done < p.T;) {
      const Chunk chunk = next_chunk(p, item, done, reverse, plan.projects ? plan.chunk_rows : 0);
      wavefront.await(done + chunk.n);
      if (p.I > 0) step.features = feature_rows<S, MK>(p, item, chunk, s.features);
      if (p.noise[0]) draw_noise(item, chunk, s, pre, first_column);
      if (plan.projects) {
        const Rows<const C> bias{s.bias - first_column, 0};
        fill_pre(item, chunk, step, p.noise[0] ? pre : bias, pre, chunk_back);
        chunk_back = !chunk_back;
      } else {
        step.K_ih = operands_in<F>(p.I);
      }
      int64_t row = reverse ? chunk.rows : 0;
      for (int64_t i = 0; i < chunk.n; ++i, ++done) {
        const int64_t t = reverse ? p.T - 1 - done : done;
        const int64_t rows = sequences(p, item, t);
        if (reverse) row -= rows;
        const Rows<C> own{pre[row], pre.stride};
        if (at.starts_from_rows()) step.start = own;
        at.states.set_destinations(step, item, t, done);
        const bool from_zeros = done == 0 && starts_from_zeros;
        const bool back = (p.first_step + done) % 2;
        // (No member wrote zeros, or hx where it lies.)
        const bool waits = !from_zeros && !(done == 0 && plan.from_hx);
        if (gated) {
          gated_step(step, item, s, own, rows, waits ? done + 1 : 0, from_zeros, back, worker);
        } else if (plan.weights == Weights::streamed) {
          if (!plan.from_hx && p.multiplies_state())
            await_members(item, done + 1, step.a, operands_in<F>(p.H), rows, worker);
          stream(step, item, s, rows);
        } else {
          const int64_t K = from_zeros ? 0 : operands_in<F>(p.H);
          if (waits) await_members(item, done + 1, step.a, K, rows, worker);
          macro_kernel(step, rows, item.u0, item.u1, p.H, K, {back, plan.fetches, plan.pair_bytes});
        }
        at.states.finish_step(step, item, t, done, rows);
        if (!reverse) row += rows;
        if (item.members > 1) worker.advance();
      }
      wavefront.advance(chunk.n);
    }
  }

  // Computes a step of a gated cell, some blocks of units at a time: its products with the
  // features, unless they are at `projected` already, and with the state, then the gates. n: see
  // await_members(); 0: no wait.
  void gated_step(Step& step, const WorkItem& item, const Scratch& s, const Rows<C>& projected,
                  int64_t rows, int64_t n, bool from_zeros, bool back, const Worker& worker) const {
    const GateColumns<C>& order = at.gate_columns;
    const int64_t first = order.begin(item.u0), some = at.gate_blocks();
    const int64_t K_hh = from_zeros ? 0 : operands_in<F>(p.H);
    const bool streams = plan.weights == Weights::streamed;
    if (n > 0) await_members(item, n, step.a, K_hh, rows, worker);
    const int64_t turns = divide_up(item.u1 - item.u0, some);
    for (int64_t turn = 0; turn < turns; ++turn) {
      const int64_t u0 = item.u0 + some * (back ? turns - 1 - turn : turn);
      const int64_t u1 = min_of(u0 + some, item.u1), begin = order.begin(u0);
      const int64_t q0 = order.panels(u0), q1 = order.panels(u1), end = order.begin(u1);
      const Rows<C> pre_hh{s.pre_hh - begin, at.gate_stride()};
      const Rows<C> pre_ih = plan.projects ? projected : Rows<C>{s.pre - begin, at.gate_stride()};
      const auto multiply = [&](const F* packed, const Rows<const F>& a, int64_t K, const C* bias,
                                const Rows<C>& out) {
        macro_kernel(PlainProduct<MK>{packed, a, {bias - first, 0}, out, end}, rows, q0, q1, end, K,
                     {back, plan.fetches, plan.pair_bytes, turn + 1 < turns});
      };
      const auto multiply_features = [&] {
        if (!plan.projects)
          multiply(streams ? at.weight_ih(item.d).pack_panels(q0, q1, s.ih) : step.packed_ih,
                   step.features, step.K_ih, s.bias, pre_ih);
      };
      if (!back) multiply_features();
      multiply(streams && K_hh > 0 ? at.weight_hh(item.d).pack_panels(q0, q1, s.hh) : step.packed,
               step.a, K_hh, s.bias_hh, pre_hh);
      if (back) multiply_features();
      with_gates(p.cell, [&]<class Gates>(Gates) {
        forward_gates<Gates, S>(step, Rows<const C>(pre_ih), Rows<const C>(pre_hh), rows, u0, u1,
                                plan.batch_parts > 1);
      });
    }
  }

  // Computes a single step: packs some panels at a time to one place, and multiplies from there.
  void stream(Step& step, const WorkItem& item, const Scratch& s, int64_t rows) const {
    const Matrix<S, F> ih = at.weight_ih(item.d), hh = at.weight_hh(item.d);
    const int64_t K = p.multiplies_state() ? operands_in<F>(p.H) : 0;
    for (int64_t q = item.u0; q < item.u1; q += kStreamed<F>) {
      const int64_t end = min_of(q + kStreamed<F>, item.u1);
      step.packed_ih = ih.pack_panels(q, end, s.ih);
      if (K > 0) step.packed = hh.pack_panels(q, end, s.hh);
      macro_kernel(step, rows, q, end, p.H, K);
    }
  }

  // Fills a chunk's rows, which begin with column 0, with the biases and the noise, from which all
  // other sums start. Past the last vector of units only W_ih x of a chunk needs them.
  void draw_noise(const WorkItem& item, const Chunk& chunk, const Scratch& s, Rows<C> rows,
                  int64_t first_column) const {
    const int64_t all = item.u1 * kPanel<C>, end = plan.projects ? all : min_of(all, p.H);
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t) {
      const SequenceNumbers of{item.order, item.b0, sequences(p, item, t)};
      add_noise<C>(*p.noise_keys, p.first_step + t, of, item.d, s.noise - first_column,
                   s.bias - first_column, rows, first_column, end);
      rows.first = rows[of.size];
    }
  }

  // Fills `pre` with a chunk's pre-activations without the recurrent term, which start from the
  // rows at `start`. Both begin with column 0.
  void fill_pre(const WorkItem& item, const Chunk& chunk, const Step& step,
                const Rows<const C>& start, const Rows<C>& pre, bool back) const {
    const GateColumns<C>& order = at.gate_columns;
    if (p.I > 0) {
      const int64_t end = order.panels() * kPanel<C>, first = order.panels(item.u0);
      const PlainProduct<MK> project{step.packed_ih, step.features, start, pre, end};
      return macro_kernel(project, chunk.rows, first, order.panels(item.u1), order.begin(item.u1),
                          operands_in<F>(p.I), {back, plan.fetches, plan.pair_bytes});
    }
    int64_t to = 0;
    for (int64_t t = chunk.t; t < chunk.t + chunk.n; ++t)
      for (int64_t i = 0, n = sequences(p, item, t); i < n; ++i, ++to) {
        const S* const row = p.input.data
                                 ? input_row<S>(p, t, item.sequence(i)) + item.d * p.gates() * p.H
                                 : nullptr;
        for (int64_t j = order.begin(item.u0); j < order.begin(item.u1); j += kLanes<C>) {
          Vec<C> x = load(start[to] + j);
          if (row) x += load_gates<S>(p, row, j);
          store(pre[to] + j, x);
        }
      }
  }
};

template <class S, class MK>
size_t forward_workspace(const Recurrence& p, const ForwardPlan& plan, int threads) {
  if constexpr (kShape<S, MK>.unpacks())
    if (plan.weights == Weights::unpacked) return threads * OneStep<S, MK>(p, nullptr).bytes;
  return ForwardLayout<S, MK>(p, plan, threads, Arena{nullptr}).bytes;
}

template <class S, class MK>
void forward(const Recurrence& p, const ForwardPlan& plan, char* workspace, Worker& worker) {
  [[maybe_unused]] const typename MK::Task task;
  if constexpr (kShape<S, MK>.unpacks())
    if (plan.weights == Weights::unpacked) {
      const size_t bytes = OneStep<S, MK>(p, nullptr).bytes;
      return OneStep<S, MK>(p, workspace + worker.rank * bytes).run(worker);
    }
  const ForwardRun<S, MK> kernel{p, plan, {p, plan, worker.size, Arena{workspace}}};
  if (plan.weights == Weights::shared) {
    kernel.pack_share(worker);
    worker.wait();
  }
  run_items<Compute<S>>(kernel, plan, p, worker);
}

// A wavefront: layers of one direction, of which layer l runs some steps behind layer l - 1, on
// another core. They wait for each other once a chunk of steps, whereas threads that share a layer
// would wait at every step, and each core keeps the weights of its own layers in its caches.
template <class S, class MK>
void stack(const Recurrence* layers, const ForwardPlan* plans, int n, char* workspace,
           Worker& worker) {
  [[maybe_unused]] const typename MK::Task task;
  for (int l = 0; l < n; ++l) {
    const Recurrence& p = layers[l];
    const ForwardRun<S, MK> kernel{p, plans[l], {p, plans[l], 1, Arena{workspace}}};
    workspace += kernel.at.bytes + kFalseSharing;
    if (l % worker.size != worker.rank) continue;
    const Wavefront wavefront{.worker = &worker,
                              .below = l == 0 ? worker.rank : (l - 1) % worker.size,
                              .steps_before = l == 0 ? 0 : (l - 1) / worker.size * p.T};
    Worker alone(nullptr, 0, 1);
    kernel.run(work_item(plans[l], p, panels_in<Compute<S>>(p.H), 0, 0), alone, wavefront);
  }
}

// Packs W_ih, then W_hh, as a call packs them for itself.
template <class S, class MK>
void pack(const Recurrence& p, char* packed) {
  using F = typename MK::Operand;
  [[maybe_unused]] const typename MK::Task task;
  F* to = reinterpret_cast<F*>(packed);
  const auto pack_all = [&](const void* values, int64_t K) {
    const auto weight = forward_weight<S, F>(p, values, K);
    weight.pack(to, 0, weight.panels());
    to += weight.packed_size();
  };
  pack_all(p.weight_ih[0], p.I);
  pack_all(p.weight_hh[0], p.H);
}

}  // namespace rnnext::RNNEXT_ISA
