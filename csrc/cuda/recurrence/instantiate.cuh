// Instantiates and launches the resident kernels of one engine; each kernel_<type>.cu does it
// for one type, so that they compile side by side.
#pragma once

#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {

template <class Engine, class Cell, bool Backward>
Kernel kernel_of(Path path) {
  switch (path) {
    case Path::block:
      return recurrence_kernel<Engine, Cell, BlockGroup, Backward>;
    case Path::cluster:
      return recurrence_kernel<Engine, Cell, ClusterGroup, Backward>;
    case Path::grid:
      return recurrence_kernel<Engine, Cell, GridGroup, Backward>;
    default:
      return nullptr;
  }
}

template <class Engine>
Kernel kernel_of(Path path, CellKind cell, bool backward) {
  if (cell == CellKind::tanh) {
    return backward ? kernel_of<Engine, Tanh, true>(path) : kernel_of<Engine, Tanh, false>(path);
  }
  return backward ? kernel_of<Engine, Relu, true>(path) : kernel_of<Engine, Relu, false>(path);
}

}  // namespace rnnext::cuda
