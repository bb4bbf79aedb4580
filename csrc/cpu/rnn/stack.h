// A wavefront: layers of one direction, of which layer l runs some steps behind layer l - 1, on
// another core. They wait for each other once a chunk of steps, whereas threads that share a layer
// would wait at every step, and each core keeps the weights of its own layers in its caches.
#pragma once

#include "cpu/rnn/forward.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class MK>
size_t stack_workspace(const Recurrence* layers, int n, int threads) {
  if (!plan_wavefront(layers, n, kShape<S, MK>, this_machine(), threads)) return 0;
  size_t bytes = 0;
  for (int l = 0; l < n; ++l) {
    const ForwardPlan plan = plan_forward(layers[l], kShape<S, MK>, this_machine(), 1, true);
    bytes += ForwardLayout<S, MK>(layers[l], plan, 1, Arena{nullptr}).bytes;
  }
  return bytes;
}

template <class S, class MK>
void stack(const Recurrence* layers, int n, char* workspace, Worker& worker) {
  [[maybe_unused]] const typename MK::Task task;
  for (int l = 0; l < n; ++l) {
    const Recurrence& p = layers[l];
    const ForwardPlan plan = plan_forward(p, kShape<S, MK>, this_machine(), 1, true);
    const ForwardRun<S, MK> kernel{p, plan, {p, plan, 1, Arena{workspace}}};
    workspace += kernel.at.bytes;
    if (l % worker.size != worker.rank) continue;
    const Wavefront wavefront{.worker = &worker,
                              .below = l == 0 ? worker.rank : (l - 1) % worker.size,
                              .steps_before = l == 0 ? 0 : (l - 1) / worker.size * p.T};
    Worker alone(nullptr, 0, 1);
    kernel.run(work_item(plan, p, panels_in<Compute<S>>(p.H), 0, 0), alone, wavefront);
  }
}

}  // namespace rnnext::RNNEXT_ISA
