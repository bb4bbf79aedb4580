#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_f32(Path path, CellKind cell, bool backward) {
  return kernel_of<ScalarEngine<float>>(path, cell, backward);
}

}  // namespace rnnext::cuda
