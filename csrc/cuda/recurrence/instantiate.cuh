// Instantiates the resident kernels of one engine; each kernel_<type>.cu does it for one type, so
// that they compile side by side.
#pragma once

#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {

template <class Engine, class Pass>
Kernel kernel_of(Path path) {
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
Kernel kernel_of(Path path, Nonlinearity nonlinearity, bool backward) {
  using T = typename Engine::Storage;
  return with_nonlinearity(nonlinearity, [&](auto named) {
    using Cell = CellOf<decltype(named)::value>;
    return backward ? kernel_of<Engine, Backward<T, Cell>>(path)
                    : kernel_of<Engine, Forward<T, Cell>>(path);
  });
}

}  // namespace rnnext::cuda
