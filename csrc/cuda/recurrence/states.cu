// Kernels with a thread for each element of the state: the step path's, beside its GEMM; and those
// around the steps, on every path (StateKernel).
#include "cuda/elements.cuh"
#include "cuda/recurrence/any_pass.cuh"

namespace rnnext::cuda {
namespace {

// One step of every sequence and direction; a thread is element (b, u).
template <class Pass>
__global__ void step_kernel(const DeviceCall p, const Step step) {
  using Element = typename Pass::Element;
  using A = Accumulate<Element>;
  using One = Word<Element, 1>;
  const int64_t i = element();
  const int d = blockIdx.y;
  const int64_t b = i / p.H, u = i % p.H;
  if (b >= p.B) return;
  const Pass pass(p);
  const bool reverse = of_direction(p.reverse, d);
  const int64_t t = time_of<Pass>(reverse, p.T, step.number), length = p.length(b);
  Place at;
  at.row = step.number < p.T ? p.row(t, b) : 0;
  at.column = static_cast<int>(d * p.H + u);
  at.state = (d * p.B + b) * p.H + u;
  at.units = 1;
  set_step(at, p, Span<int64_t>{length, reverse}, t);
  const int64_t* picked = p.input.index ? p.input.index + at.row : nullptr;
  const One* read[Pass::kSources] = {};
#pragma unroll
  for (int k = 0; k < Pass::kSources; ++k) {
    if (!at.inside || !pass.given(k)) continue;
    const Element* row = pass.source(k, t, b, at.row, picked);
    read[k] = reinterpret_cast<const One*>(row + d * p.source_step + u);
  }
  const bool reads = step.product && (at.inside || at.precedes);
  const A product[1] = {reads ? to_float(static_cast<const Element*>(step.product)[at.state])
                              : A(0)};
  const A bias = pass.bias(d, u);
  One* v = static_cast<One*>(step.v) + at.state;
  const One next = pass.step(at, product, read, &bias, *v);
  if (step.number == p.T) return;
  const int64_t mark = mark_of<Pass>(reverse, t);
  const bool restarts = p.reset && replaces<Pass>(mark, length) && p.reset[mark * p.B + b];
  *v = restarts ? pass.template restart<1>(at) : next;
  pass.store(at, next);
}

// A thread is element (b, u).
template <typename T>
__global__ void prologue_kernel(const DeviceCall p, const T*, T* first) {
  const int64_t b = element() / p.H;
  if (b >= p.B) return;
  const int d = blockIdx.y;
  const int64_t i = d * p.B * p.H + element();
  const AnyActivation activation{p.nonlinearity};
  const auto output = [&](T state) {
    return p.cell == Cell::voltage ? from_float<T>(activation.forward(to_float(state))) : state;
  };
  const Span<int64_t> span{p.length(b), of_direction(p.reverse, d)};
  const bool restarts = p.restarts(span, b, span.reverse ? p.T - 1 : 0);
  const T reset = state_at<T>(p.reset_state, i);
  const T state = restarts ? reset : state_at<T>(p.hx, i);
  if (p.h_n) static_cast<T*>(p.h_n)[i] = state;
  first[i] = output(state);
  if (p.reset_output) static_cast<T*>(p.reset_output)[i] = output(reset);
}

// The sum of element (b, u) of rows [N, D*H] over the steps that begin an episode.
template <typename T>
__device__ Accumulate<T> sum_over_resets(const DeviceCall& p, const void* rows) {
  const int64_t b = element() / p.H;
  const Span<int64_t> span{p.length(b), of_direction(p.reverse, blockIdx.y)};
  const int64_t column = blockIdx.y * p.H + element() % p.H;
  Accumulate<T> sum = 0;
  for (int64_t t = 0; t < span.length; ++t) {
    if (!p.restarts(span, b, t)) continue;
    sum += to_float(static_cast<const T*>(rows)[p.row(t, b) * width(p) + column]);
  }
  return sum;
}

// A thread is element (b, u), as below.
template <typename T>
__global__ void reset_sums_kernel(const DeviceCall p, const T*, T* sums) {
  if (element() >= p.B * p.H) return;
  const auto sum = sum_over_resets<T>(p, p.grad_out.pre);
  sums[blockIdx.y * p.B * p.H + element()] = from_float<T>(sum);
}

template <typename T>
__global__ void reset_gradient_kernel(const DeviceCall p, const T* product, T* grad) {
  if (element() >= p.B * p.H) return;
  const int64_t i = blockIdx.y * p.B * p.H + element();
  Accumulate<T> x = to_float(product[i]);
  if (p.cell == Cell::voltage && x != 0) {  // a row that no step read may hold NaN
    x = AnyActivation{p.nonlinearity}.backward(x,
                                               to_float(static_cast<const T*>(p.reset_output)[i]));
  }
  if (p.cell != Cell::elman) {
    const auto a = static_cast<const T*>(p.alpha[0])[blockIdx.y * p.H + element() % p.H];
    x += (1 - to_float(a)) * sum_over_resets<T>(p, p.mixed);
  }
  grad[i] = from_float<T>(x);
}

// A thread is element (t, b, u).
template <typename T>
__global__ void previous_state_kernel(const DeviceCall p, const T* steps, T* previous) {
  const int64_t i = element();
  const int d = blockIdx.y;
  const int64_t u = i % p.H, b = i / p.H % p.B, t = i / p.H / p.B;
  if (t >= p.T) return;
  const Span<int64_t> span{p.length(b), of_direction(p.reverse, d)};
  const int64_t column = d * p.H + u, width = p.D * p.H, state = (d * p.B + b) * p.H + u;
  T h = from_float<T>(Accumulate<T>(0));
  if (span.inside(t)) {
    if (p.restarts(span, b, t)) {
      h = state_at<T>(p.reset_output, state);
    } else if (span.starts(t)) {
      h = state_at<T>(p.hx, state);
    } else {
      const int64_t before = span.reverse ? t + 1 : t - 1;
      h = steps[p.row(before, b) * width + column];
    }
  }
  if (span.inside(t) || !p.step_row) previous[p.row(t, b) * width + column] = h;
}

}  // namespace

// One kernel for every cell: it waits for memory, not for a branch.
cudaError_t launch_step(const DeviceCall& p, const Step& step, Compute compute, bool backward,
                        cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(backward ? step_kernel<AnyBackwardPass<T>> : step_kernel<AnyForwardPass<T>>,
                  elements(p.B * p.H, p.D), stream, p, step);
  });
}

cudaError_t launch_state_kernel(StateKernel what, const DeviceCall& p, const void* from, void* to,
                                Compute compute, cudaStream_t stream) {
  const int64_t steps = what == StateKernel::previous_state ? p.T : 1;
  return with_type(compute, [&]<class T>(T) {
    constexpr void (*kKernels[])(DeviceCall, const T*, T*) = {
        prologue_kernel<T>, reset_sums_kernel<T>, reset_gradient_kernel<T>,
        previous_state_kernel<T>};
    return launch(kKernels[static_cast<int>(what)], elements(steps * p.B * p.H, p.D), stream, p,
                  static_cast<const T*>(from), static_cast<T*>(to));
  });
}

}  // namespace rnnext::cuda
