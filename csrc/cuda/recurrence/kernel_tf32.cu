#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_tf32(Path path, Exchange exchange, CellKind cell, bool backward) {
  return kernel_of<MatrixEngine<Tf32, float>>(path, exchange, cell, backward);
}

}  // namespace rnnext::cuda
