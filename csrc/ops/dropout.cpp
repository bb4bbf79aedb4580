// Dropout between layers.
#include <ATen/TensorOperators.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/randint.h>

#include <limits>

#include "ops/layers.h"

namespace rnnext {

// On the CPU the mask comes from the kernels' random numbers: torch's generator draws one number at
// a time, which takes as long as two layers. (For mapped tensors torch has a rule.)
Tensor dropped(const Tensor& x, double p) {
  if (!x.is_cpu() || transformed(x) || p == 1) return at::dropout(x, p, /*train=*/true);
  const Tensor key = at::randint(std::numeric_limits<int64_t>::max(), {}, at::kLong);
  const bool packed = x.dim() == 2;
  const Tensor mask = call_op<DropoutMaskOp>(key, packed ? 1 : x.sym_size(0), x.sym_size(-2),
                                             x.sym_size(-1), p, x.scalar_type());
  return x * (packed ? mask.squeeze(0) : mask);
}

}  // namespace rnnext
