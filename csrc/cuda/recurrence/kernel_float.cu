#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<ScalarEngine<float>>(Path, Exchange, CellKind, bool);
}
