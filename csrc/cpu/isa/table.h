// One ISA's kernels, in one table.
#pragma once

#include "cpu/embedding/kernel.h"
#include "cpu/rnn/backward.h"
#include "cpu/rnn/forward.h"
#include "cpu/rnn/stack.h"
#include "cpu/runtime/dispatch.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class E = FmaEngine<Compute<S>>>
constexpr RnnKernels kRnn = {kShape<S, E>,  forward_workspace<S, E>, backward_workspace<S, E>,
                             forward<S, E>, backward<S, E>,          stack_workspace<S, E>,
                             stack<S, E>,   packed_bytes<S, E>,      pack<S, E>};

// A table lists what its ISA computes better than the one below it, which has the rest.
#if defined(RNNEXT_TILES)
constexpr KernelTable table(const char* name, bool (*supported)(), const KernelTable* below) {
  return {name,
          supported,
          below,
          {nullptr, nullptr, &kRnn<BFloat16, AmxEngine<1>>, nullptr},
          &kRnn<float, AmxEngine<1>>,
          &kRnn<float, AmxEngine<2>>,
          {},
          nullptr};
}
#elif defined(RNNEXT_BF16_DOT)
constexpr KernelTable table(const char* name, bool (*supported)(), const KernelTable* below) {
  return {name,
          supported,
          below,
          {nullptr, nullptr, &kRnn<BFloat16, Bf16DotEngine>, nullptr},
          &kRnn<float, Bf16DotEngine>,
          nullptr,
          {},
          nullptr};
}
#else
constexpr KernelTable table(const char* name, bool (*supported)()) {
  return {name,
          supported,
          nullptr,
          {&kRnn<float>, &kRnn<double>, &kRnn<BFloat16>, &kRnn<Float16>},
          nullptr,
          nullptr,
          {sum_runs<float>, sum_runs<double>, sum_runs<BFloat16>, sum_runs<Float16>},
          normals};
}
#endif

}  // namespace rnnext::RNNEXT_ISA
