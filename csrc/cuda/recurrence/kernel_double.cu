#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f64(Path path, Nonlinearity nonlinearity, bool backward) {
  return kernel_of<ScalarEngine<double>>(path, nonlinearity, backward);
}

}  // namespace rnnext::cuda
