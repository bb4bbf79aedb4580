#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_tf32(Path path, Nonlinearity nonlinearity, bool backward) {
  return kernel_of<MatrixEngine<Tf32, float>>(path, nonlinearity, backward);
}

}  // namespace rnnext::cuda
