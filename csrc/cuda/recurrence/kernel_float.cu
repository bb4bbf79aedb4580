#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f32(Path path, Exchange exchange, CellKind cell, bool backward) {
  return kernel_of<ScalarEngine<float>>(path, exchange, cell, backward);
}

}  // namespace rnnext::cuda
