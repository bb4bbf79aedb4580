#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_tf32(Path path, CellKind cell, bool backward) {
  return kernel_of<MatrixEngine<Tf32, float>>(path, cell, backward);
}

}  // namespace rnnext::cuda
