#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_bf16(Path path, Exchange exchange, CellKind cell, bool backward) {
  return kernel_of<MatrixEngine<__nv_bfloat16, __nv_bfloat16>>(path, exchange, cell, backward);
}

}  // namespace rnnext::cuda
