#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MatrixEngine<__nv_bfloat16, __nv_bfloat16>>(Path, Exchange, CellKind,
                                                                      bool);
}
