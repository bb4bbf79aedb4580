// Dropout between layers.
#include <ATen/TensorOperators.h>
#include <ATen/native/Math.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/randint.h>

#include <cmath>
#include <limits>

#include "ops/layers.h"

namespace rnnext {

// On the CPU it takes the kernels' normal numbers, of which it keeps
// those above a quantile: torch's own generator draws one number at a time, which takes as long as
// two layers. (What is mapped has a rule of torch's.)
Tensor dropped(const Tensor& x, double p) {
  if (!x.is_cpu() || transformed(x) || p == 1) return at::dropout(x, p, /*train=*/true);
  const Tensor key = at::randint(std::numeric_limits<int64_t>::max(), {}, at::kLong);
  const bool packed = x.dim() == 2;
  Tensor numbers =
      call_op<NoiseOp>(key, packed ? 1 : x.sym_size(0), x.sym_size(-2), 1, x.sym_size(-1));
  if (packed) numbers = numbers.squeeze(0);
  const double quantile = std::sqrt(2) * calc_erfinv(2 * p - 1);
  return x * numbers.gt_(quantile).to(x.scalar_type()).mul_(1 / (1 - p));
}

}  // namespace rnnext
