// Instantiates the resident kernels of one engine; each kernel_<type>.cu does it for one type, so
// that they compile side by side.
#pragma once

#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {

// The tagged exchange is compiled where both are to be compared, until a GPU has decided.
template <class Engine, class Pass>
Kernel kernel_of(Path path, Exchange exchange) {
#ifdef RNNEXT_CUDA_TAGGED
  if (exchange == Exchange::tagged) {
    if (path == Path::cluster) return recurrence_kernel<Engine, Pass, AsyncClusterGroup>;
    if (path == Path::grid) return recurrence_kernel<Engine, Pass, TaggedGridGroup>;
  }
#endif
  switch (path) {
    case Path::block:
      return recurrence_kernel<Engine, Pass, BlockGroup>;
    case Path::cluster:
      return recurrence_kernel<Engine, Pass, ClusterGroup>;
    case Path::grid:
      return recurrence_kernel<Engine, Pass, GridGroup>;
    default:
      return nullptr;
  }
}

template <class Engine>
Kernel kernel_of(Path path, Exchange exchange, CellKind cell, bool backward) {
  using T = typename Engine::Storage;
  using Tanh = Fixed<Nonlinearity::tanh>;
  using Relu = Fixed<Nonlinearity::relu>;
  switch (cell) {
    case CellKind::tanh:
      return backward ? kernel_of<Engine, Backward<T, Tanh>>(path, exchange)
                      : kernel_of<Engine, Forward<T, Tanh>>(path, exchange);
    case CellKind::relu:
      return backward ? kernel_of<Engine, Backward<T, Relu>>(path, exchange)
                      : kernel_of<Engine, Forward<T, Relu>>(path, exchange);
    default:
      return backward ? kernel_of<Engine, AnyBackward<T>>(path, exchange)
                      : kernel_of<Engine, AnyForward<T>>(path, exchange);
  }
}

}  // namespace rnnext::cuda
