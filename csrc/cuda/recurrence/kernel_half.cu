#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f16(Path path, Nonlinearity nonlinearity, bool backward) {
  return kernel_of<MatrixEngine<__half, __half>>(path, nonlinearity, backward);
}

}  // namespace rnnext::cuda
