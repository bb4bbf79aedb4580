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
#include "ops/autograd.h"
#include "ops/signatures.h"

namespace rnnext::cuda {
namespace {

// Guards for the body of an op: at::mm is neither recorded nor cast.
struct BelowAutograd {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save) {
  const BelowAutograd below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  CudaCall call(a);
  if (is_gated(call.p.cell)) return recurrence_loop(a, save);  // there is no kernel
  const RecurrenceSizes& s = call.s;
  DeviceCall& p = call.p;
  const Tensor output = call.empty(s.output_shape());
  const Tensor h_n = call.empty({s.D, s.B, s.H});
  std::vector<Tensor> saved;
  if (save && s.cell.saved > 0) saved.push_back(call.empty_rows());
  if (s.empty()) {
    copy_hx(h_n, a.hx);
    return {output, h_n, saved};
  }
  const Geometry geometry = call.choose_path(false);
  call.set_input(a.input, a.index, a.weight_ih);
  p.output = output.data_ptr();
  p.h_n = h_n.data_ptr();
  if (!saved.empty()) p.saved = saved[0].data_ptr();
  const Tensor first = call.run_prologue();
  if (call.run_resident(geometry, a.weight_hh, false)) return {output, h_n, saved};
  if (!first.defined()) copy_hx(h_n, a.hx);
  call.run_steps(a.weight_hh, first.defined() ? first : h_n, false);
  return {output, h_n, saved};
}

// A backward pass: the kernels go through the steps and write the gradients of the pre-activations;
// products with these give all other gradients.
class CudaBackwardCall : CudaCall {
 public:
  CudaBackwardCall(const BackwardInputs& r, const RecurrenceArguments& a, const Wanted& wanted)
      : CudaCall(a), r_(r), a_(a), wanted_(wanted), width_(s.D * s.H), state_{s.D, s.B, s.H} {
    check_backward_inputs<int64_t>(r, a, s, wanted);
  }

  RecurrenceGradients gradients() {
    pre_ = empty(s.output_shape());
    rows_ = pre_.view({s.N, width_});
    if (wanted_.hx) grad_.hx = empty(state_);
    if (wanted_.reset_state && given(a_.reset)) grad_.reset_state = empty(state_);
    if (leaks() && (wanted_.alpha || grad_.reset_state.defined())) mixed_ = empty_rows();
    if (s.empty()) {
      if (wanted_.hx) copy_hx(grad_.hx, r_.grad_h_n);
      if (grad_.reset_state.defined()) grad_.reset_state.zero_();
    } else {
      run();
      if (grad_.reset_state.defined()) of_reset_state();
    }
    if (wanted_.weight_ih && s.features) features_ = present(a_.input).reshape({s.N, s.I});
    for (int64_t d = 0; d < s.D; ++d) of_weights(d);
    if (wanted_.alpha && leaks()) of_alpha();
    if (wanted_.input) of_input();
    return std::move(grad_);
  }

 private:
  bool leaks() const { return is_leaky(p.cell); }
  Tensor direction(const Tensor& rows, int64_t d) const { return rows.narrow(1, d * s.H, s.H); }
  // Rows [T,B,...] with zeros past the sequences' ends: NaN times a gradient of 0 would be NaN.
  Tensor present(const Tensor& rows) const {
    if (!given(a_.lengths)) return rows;
    const Tensor step = at::arange(s.T, a_.lengths->options()).view({-1, 1, 1});
    return at::where(step < a_.lengths->view({1, -1, 1}), rows, 0);
  }

  void run() {
    const Geometry geometry = choose_path(true);
    p.output = const_cast<void*>(keep_sources(p.cell == Cell::rate ? r_.saved[0] : r_.output));
    if (given(r_.grad_output)) p.grad.grad_output = keep_sources(*r_.grad_output);
    if (given(r_.grad_h_n)) p.grad.grad_h_n = keep(*r_.grad_h_n);
    p.grad_out.pre = pre_.data_ptr();
    if (wanted_.hx) p.grad_out.hx = grad_.hx.data_ptr();
    if (mixed_.defined()) p.mixed = mixed_.data_ptr();
    run_prologue();
    const Tensor carry = at::zeros(leaks() ? state_ : std::array<int64_t, 3>{}, accumulators());
    p.carry = carry.data_ptr();
    if (run_resident(geometry, a_.weight_hh, true)) return;
    run_steps(a_.weight_hh, empty(state_), true);
  }

  void of_reset_state() {
    const Tensor sums = empty(state_);
    launch_state_kernel(StateKernel::reset_sums, {}, sums);
    const Tensor product = at::bmm(sums, at::stack(a_.weight_hh));
    launch_state_kernel(StateKernel::reset_gradient, product, grad_.reset_state);
  }

  // The output before each row's step, which a kernel collects.
  const Tensor& outputs_before() {
    if (before_.defined()) return before_;
    before_ = empty({s.N, width_});
    const Tensor outputs = r_.output.contiguous();
    if (!s.empty()) launch_state_kernel(StateKernel::previous_state, outputs, before_);
    return before_;
  }

  void of_weights(int64_t d) {
    const Tensor rows = direction(rows_, d);
    if (wanted_.bias_ih) grad_.bias_ih.push_back(rows.sum(0));
    if (wanted_.bias_hh)
      grad_.bias_hh.push_back(wanted_.bias_ih ? grad_.bias_ih.back().clone() : rows.sum(0));
    if (features_.defined()) grad_.weight_ih.push_back(at::mm(rows.t(), features_));
    if (wanted_.weight_hh)
      grad_.weight_hh.push_back(at::mm(rows.t(), direction(outputs_before(), d)));
  }

  // The derivative of (1 - a) s + a x by a is x - s, which was saved; for rate, x was.
  void of_alpha() {
    Tensor rows = r_.saved[0].reshape({s.N, width_}).to(accumulators());
    if (p.cell == Cell::rate) rows = rows.sub(outputs_before());
    const Tensor sums = rows.mul(mixed_.view({s.N, width_})).sum(0).view({s.D, s.H});
    for (int64_t d = 0; d < s.D; ++d) grad_.alpha.push_back(sums[d].to(options));
  }

  void of_input() {
    if (s.features) {
      grad_.input = at::mm(direction(rows_, 0), a_.weight_ih[0]);
      if (s.D == 2) grad_.input.addmm_(direction(rows_, 1), a_.weight_ih[1]);
      grad_.input = grad_.input.view(a_.input.sizes());
    } else if (given(a_.index)) {  // a row of the table collects from every row that read it
      grad_.input =
          call_op<EmbeddingBackwardOp>(rows_, a_.index->flatten(), a_.input.size(0), -1, false);
    } else {
      grad_.input = pre_;
    }
  }

  const BackwardInputs& r_;
  const RecurrenceArguments& a_;
  const Wanted& wanted_;
  const int64_t width_;
  const std::array<int64_t, 3> state_;
  RecurrenceGradients grad_;
  Tensor pre_, rows_;  // gradients of the pre-activations, as output lies and [N, D*H]
  Tensor before_;      // [N, D*H]
  Tensor features_;    // input, [N, I]
  Tensor mixed_;       // DeviceCall::mixed
};

RecurrenceGradients recurrence_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  const BelowAutograd below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  if (is_gated(parse_cell(a.cell))) return backward_loop_as_kernel(r, a, wanted);
  return CudaBackwardCall(r, a, wanted).gradients();
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("recurrence", Recurrences::forward<recurrence>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward>);
}

}  // namespace rnnext::cuda
