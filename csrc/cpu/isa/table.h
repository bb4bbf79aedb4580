// One ISA's kernels, in one table.
#pragma once

#include "cpu/embedding/kernel.h"
#include "cpu/isa/dispatch.h"
#include "cpu/rnn/backward.h"
#include "cpu/rnn/forward.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class MK = FmaMicroKernel<Compute<S>>>
constexpr RnnKernels kRnn = {.shape = kShape<S, MK>,
                             .forward_workspace = forward_workspace<S, MK>,
                             .backward_workspace = backward_workspace<S, MK>,
                             .forward = forward<S, MK>,
                             .backward = backward<S, MK>,
                             .stack = stack<S, MK>,
                             .pack = pack<S, MK>};

// A table lists what its ISA computes faster than the one below it, which provides the rest.
constexpr KernelTable table(const char* name, bool (*supported)(),
                            const KernelTable* below = nullptr) {
  return {
      .name = name,
      .supported = supported,
      .below = below,
#if defined(RNNEXT_TILES)
      .rnn = {nullptr, nullptr, &kRnn<BFloat16, AmxMicroKernel<1>>, nullptr},
      .rnn_medium = &kRnn<float, AmxMicroKernel<1>>,
      .rnn_high = &kRnn<float, AmxMicroKernel<2>>,
#elif defined(RNNEXT_BF16_DOT)
      .rnn = {nullptr, nullptr, &kRnn<BFloat16, Bf16DotMicroKernel>, nullptr},
      .rnn_medium = &kRnn<float, Bf16DotMicroKernel>,
#else
      .rnn = {&kRnn<float>, &kRnn<double>, &kRnn<BFloat16>, &kRnn<Float16>},
      .sum_runs = {sum_runs<float>, sum_runs<double>, sum_runs<BFloat16>, sum_runs<Float16>},
      .normals = normals,
      .random_words = random_words,
#endif
  };
}

}  // namespace rnnext::RNNEXT_ISA
