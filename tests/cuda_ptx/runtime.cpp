// A stand-in of the CUDA runtime: what nvcc's host code calls. It knows the kernels by name, checks
// launches as a device would, and hands them to Python.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace {

struct Limits {
  int shared_bytes = 48 * 1024;
  bool large_clusters = false;
};

struct Launch {
  const char* name;
  unsigned grid[3], block[3], cluster, cooperative;
  size_t shared_bytes;
  void** arguments;
};

// The device, which Python describes. Each set of numbers has an id of its own.
int device_id, capability, multiprocessors, shared_a_block;
int granted;    // multiprocessors that launches get: fewer in a green context
int compiled;   // the architecture of the PTX that kernels were made of; 0: no code
int calls = 0;  // of functions that ask for or set attributes
cudaError_t pending = cudaSuccess;
int (*callback)(const Launch*) = nullptr;
void* (*device_memory)(size_t) = nullptr;  // that is kept
std::string message;                       // what a kernel did wrong

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> all;
  return all;
}
Limits& limits(const void* kernel) {
  static std::map<std::pair<const void*, int>, Limits> all;
  return all[{kernel, device_id}];
}
cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) pending = error;
  return error;
}

int clusters_at_once(unsigned cluster, size_t shared_bytes) {
  const bool fits = shared_bytes <= size_t(shared_a_block) && cluster <= 16;
  return fits ? multiprocessors / int(cluster) : 0;
}

cudaError_t run(const void* function, const cudaLaunchConfig_t& config, void** arguments) {
  const auto known = kernels().find(function);
  if (known == kernels().end()) return cudaErrorInvalidDeviceFunction;
  if (compiled == 0) return cudaErrorNoKernelImageForDevice;
  Launch launch{};
  launch.name = known->second.c_str();
  launch.cluster = 1;
  launch.arguments = arguments;
  launch.shared_bytes = config.dynamicSmemBytes;
  const dim3 sizes[2] = {config.gridDim, config.blockDim};
  std::memcpy(launch.grid, &sizes[0], sizeof(launch.grid));
  std::memcpy(launch.block, &sizes[1], sizeof(launch.block));
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      launch.cluster = attribute.val.clusterDim.x;
    } else if (attribute.id == cudaLaunchAttributeCooperative) {
      launch.cooperative = attribute.val.cooperative != 0;
    } else {
      return cudaErrorInvalidValue;
    }
  }
  const size_t blocks = size_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  const size_t threads = size_t(launch.block[0]) * launch.block[1] * launch.block[2];
  const Limits& limit = limits(function);
  if (blocks == 0 || threads == 0 || threads > 1024 || launch.grid[1] > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.shared_bytes > size_t(limit.shared_bytes)) return cudaErrorInvalidValue;
  if (launch.grid[0] % launch.cluster) return cudaErrorInvalidClusterSize;
  if (launch.cluster > (limit.large_clusters ? 16u : 8u)) return cudaErrorInvalidClusterSize;
  const bool too_few = granted<multiprocessors&& int(launch.cluster)> granted;
  if (launch.cluster > 1 && (capability < 90 || too_few)) return cudaErrorInvalidClusterSize;
  if (launch.cooperative && blocks > size_t(granted)) return cudaErrorCooperativeLaunchTooLarge;
  return callback && callback(&launch) == 0 ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace

extern "C" {

// ---- what Python calls

void stand_in_callbacks(int (*launch)(const Launch*), void* (*memory)(size_t)) {
  callback = launch, device_memory = memory;
}
void stand_in_device(int sm, int count, int shared, int grants, int architecture) {
  static std::map<std::tuple<int, int, int>, int> ids;
  device_id = ids.insert({std::make_tuple(sm, count, shared), int(ids.size())}).first->second;
  capability = sm, multiprocessors = count, shared_a_block = shared, granted = grants;
  compiled = architecture;
}
void stand_in_message(const char* text) { message = text; }
int stand_in_calls() { return calls; }

// ---- what nvcc's host code calls

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  kernels()[host] = device;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = cudaKernel_t(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;  // rnnext::cuda::launch has another way
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorNotSupported;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** args) {
  return failed(run(function, *config, args));
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  ++calls;
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > shared_a_block) return failed(cudaErrorInvalidValue);
    limits(function).shared_bytes = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    limits(function).large_clusters = value != 0;
  } else {
    return failed(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  ++calls;
  if (compiled == 0) return failed(cudaErrorNoKernelImageForDevice);
  *attributes = {};
  attributes->ptxVersion = compiled;
  attributes->binaryVersion = capability;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++calls;
  const std::map<cudaDeviceAttr, int> known{
      {cudaDevAttrMultiProcessorCount, multiprocessors},
      {cudaDevAttrComputeCapabilityMajor, capability / 10},
      {cudaDevAttrComputeCapabilityMinor, capability % 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, shared_a_block},
  };
  const auto found = known.find(attribute);
  if (found == known.end()) return failed(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* config) {
  ++calls;
  *clusters = clusters_at_once(config->attrs[0].val.clusterDim.x, config->dynamicSmemBytes);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = device_memory(bytes);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
cudaError_t cudaFree(void*) { return cudaSuccess; }
cudaError_t cudaMemset(void* to, int byte, size_t bytes) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return std::exchange(pending, cudaSuccess); }
cudaError_t cudaGetDevice(int* index) {
  *index = device_id;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize
             ? "the launch does not fit the device at once"
             : message.c_str();
}

}  // extern "C"
