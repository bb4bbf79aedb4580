// A wavefront: layers of one direction, of which layer l runs some steps behind layer l - 1, on
// another core. They wait for each other once a chunk of steps, whereas threads that share a layer
// would wait at every step, and each core keeps the weights of its own layers in its caches.
#pragma once

#include "cpu/rnn/forward.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class MK>
void stack(const Recurrence* layers, const ForwardPlan* plans, int n, char* workspace,
           Worker& worker) {
  [[maybe_unused]] const typename MK::Task task;
  for (int l = 0; l < n; ++l) {
    const Recurrence& p = layers[l];
    const ForwardRun<S, MK> kernel{p, plans[l], {p, plans[l], 1, Arena{workspace}}};
    workspace += kernel.at.bytes;
    if (l % worker.size != worker.rank) continue;
    const Wavefront wavefront{.worker = &worker,
                              .below = l == 0 ? worker.rank : (l - 1) % worker.size,
                              .steps_before = l == 0 ? 0 : (l - 1) / worker.size * p.T};
    Worker alone(nullptr, 0, 1);
    kernel.run(work_item(plans[l], p, panels_in<Compute<S>>(p.H), 0, 0), alone, wavefront);
  }
}

}  // namespace rnnext::RNNEXT_ISA
