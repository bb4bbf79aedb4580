#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MmaMicroKernel<__half, __half>>(const Geometry&, CellKind, bool);
}
