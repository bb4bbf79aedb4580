// What surrounds the loop over the steps: what enters W_hh first and after resets, the gradient of
// reset_state, and the states before each row, with which the gradients of W_hh and alpha are made.
#include "cuda/recurrence/any_pass.cuh"
#include "cuda/recurrence/elements.cuh"

namespace rnnext::cuda {
namespace {

template <typename T>
__device__ T state_at(const void* states, int64_t i) {
  return states ? static_cast<const T*>(states)[i] : from_float<T>(Accumulate<T>(0));
}

// A thread is element (b, u).
template <typename T>
__global__ void enter_kernel(const DeviceCall p, T* first, T* anew) {
  const int64_t b = element() / p.H;
  if (b >= p.B) return;
  const int d = blockIdx.y;
  const int64_t i = d * p.B * p.H + element();
  const Any cell(p.nonlinearity);
  const auto output = [&](T state) {
    return p.form == Form::voltage ? from_float<T>(cell.forward(to_float(state))) : state;
  };
  const Span<int64_t> span{p.length(b), of_direction(p.reverse, d)};
  const bool restarts = p.restarts(span, b, span.reverse ? p.T - 1 : 0);
  const T reset = state_at<T>(p.reset_state, i);
  const T state = restarts ? reset : state_at<T>(p.hx, i);
  if (p.h_n) static_cast<T*>(p.h_n)[i] = state;
  first[i] = output(state);
  if (anew) anew[i] = output(reset);
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
__global__ void reset_sums_kernel(const DeviceCall p, T* sums) {
  if (element() >= p.B * p.H) return;
  const auto sum = sum_over_resets<T>(p, p.grad_out.pre);
  sums[blockIdx.y * p.B * p.H + element()] = from_float<T>(sum);
}

template <typename T>
__global__ void reset_gradient_kernel(const DeviceCall p, const T* product, T* grad) {
  if (element() >= p.B * p.H) return;
  const int64_t i = blockIdx.y * p.B * p.H + element();
  Accumulate<T> x = to_float(product[i]);
  if (p.form == Form::voltage) {
    x = Any(p.nonlinearity).backward(x, to_float(static_cast<const T*>(p.reset_output)[i]));
  }
  if (p.form != Form::none) {
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

cudaError_t launch_enter(const DeviceCall& p, void* first, void* anew, Compute compute,
                         cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(enter_kernel<T>, elements(p.B * p.H, p.D), stream, p, static_cast<T*>(first),
                  static_cast<T*>(anew));
  });
}

cudaError_t launch_reset_sums(const DeviceCall& p, void* sums, Compute compute,
                              cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(reset_sums_kernel<T>, elements(p.B * p.H, p.D), stream, p, static_cast<T*>(sums));
  });
}

cudaError_t launch_reset_gradient(const DeviceCall& p, const void* product, void* grad,
                                  Compute compute, cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(reset_gradient_kernel<T>, elements(p.B * p.H, p.D), stream, p,
                  static_cast<const T*>(product), static_cast<T*>(grad));
  });
}

cudaError_t launch_previous_state(const DeviceCall& p, const void* steps, void* previous,
                                  Compute compute, cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(previous_state_kernel<T>, elements(p.T * p.B * p.H, p.D), stream, p,
                  static_cast<const T*>(steps), static_cast<T*>(previous));
  });
}

}  // namespace rnnext::cuda
