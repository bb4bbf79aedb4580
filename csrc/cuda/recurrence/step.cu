// The step path: beside a GEMM a step, the kernel that does the rest of it.
#include "cuda/recurrence/any_pass.cuh"
#include "cuda/recurrence/elements.cuh"

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
  const One* read[Pass::kSources];
#pragma unroll
  for (int k = 0; k < Pass::kSources; ++k) {
    const bool reads = at.inside && pass.given(k);
    if (!reads) {
      read[k] = nullptr;
      continue;
    }
    const int64_t* picked = p.input.index ? p.input.index + at.row : nullptr;
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

}  // namespace

// One kernel for every cell: it waits for memory, not for a branch.
cudaError_t launch_step(const DeviceCall& p, const Step& step, Compute compute, bool backward,
                        cudaStream_t stream) {
  return with_type(compute, [&]<class T>(T) {
    return launch(backward ? step_kernel<AnyBackward<T>> : step_kernel<AnyForward<T>>,
                  elements(p.B * p.H, p.D), stream, p, step);
  });
}

}  // namespace rnnext::cuda
