#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f16(Path path, Exchange exchange, CellKind cell, bool backward) {
  return kernel_of<MatrixEngine<__half, __half>>(path, exchange, cell, backward);
}

}  // namespace rnnext::cuda
