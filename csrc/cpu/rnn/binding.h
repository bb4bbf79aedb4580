// What every call of the recurrence on the CPU asks first: which kernels, how many threads, and
// whether its leak is one.
#pragma once

#include <c10/core/ScalarType.h>

#include "cpu/runtime/dispatch.h"

namespace rnnext {

// torch.set_float32_matmul_precision("medium") lets products of float32 take bfloat16 factors.
const RnnKernels& kernels_for(DType dtype);

// products: matrix products of the call, 1 forward.
int threads_for(const Recurrence& p, int products);

// Raises ValueError unless all H values are in (0, 1].
void check_alpha(const void* alpha, int64_t H, at::ScalarType type);

}  // namespace rnnext
