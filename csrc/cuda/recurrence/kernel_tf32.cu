#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MmaMicroKernel<Tf32, float>>(const Geometry&, CellKind, bool);
}
