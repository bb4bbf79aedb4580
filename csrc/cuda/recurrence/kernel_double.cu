#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<ScalarEngine<double>>(const Geometry&, CellKind, bool);
}
