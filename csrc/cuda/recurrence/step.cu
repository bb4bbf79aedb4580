// The step path: beside a GEMM a step, the kernel that does the rest of it. And the states before
// each row, which the gradient of W_hh is a product with.
#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/pass.cuh"

namespace rnnext::cuda {
namespace {

constexpr int kStepThreads = 256;

// One step of every sequence and direction; thread i is element (b, u) of direction blockIdx.y.
template <class Pass>
__global__ void step_kernel(const DeviceCall p, const Step step) {
  using Element = typename Pass::Element;
  using A = Accumulate<Element>;
  using One = Word<Element, 1>;
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int d = blockIdx.y;
  const int64_t b = i / p.H, u = i % p.H;
  if (b >= p.B) return;
  const Pass pass(p);
  const bool reverse = of_direction(p.reverse, d);
  const int64_t t = time_of<Pass>(reverse, p.T, step.number);
  Place at;
  at.row = step.number < p.T ? p.row(t, b) : 0;
  at.column = static_cast<int>(d * p.H + u);
  at.state = (d * p.B + b) * p.H + u;
  at.units = 1;
  set_step(at, p, Span<int64_t>{p.length(b), reverse}, t);
  const One* read[Pass::kSources];
#pragma unroll
  for (int k = 0; k < Pass::kSources; ++k) {
    const bool reads = at.inside && pass.given(k);
    read[k] =
        !reads ? nullptr : reinterpret_cast<const One*>(pass.source(k, t, b, at.row) + at.column);
  }
  const bool reads = step.product && (at.inside || at.precedes);
  const A product[1] = {reads ? to_float(static_cast<const Element*>(step.product)[at.state])
                              : A(0)};
  const A bias = pass.bias(d, u);
  One* v = static_cast<One*>(step.v) + at.state;
  const One next = pass.step(at, product, read, &bias, *v);
  if (step.number == p.T) return;
  *v = next;
  pass.store(at, next);
}

// Thread i is element (t, b, u) of direction blockIdx.y.
template <typename T>
__global__ void previous_state_kernel(const DeviceCall p, T* previous) {
  const int64_t i = int64_t(blockIdx.x) * kStepThreads + threadIdx.x;
  const int d = blockIdx.y;
  const int64_t u = i % p.H, b = i / p.H % p.B, t = i / p.H / p.B;
  if (t >= p.T) return;
  const Span<int64_t> span{p.length(b), of_direction(p.reverse, d)};
  const int64_t column = d * p.H + u, width = p.D * p.H;
  T h = from_float<T>(Accumulate<T>(0));
  if (span.inside(t) && !span.starts(t)) {
    const int64_t before = span.reverse ? t + 1 : t - 1;
    h = static_cast<const T*>(p.output)[p.row(before, b) * width + column];
  } else if (span.inside(t) && p.hx) {
    h = static_cast<const T*>(p.hx)[(d * p.B + b) * p.H + u];
  }
  if (span.inside(t) || !p.step_row) previous[p.row(t, b) * width + column] = h;
}

LaunchShape elements(int64_t n, int D) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((n + kStepThreads - 1) / kStepThreads), D);
  shape.block = dim3(kStepThreads);
  return shape;
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

// One kernel for every nonlinearity: it waits for memory, not for a branch.
cudaError_t launch_step(const DeviceCall& p, const Step& step, Compute compute, bool backward,
                        cudaStream_t stream) {
  return with_type(compute, [&](auto zero) {
    using T = decltype(zero);
    return launch(backward ? step_kernel<Backward<T, Any>> : step_kernel<Forward<T, Any>>,
                  elements(p.B * p.H, p.D), stream, p, step);
  });
}

cudaError_t launch_previous_state(const DeviceCall& p, void* previous, Compute compute,
                                  cudaStream_t stream) {
  return with_type(compute, [&](auto zero) {
    using T = decltype(zero);
    return launch(previous_state_kernel<T>, elements(p.T * p.B * p.H, p.D), stream, p,
                  static_cast<T*>(previous));
  });
}

}  // namespace rnnext::cuda
