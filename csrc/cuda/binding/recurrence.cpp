// The recurrence on CUDA devices, as ops. Everything runs on the current stream without waiting for
// the device, so CUDA graphs can capture it. The products with W_ih, and in the backward pass those
// that give the gradients of weights and input, are one large GEMM each, outside of the recurrence.
#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "cuda/binding/call.h"
#include "cuda/binding/check_launch.h"
#include "ops/signatures.h"

namespace rnnext::cuda {
namespace {

// What an op runs under: at::mm in its body neither records nor casts.
struct BelowAutograd {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save) {
  const BelowAutograd below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  Call call(a);
  const RecurrenceSizes& s = call.s;
  DeviceCall& p = call.p;
  const Tensor output = call.empty(s.output_shape());
  const Tensor h_n = call.empty({s.D, s.B, s.H});
  std::vector<Tensor> saved;
  if (save && p.form != Form::none) saved.push_back(call.empty_rows());
  const auto start_from_hx = [&] { given(a.hx) ? h_n.copy_(*a.hx) : h_n.zero_(); };
  if (s.empty()) {
    start_from_hx();
    return {output, h_n, saved};
  }
  const Geometry geometry = call.choose_path(false, a.input.device());
  call.set_input(a.input, a.index, a.weight_ih);
  p.output = output.data_ptr();
  p.h_n = h_n.data_ptr();
  if (!saved.empty()) p.saved = saved[0].data_ptr();
  const Tensor first = call.enter();
  if (call.run_resident(geometry, a.weight_hh, false)) return {output, h_n, saved};
  if (!first.defined()) start_from_hx();
  call.run_steps(a.weight_hh, first.defined() ? first : h_n, false);
  return {output, h_n, saved};
}

// The gradient of W_hh: all rows of grad [N,H] (columns of a wider tensor) times the states before
// them. Those are the neighbouring rows of `states`, and `start` at the ends.
Tensor weight_gradient(const Tensor& grad, const Tensor& states, const OptionalTensor& start,
                       int64_t batch, bool reverse) {
  const int64_t rest = grad.size(0) - batch;
  Tensor result = at::mm(grad.narrow(0, reverse ? 0 : batch, rest).t(),
                         states.narrow(0, reverse ? batch : 0, rest));
  if (given(start)) result.addmm_(grad.narrow(0, reverse ? rest : 0, batch).t(), *start);
  return result;
}

RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  const BelowAutograd below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  Call call(a);
  const RecurrenceSizes& s = call.s;
  DeviceCall& p = call.p;
  check_results<int64_t>(r, a, s, wanted);
  const bool leaks = p.form != Form::none, grad_of_reset = wanted.reset_state && given(a.reset);
  const bool grad_of_alpha = wanted.alpha && leaks;
  const bool empty = s.empty();

  RecurrenceGradients grad;
  const Tensor grad_pre = call.empty(s.output_shape());
  const std::array<int64_t, 3> state{s.D, s.B, s.H};
  Tensor mixed, first;
  if (wanted.hx) grad.hx = call.empty(state);
  if (grad_of_alpha || (grad_of_reset && leaks)) mixed = call.empty_rows();
  if (!empty) {
    const Geometry geometry = call.choose_path(true, a.input.device());
    p.output = const_cast<void*>(call.keep_sources(r.output));
    if (!r.saved.empty()) p.saved = const_cast<void*>(call.keep_sources(r.saved[0]));
    if (given(r.grad_output)) p.grad.grad_output = call.keep_sources(*r.grad_output);
    if (given(r.grad_h_n)) p.grad.grad_h_n = call.keep(*r.grad_h_n);
    p.grad_out.pre = grad_pre.data_ptr();
    if (wanted.hx) p.grad_out.hx = grad.hx.data_ptr();
    if (mixed.defined()) p.mixed = mixed.data_ptr();
    first = call.enter();
    const Tensor carry = at::zeros(leaks ? state : std::array<int64_t, 3>{}, call.accumulators());
    p.carry = carry.data_ptr();
    if (!call.run_resident(geometry, a.weight_hh, true)) {
      call.run_steps(a.weight_hh, call.empty(state), true);
    }
    if (grad_of_reset) {
      grad.reset_state = call.empty(state);
      const Tensor sums = call.empty(state);
      check_launch(launch_reset_sums(p, sums.data_ptr(), call.compute, call.stream));
      const Tensor product = at::bmm(sums, at::stack(a.weight_hh));
      check_launch(launch_reset_gradient(p, product.const_data_ptr(), grad.reset_state.data_ptr(),
                                         call.compute, call.stream));
    }
  } else {
    if (wanted.hx) given(r.grad_h_n) ? grad.hx.copy_(*r.grad_h_n) : grad.hx.zero_();
    if (grad_of_reset) grad.reset_state = at::zeros(state, call.options);
  }

  const int64_t width = s.D * s.H;
  const Tensor grad_rows = grad_pre.view({s.N, width});
  const auto direction = [&](const Tensor& t, int64_t d) { return t.narrow(1, d * s.H, s.H); };
  const auto previous = [&](const States& from) {
    const Tensor rows = call.empty({s.N, width});
    if (!empty)
      check_launch(launch_previous_state(p, from, rows.data_ptr(), call.compute, call.stream));
    return rows;
  };
  const Tensor outputs = r.output.contiguous().view({s.N, width});
  const States states{empty ? nullptr : outputs.const_data_ptr(), p.hx, p.reset_output};
  Tensor outputs_before;
  if (wanted.weight_ih || wanted.weight_hh) {
    // Where sequences start or end at different steps, a kernel collects the outputs before them.
    const OptionalTensor start = first.defined() ? OptionalTensor(first) : a.hx;
    const bool collected = s.packed || p.reset || (given(a.lengths) && given(start));
    if (collected) outputs_before = previous(states);
    const Tensor features = s.features ? a.input.reshape({s.N, s.I}) : Tensor();
    for (int64_t d = 0; d < s.D; ++d) {
      const Tensor rows = direction(grad_rows, d);
      if (wanted.weight_ih && s.features) grad.weight_ih.push_back(at::mm(rows.t(), features));
      if (!wanted.weight_hh) continue;
      grad.weight_hh.push_back(
          empty       ? at::mm(rows.t(), direction(outputs, d))
          : collected ? at::mm(rows.t(), direction(outputs_before, d))
                      : weight_gradient(rows, direction(outputs, d),
                                        given(start) ? OptionalTensor((*start)[d]) : std::nullopt,
                                        s.B, a.reverse[d]));
    }
  }
  if (wanted.bias) {
    for (int64_t d = 0; d < s.D; ++d) grad.bias.push_back(direction(grad_rows, d).sum(0));
  }
  if (grad_of_alpha) {
    // Of (1 - a) s + a x, x - s: what was saved, or, of rate, which saved x, less the state before.
    Tensor rows = r.saved[0].reshape({s.N, width}).to(call.accumulators());
    if (p.form == Form::rate)
      rows = rows.sub(outputs_before.defined() ? outputs_before : previous(states));
    const Tensor sums = rows.mul(mixed.view({s.N, width})).sum(0).view({s.D, s.H});
    for (int64_t d = 0; d < s.D; ++d) grad.alpha.push_back(sums[d].to(call.options));
  }
  if (wanted.input && s.features) {
    grad.input = at::mm(direction(grad_rows, 0), a.weight_ih[0]);
    if (s.D == 2) grad.input.addmm_(direction(grad_rows, 1), a.weight_ih[1]);
    grad.input = grad.input.view(a.input.sizes());
  } else if (wanted.input && given(a.index)) {
    // A row of the table collects from every row that read it.
    grad.input =
        call_op<EmbeddingBackwardOp>(grad_rows, a.index->flatten(), a.input.size(0), -1, false);
  } else if (wanted.input) {
    grad.input = grad_pre;
  }
  return grad;
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("recurrence", Recurrences::forward<recurrence>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward>);
}

}  // namespace rnnext::cuda
