#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<FmaMicroKernel<float>>(const Geometry&, CellKind, bool);
}
