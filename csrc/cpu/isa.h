// One ISA's kernels and table. Each isa_*.cpp includes the standard headers, sets its target and
// RNNEXT_ISA, RNNEXT_VECTOR_BYTES and RNNEXT_TILE_ROWS, and includes this.
#pragma once

#include "simd.h"
// after simd.h
#include "factor.h"
// after factor.h
#include "tanh.h"
// after tanh.h
#include "cell.h"
#include "product.h"
// after product.h
#include "plan.h"
// after plan.h
#include "embedding_kernel.h"
#include "rnn_feature_grad.h"
#include "rnn_weight_grad.h"
// after rnn_weight_grad.h
#include "rnn_backward.h"
#include "rnn_one_step.h"
// after rnn_one_step.h
#include "rnn_forward.h"
// after rnn_forward.h
#include "rnn_stack.h"

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
