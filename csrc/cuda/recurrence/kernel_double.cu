#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<FmaMicroKernel<double>>(const Geometry&, CellKind, bool);
}
