#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
template Kernel kernel_of<MmaMicroKernel<__nv_bfloat16, __nv_bfloat16>>(const Geometry&, CellKind,
                                                                        bool);
}
