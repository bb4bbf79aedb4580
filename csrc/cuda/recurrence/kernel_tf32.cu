#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MatrixEngine<Tf32, float>>(Path, Exchange, CellKind, bool);
}
