// What every call of the recurrence on the CPU asks first: which kernels, how many threads.
#pragma once

#include "cpu/runtime/dispatch.h"

namespace rnnext {

// torch.set_float32_matmul_precision("medium") lets products of float32 take bfloat16 factors.
const RnnKernels& kernels_for(DType dtype);

// products: matrix products of the call, 1 forward.
int threads_for(const Recurrence& p, int products);

}  // namespace rnnext
