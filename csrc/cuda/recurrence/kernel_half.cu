#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MatrixEngine<__half, __half>>(Path, Exchange, CellKind, bool);
}
