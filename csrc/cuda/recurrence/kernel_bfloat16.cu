#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_bf16(Path path, CellKind cell, bool backward) {
  return kernel_of<MatrixEngine<__nv_bfloat16, __nv_bfloat16>>(path, cell, backward);
}

}  // namespace rnnext::cuda
