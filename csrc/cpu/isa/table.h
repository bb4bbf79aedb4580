// One ISA's kernels, in one table.
#pragma once

#include "cpu/embedding/kernel.h"
#include "cpu/isa/dispatch.h"
#include "cpu/rnn/backward.h"
#include "cpu/rnn/forward.h"
#include "cpu/rnn/stack.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class E = FmaEngine<Compute<S>>>
constexpr RnnKernels kRnn = {.shape = kShape<S, E>,
                             .forward_workspace = forward_workspace<S, E>,
                             .backward_workspace = backward_workspace<S, E>,
                             .forward = forward<S, E>,
                             .backward = backward<S, E>,
                             .stack_workspace = stack_workspace<S, E>,
                             .stack = stack<S, E>,
                             .pack = pack<S, E>};

// A table lists what its ISA computes better than the one below it, which has the rest.
constexpr KernelTable table(const char* name, bool (*supported)(),
                            const KernelTable* below = nullptr) {
  return {
      .name = name,
      .supported = supported,
      .below = below,
#if defined(RNNEXT_TILES)
      .rnn = {nullptr, nullptr, &kRnn<BFloat16, AmxEngine<1>>, nullptr},
      .rnn_medium = &kRnn<float, AmxEngine<1>>,
      .rnn_high = &kRnn<float, AmxEngine<2>>,
#elif defined(RNNEXT_BF16_DOT)
      .rnn = {nullptr, nullptr, &kRnn<BFloat16, Bf16DotEngine>, nullptr},
      .rnn_medium = &kRnn<float, Bf16DotEngine>,
#else
      .rnn = {&kRnn<float>, &kRnn<double>, &kRnn<BFloat16>, &kRnn<Float16>},
      .sum_runs = {sum_runs<float>, sum_runs<double>, sum_runs<BFloat16>, sum_runs<Float16>},
      .normals = normals,
      .random_words = random_words,
#endif
  };
}

}  // namespace rnnext::RNNEXT_ISA
