#include "cuda/recurrence/instantiate.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<ScalarEngine<double>>(Path, Exchange, CellKind, bool);
}
