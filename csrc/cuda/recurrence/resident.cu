// The resident kernels: which one runs a call, how many of its clusters fit, and its launch.
#include <algorithm>

#include "cuda/recurrence/launch.h"
#include "cuda/recurrence/micro_kernel.cuh"

namespace rnnext::cuda {
namespace {

CellKind cell_of(const DeviceCall& p) {
  if (p.reset || p.cell != Cell::elman) return CellKind::any;
  return p.nonlinearity == Nonlinearity::tanh   ? CellKind::tanh
         : p.nonlinearity == Nonlinearity::relu ? CellKind::relu
                                                : CellKind::any;
}

}  // namespace

cudaError_t describe(Device* device) {
  const Kernel kernel =
      kernel_of<FmaMicroKernel<float>>({.path = Path::cluster}, CellKind::tanh, true);
  const void* function = reinterpret_cast<const void*>(kernel);
  int index = 0, major = 0, minor = 0;
  cudaFuncAttributes code = {};
  cudaError_t error = cudaGetDevice(&index);
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, index);
  };
  get(&major, cudaDevAttrComputeCapabilityMajor);
  get(&minor, cudaDevAttrComputeCapabilityMinor);
  get(&device->sm_count, cudaDevAttrMultiProcessorCount);
  get(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, function);
  if (error != cudaSuccess) return error;
  // (Code that the driver made from PTX has the device's version, but only what the PTX knew.)
  device->capability = std::min({10 * major + minor, code.ptxVersion, code.binaryVersion});
  if (device->capability < 90) return cudaSuccess;
  raise_limits(function);
  for (int i = 0; i < 4; ++i) {
    const unsigned blocks = 2u << i;
    const LaunchConfig config({.grid = dim3(blocks),
                               .block = dim3(kThreads),
                               .shared_bytes = static_cast<size_t>(device->shared_bytes),
                               .cluster = blocks});
    if (cudaOccupancyMaxActiveClusters(&device->clusters[i], function, &config) != cudaSuccess) {
      device->clusters[i] = 0;
      cudaGetLastError();  // a size that this device does not have
    }
  }
  return cudaSuccess;
}

cudaError_t launch_resident(const DeviceCall& p, const Geometry& geometry, Compute compute,
                            bool backward, cudaStream_t stream) {
  // In the order of Compute.
  constexpr decltype(&kernel_of<FmaMicroKernel<float>>) kKernels[] = {
      kernel_of<FmaMicroKernel<float>>, kernel_of<FmaMicroKernel<double>>,
      kernel_of<MmaMicroKernel<__nv_bfloat16, __nv_bfloat16>>,
      kernel_of<MmaMicroKernel<__half, __half>>, kernel_of<MmaMicroKernel<Tf32, float>>};
  const Kernel kernel = kKernels[static_cast<int>(compute)](geometry, cell_of(p), backward);
  if (!kernel) return cudaErrorInvalidValue;
  const LaunchShape shape{
      .grid = dim3(geometry.groups * geometry.blocks),
      .block = dim3(kThreads),
      .shared_bytes = static_cast<size_t>(geometry.shared_bytes),
      .cluster = geometry.path == Path::cluster ? static_cast<unsigned>(geometry.blocks) : 1,
      .cooperative = geometry.path == Path::grid};
  return launch(kernel, shape, stream, p, geometry);
}

}  // namespace rnnext::cuda
