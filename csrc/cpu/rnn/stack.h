// Layers of one direction, each over the one before, computed at once: layer l is some steps behind
// layer l - 1, on another core. They wait for each other once a chunk of steps, where threads that
// share a layer would wait at every step, and each core keeps one layer's weights in its caches.
#pragma once

#include "cpu/rnn/forward.h"

namespace rnnext::RNNEXT_ISA {

// Estimated cycles of a step of one layer, shared out by `plan`.
template <class F>
double layer_cycles(const Recurrence& p, const Plan& plan) {
  const double features = static_cast<double>(p.B) * p.H * factors_in<F>(p.I) * sizeof(F) / 64;
  return plan.cycles + features / static_cast<double>(plan.batch_parts * plan.hidden_parts);
}

template <class S, class F>
size_t stack_workspace(const Recurrence* layers, int n, int threads) {
  double in_turn = 0, slowest = 0;
  size_t bytes = 0;
  int64_t chunk_steps = 1;
  for (int l = 0; l < n; ++l) {
    const Recurrence& p = layers[l];
    const Forward<S, F> kernel(p, 1, nullptr, true);
    const double alone = layer_cycles<F>(p, kernel.plan);
    slowest = alone > slowest ? alone : slowest;
    in_turn += layer_cycles<F>(p, Plan::choose<F>(p, threads));
    chunk_steps = max_of(chunk_steps, divide_up(kernel.chunk_rows, p.B));
    bytes += kernel.bytes;
  }
  const int64_t T = layers[0].T, team = min_of(n, threads);
  const double steps = static_cast<double>(divide_up(n, team) * T + (team - 1) * chunk_steps);
  return steps * slowest < static_cast<double>(T) * in_turn ? bytes : 0;
}

template <class S, class F>
void stack(const Recurrence* layers, int n, char* workspace, Worker& worker) {
  for (int l = 0; l < n; ++l) {
    const Forward<S, F> kernel(layers[l], 1, workspace, true);
    workspace += kernel.bytes;
    if (l % worker.size != worker.rank) continue;
    const Place place{&worker, l == 0 ? worker.rank : (l - 1) % worker.size,
                      l == 0 ? 0 : (l - 1) / worker.size * layers[l].T};
    Worker alone(nullptr, 0, 1, 1);
    kernel.run(unit_of<Compute<S>>(kernel.plan, layers[l], 0, 0), alone, place);
  }
}

}  // namespace rnnext::RNNEXT_ISA
