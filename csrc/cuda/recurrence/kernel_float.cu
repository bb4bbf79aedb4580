#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f32(Path path, Nonlinearity nonlinearity, bool backward) {
  return kernel_of<ScalarEngine<float>>(path, nonlinearity, backward);
}

}  // namespace rnnext::cuda
