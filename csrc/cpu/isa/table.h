// One ISA's kernels, in one table.
#pragma once

#include "cpu/embedding/kernel.h"
#include "cpu/rnn/backward.h"
#include "cpu/rnn/forward.h"
#include "cpu/rnn/stack.h"
#include "cpu/runtime/dispatch.h"

namespace rnnext::RNNEXT_ISA {

template <class S, class F = Compute<S>>
constexpr RnnKernels kRnn = {forward_workspace<S, F>, backward_workspace<S, F>,
                             forward<S, F>,           backward<S, F>,
                             stack_workspace<S, F>,   stack<S, F>,
                             packed_bytes<S, F>,      pack<S, F>};

#ifdef RNNEXT_BF16_DOT
constexpr const RnnKernels* kRnnBFloat16 = &kRnn<BFloat16, Pair>;
constexpr const RnnKernels* kRnnMedium = &kRnn<float, Pair>;
#else
constexpr const RnnKernels* kRnnBFloat16 = &kRnn<BFloat16>;
constexpr const RnnKernels* kRnnMedium = nullptr;
#endif

constexpr KernelTable table(const char* name, bool (*supported)()) {
  return {name,
          supported,
          {&kRnn<float>, &kRnn<double>, kRnnBFloat16, &kRnn<Float16>},
          kRnnMedium,
          {sum_rows<float>, sum_rows<double>, sum_rows<BFloat16>, sum_rows<Float16>}};
}

}  // namespace rnnext::RNNEXT_ISA
