// The step path's cell kernels, the small kernels beside the recurrence, and the launchers.
#include "cuda/embedding/index_check.cuh"
#include "cuda/recurrence/cell.cuh"

namespace rnnext::cuda {

Kernel kernel_f32(Path path, CellKind cell, bool backward);
Kernel kernel_f64(Path path, CellKind cell, bool backward);
Kernel kernel_f16(Path path, CellKind cell, bool backward);
Kernel kernel_bf16(Path path, CellKind cell, bool backward);
Kernel kernel_tf32(Path path, CellKind cell, bool backward);

namespace {

constexpr int kStepThreads = 256;

// One step of every sequence and direction; thread i is element (b, u) of direction blockIdx.y.
template <typename T, class Cell>
__global__ void step_forward_kernel(const RecurrenceParams p, const StepParams step) {
  using A = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int d = blockIdx.y;
  const int64_t b = i / p.H, u = i % p.H;
  if (b >= (d ? step.batch[1] : step.batch[0])) return;
  const bool reverse = d ? p.reverse[1] : p.reverse[0];
  const int64_t t = reverse ? p.T - 1 - step.step : step.step;
  const int64_t row = (d ? step.first_row[1] : step.first_row[0]) + b;
  const int64_t state = (d * p.B + b) * p.H + u, column = d * p.H + u;
  T h = from_float<T>(A(0));
  if (!p.lengths || t < p.lengths[b]) {
    A x = to_float(static_cast<const T*>(p.input)[input_row(p, t, b, row) + column]);
    if (p.bias_ih[0]) {
      x += to_float(static_cast<const T*>(d ? p.bias_ih[1] : p.bias_ih[0])[u]) +
           to_float(static_cast<const T*>(d ? p.bias_hh[1] : p.bias_hh[0])[u]);
    }
    h = from_float<T>(Cell::forward(x + to_float(static_cast<const T*>(step.product)[state])));
    static_cast<T*>(step.state)[state] = h;
  }
  static_cast<T*>(p.output)[row * p.D * p.H + column] = h;
}

template <typename T, class Cell>
__global__ void step_backward_kernel(const RecurrenceParams p, const StepParams step) {
  using A = Accumulate<T>;
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int d = blockIdx.y;
  const int64_t b = i / p.H, u = i % p.H;
  if (b >= p.B) return;
  const bool reverse = d ? p.reverse[1] : p.reverse[0];
  const int64_t t = reverse ? step.step : p.T - 1 - step.step;
  const int64_t state = (d * p.B + b) * p.H + u;
  const bool in_memory = b < (d ? step.batch[1] : step.batch[0]);
  const int64_t at = ((d ? step.first_row[1] : step.first_row[0]) + b) * p.D * p.H + d * p.H + u;
  T dg = from_float<T>(A(0));
  if (in_memory && (!p.lengths || t < p.lengths[b])) {
    A dh = to_float(static_cast<const T*>(step.state)[state]);
    if (p.grad_output) dh += to_float(static_cast<const T*>(p.grad_output)[at]);
    dg = from_float<T>(Cell::backward(to_float(static_cast<const T*>(p.output)[at])) * dh);
    static_cast<T*>(step.state)[state] = from_float<T>(A(0));  // the GEMM adds W_hh^T dG
  }
  static_cast<T*>(step.grad_step)[state] = dg;
  if (in_memory) static_cast<T*>(p.grad_pre)[at] = dg;
}

// Thread i is element (t, b, u) of direction blockIdx.y.
template <typename T>
__global__ void previous_state_kernel(const RecurrenceParams p, T* previous) {
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int d = blockIdx.y;
  const int64_t u = i % p.H, b = i / p.H % p.B, t = i / p.H / p.B;
  if (t >= p.T) return;
  const auto first_row = [&](int64_t at) { return p.step_row ? p.step_row[at] : at * p.B; };
  const int64_t length = sequence_length(p, b);
  const bool reverse = d ? p.reverse[1] : p.reverse[0];
  const int64_t before = reverse ? t + 1 : t - 1;
  const int64_t column = d * p.H + u, width = p.D * p.H;
  T h = from_float<T>(Accumulate<T>(0));
  if (t < length) {
    if (before >= 0 && before < length) {
      h = static_cast<const T*>(p.output)[(first_row(before) + b) * width + column];
    } else if (p.h0) {
      h = static_cast<const T*>(p.h0)[(d * p.B + b) * p.H + u];
    }
  }
  if (t < length || !p.step_row) previous[(first_row(t) + b) * width + column] = h;
}

__global__ void table_rows_kernel(const EmbeddingIndices indices, int64_t* rows) {
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  if (i >= indices.count) return;
  const int64_t row = checked_index(indices, i);
  rows[i] = row < 0 ? 0 : row;
}

struct Constants {
  static constexpr int kSize = 448;  // 3.5 KiB of the 4 KiB of kernel arguments
  int64_t values[kSize];
};

__global__ void write_constants_kernel(int64_t* to, const Constants from, int n) {
  if (int(threadIdx.x) < n) to[threadIdx.x] = from.values[threadIdx.x];
}

LaunchShape elements(int64_t n, int D) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((n + kStepThreads - 1) / kStepThreads), D);
  shape.block = dim3(kStepThreads);
  return shape;
}

template <typename T, class Cell>
cudaError_t launch_step_as(const RecurrenceParams& p, const StepParams& step, bool backward,
                           cudaStream_t stream) {
  return launch(backward ? step_backward_kernel<T, Cell> : step_forward_kernel<T, Cell>,
                elements(p.B * p.H, p.D), stream, p, step);
}

// Calls f(T{}) for the element type.
template <class F>
cudaError_t with_type(Compute compute, F f) {
  switch (compute) {
    case Compute::f64:
      return f(double{});
    case Compute::f16:
      return f(__half{});
    case Compute::bf16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

}  // namespace

cudaError_t launch_step(const RecurrenceParams& p, const StepParams& step, Compute compute,
                        bool backward, cudaStream_t stream) {
  return with_type(compute, [&](auto zero) {
    using T = decltype(zero);
    return p.cell == CellKind::tanh ? launch_step_as<T, Tanh>(p, step, backward, stream)
                                    : launch_step_as<T, Relu>(p, step, backward, stream);
  });
}

cudaError_t launch_previous_state(const RecurrenceParams& p, void* previous, Compute compute,
                                  cudaStream_t stream) {
  return with_type(compute, [&](auto zero) {
    using T = decltype(zero);
    return launch(previous_state_kernel<T>, elements(p.T * p.B * p.H, p.D), stream, p,
                  static_cast<T*>(previous));
  });
}

cudaError_t launch_table_rows(const EmbeddingIndices& indices, int64_t* rows, cudaStream_t stream) {
  return launch(table_rows_kernel, elements(indices.count, 1), stream, indices, rows);
}

cudaError_t launch_write_constants(int64_t* destination, const int64_t* values, int64_t n,
                                   cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(1);
  shape.block = dim3(Constants::kSize);
  for (int64_t i = 0; i < n; i += Constants::kSize) {
    Constants chunk = {};
    const int size = static_cast<int>(n - i < Constants::kSize ? n - i : Constants::kSize);
    for (int k = 0; k < size; ++k) chunk.values[k] = values[i + k];
    const cudaError_t error =
        launch(write_constants_kernel, shape, stream, destination + i, chunk, size);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

Kernel resident_kernel(Path path, Compute compute, CellKind cell, bool backward) {
  switch (compute) {
    case Compute::f32:
      return kernel_f32(path, cell, backward);
    case Compute::f64:
      return kernel_f64(path, cell, backward);
    case Compute::f16:
      return kernel_f16(path, cell, backward);
    case Compute::bf16:
      return kernel_bf16(path, cell, backward);
    case Compute::tf32:
      return kernel_tf32(path, cell, backward);
  }
  return nullptr;
}

void count_clusters(int shared_bytes, int (&clusters)[4]) {
  const auto kernel = resident_kernel(Path::cluster, Compute::f32, CellKind::tanh, true);
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  for (int i = 0; i < 4; ++i) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = 2u << i;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(2u << i);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&clusters[i], function, &config) != cudaSuccess) {
      clusters[i] = 0;
      cudaGetLastError();  // a size that this device does not have
    }
  }
}

cudaError_t launch_resident(const RecurrenceParams& p, const Geometry& geometry, Compute compute,
                            bool backward, cudaStream_t stream) {
  const Kernel kernel = resident_kernel(geometry.path, compute, p.cell, backward);
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
