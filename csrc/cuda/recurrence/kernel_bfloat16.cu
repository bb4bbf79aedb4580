#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {

Kernel kernel_bf16(Path path, Nonlinearity nonlinearity, bool backward) {
  return kernel_of<MatrixEngine<__nv_bfloat16, __nv_bfloat16>>(path, nonlinearity, backward);
}

}  // namespace rnnext::cuda
