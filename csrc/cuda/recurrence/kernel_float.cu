#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<ScalarEngine<float>>(const Geometry&, CellKind, bool);
}
