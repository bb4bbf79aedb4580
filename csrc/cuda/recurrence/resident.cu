// The resident kernels: which one runs a call, how many of its clusters fit, and its launch.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/recurrence/launch.h"

namespace rnnext::cuda {

Kernel kernel_f32(Path path, Exchange exchange, CellKind cell, bool backward);
Kernel kernel_f64(Path path, Exchange exchange, CellKind cell, bool backward);
Kernel kernel_bf16(Path path, Exchange exchange, CellKind cell, bool backward);
Kernel kernel_f16(Path path, Exchange exchange, CellKind cell, bool backward);
Kernel kernel_tf32(Path path, Exchange exchange, CellKind cell, bool backward);

Kernel resident_kernel(Path path, Exchange exchange, Compute compute, CellKind cell,
                       bool backward) {
  switch (compute) {
    case Compute::f32:
      return kernel_f32(path, exchange, cell, backward);
    case Compute::f64:
      return kernel_f64(path, exchange, cell, backward);
    case Compute::f16:
      return kernel_f16(path, exchange, cell, backward);
    case Compute::bf16:
      return kernel_bf16(path, exchange, cell, backward);
    case Compute::tf32:
      return kernel_tf32(path, exchange, cell, backward);
  }
  return nullptr;
}

CellKind cell_of(const DeviceCall& p) {
  if (p.reset || p.form != Form::none) return CellKind::any;
  switch (p.nonlinearity) {
    case Nonlinearity::tanh:
      return CellKind::tanh;
    case Nonlinearity::relu:
      return CellKind::relu;
    default:
      return CellKind::any;
  }
}

cudaError_t describe(Device* device) {
  const Kernel kernel =
      resident_kernel(Path::cluster, Exchange::fenced, Compute::f32, CellKind::tanh, true);
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
  get(&device->registers, cudaDevAttrMaxRegistersPerMultiprocessor);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, function);
  if (error != cudaSuccess) return error;
  // What the driver has made of PTX is of the device's version, and knows what the PTX knew.
  device->capability = std::min({10 * major + minor, code.ptxVersion, code.binaryVersion});
  if (device->capability < 90) return cudaSuccess;
  raise_limits(function);
  for (int i = 0; i < 4; ++i) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = 2u << i;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(2u << i);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(device->shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&device->clusters[i], function, &config) != cudaSuccess) {
      device->clusters[i] = 0;
      cudaGetLastError();  // a size that this device does not have
    }
  }
  return cudaSuccess;
}

cudaError_t launch_resident(const DeviceCall& p, const Geometry& geometry, Compute compute,
                            bool backward, cudaStream_t stream) {
  const Kernel kernel =
      resident_kernel(geometry.path, geometry.exchange, compute, cell_of(p), backward);
  if (!kernel) return cudaErrorInvalidValue;
  LaunchShape shape;
  shape.grid = dim3(geometry.groups * geometry.blocks);
  shape.block = dim3(kThreads);
  shape.shared_bytes = geometry.shared_bytes;
  shape.cluster = geometry.path == Path::cluster ? geometry.blocks : 1;
  shape.cooperative = geometry.path == Path::grid;
  return launch(kernel, shape, stream, p, geometry);
}

}  // namespace rnnext::cuda
