// The recurrence on the CPU: checks, allocates, fills the structs, and runs the kernel on a team of
// threads; and its random numbers, of noise and of dropout.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "cpu/binding/recurrence.h"
#include "cpu/binding/unpadded.h"
#include "cpu/runtime/memory.h"
#include "ops/check.h"
#include "ops/signatures.h"

namespace rnnext {

const RnnKernels& kernels_for(DType dtype, const Recurrence& p, const Machine& machine) {
  const KernelTable& table = kernels();
  if (dtype == DType::f32 && (table.rnn_medium || table.rnn_high)) {
    const auto precision =
        at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
    const RnnKernels* const lower = precision == at::Float32Precision::BF16   ? table.rnn_medium
                                    : precision == at::Float32Precision::TF32 ? table.rnn_high
                                                                              : nullptr;
    if (lower && plan_lower_precision(p, lower->shape, machine)) return *lower;
  }
  return table.rnn_of(dtype);
}

Teams<ForwardPlan> forward_teams(const Recurrence& p, const RnnKernels& kernel, int threads) {
  return {
      threads, [&](int size) { return plan_forward(p, kernel.shape, this_machine(), size); },
      [&](const ForwardPlan& plan, int size) { return kernel.forward_workspace(p, plan, size); }};
}
Teams<BackwardPlan> CpuBackwardCall::teams(const RnnKernels& kernel, int threads) const {
  return {
      threads,
      [&](int size) { return plan_backward(p, out, kernel.shape, this_machine(), threads, size); },
      [&](const BackwardPlan& plan, int size) {
        return kernel.backward_workspace(p, out, plan, size);
      }};
}

namespace {

// Raises ValueError unless all H values fit.
template <class Fits>
void check_units(const void* values, int64_t H, at::ScalarType type, const char* name,
                 const char* must, const Fits& fits) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "rnnext", [&] {
    for (int64_t j = 0; j < H; ++j) {
      const auto value = static_cast<double>(static_cast<const scalar_t*>(values)[j]);
      TORCH_CHECK_VALUE(fits(value), name, " must be ", must, ", got ",
                        std::isnan(value) ? NAN : value,  // not "-nan", as a sigmoid's is
                        H > 1 ? c10::str(" at ", j) : "");
    }
  });
}

}  // namespace

CpuCall::CpuCall(const RecurrenceArguments& a) {
  static_assert(kArgumentCount == 17);
  parse(a, *this, p);
  const at::ScalarType type = a.weight_hh[0].scalar_type();
  for (int d = 0; d < p.D; ++d) {
    p.weight_hh[d] = read(a.weight_hh[d]);
    if (s.features) p.weight_ih[d] = read(a.weight_ih[d]);
    if (is_leaky(p.cell))
      check_units(p.alpha[d], p.H, type, "alpha", "in (0, 1]",
                  [](double alpha) { return alpha > 0 && alpha <= 1; });
    if (p.noise[d])
      check_units(p.noise[d], p.H, type, "noise_std", "finite and not negative",
                  [](double deviation) { return deviation >= 0 && deviation < INFINITY; });
  }
  if (s.packed) {
    p.step_row = s.step_row.data();
    p.lengths = s.sequence_lengths.data();
  } else if (given(a.lengths)) {
    p.lengths = static_cast<const int64_t*>(read(*a.lengths));
    for (int64_t b = 0; b < s.B; ++b)
      TORCH_CHECK_VALUE(p.lengths[b] >= 0 && p.lengths[b] <= s.T, "lengths[", b,
                        "] = ", p.lengths[b], " is out of range: expected 0 <= length <= ", s.T);
  }
  if (given(a.index)) {
    const int64_t rows = a.input.size(0);
    p.input.index = static_cast<const int64_t*>(keep(a.index->to(at::kLong)));
    for (int64_t n = 0; n < s.N; ++n)
      TORCH_CHECK_INDEX(p.input.index[n] >= 0 && p.input.index[n] < rows,
                        "index out of range in self: index (flattened)[", n,
                        "] = ", p.input.index[n], ", expected 0 <= index < ", rows);
  }
  if (s.features && s.I == 0) return;  // there is no input to read
  const bool direct = a.input.size(-1) == 1 || a.input.stride(-1) == 1;
  const Tensor rows = direct ? a.input : a.input.contiguous();
  alive.push_back(rows);  // also of recurrence_stack, where no argument is a layer's input
  p.input.data = rows.const_data_ptr();
  p.input.stride_b = rows.stride(-2);
  p.input.stride_t = rows.dim() == 3 ? rows.stride(0) : 0;
}

CpuBackwardCall::CpuBackwardCall(const BackwardInputs& r, const RecurrenceArguments& a,
                                 const Wanted& wanted)
    : CpuCall(a) {
  check_backward_inputs<int64_t>(r, a, s, wanted);
  p.output = const_cast<void*>(read(r.output));
  if (!r.saved.empty()) p.saved = const_cast<void*>(read(r.saved[0]));
  if (given(r.grad_output)) g.grad_output = read(*r.grad_output);
  if (given(r.grad_h_n)) g.grad_h_n = read(*r.grad_h_n);

  const auto options = a.weight_hh[0].options();
  const auto allocate = [&](at::IntArrayRef shape) {
    return s.empty() ? at::zeros(shape, options) : empty_large(shape, options);
  };
  const auto add = [&](std::vector<Tensor>& list, at::IntArrayRef shape) {
    list.push_back(allocate(shape));
    return list.back().data_ptr();
  };
  for (int d = 0; d < p.D; ++d) {
    if (wanted.weight_hh && p.multiplies_state()) {
      out.weight_hh[d] = add(grad_.weight_hh, {s.gate_rows(), s.H});
    } else if (wanted.weight_hh) {
      grad_.weight_hh.push_back(empty_large({s.gate_rows(), s.H}, options).zero_());
    }
    if (wanted.weight_ih && s.features)
      out.weight_ih[d] = add(grad_.weight_ih, {s.gate_rows(), s.I});
    if (wanted.bias_ih) out.bias_ih[d] = add(grad_.bias_ih, {s.gate_rows()});
    if (wanted.bias_hh) out.bias_hh[d] = add(grad_.bias_hh, {s.gate_rows()});
    if (wanted.alpha && is_leaky(p.cell)) out.alpha[d] = add(grad_.alpha, {s.H});
  }
  if (wanted.input && s.features) {
    grad_.input = allocate(a.input.sizes());
    if (s.I > 0) out.input = grad_.input.data_ptr();
  } else if (wanted.input) {
    const auto compute = dtype == DType::f64 ? at::kDouble : at::kFloat;
    grad_pre_ = empty_large(s.rows_shape(s.cell.gates), options.dtype(compute));
    out.pre = grad_pre_.data_ptr();
  }
  if (wanted.hx) {
    grad_.hx = allocate(s.states_shape());
    out.hx = grad_.hx.data_ptr();
    if (s.empty() && given(r.grad_h_n)) grad_.hx.copy_(*r.grad_h_n);
  }
  if (wanted.reset_state && given(a.reset)) {
    grad_.reset_state = allocate(s.states_shape());
    out.reset_state = grad_.reset_state.data_ptr();
  }
}

RecurrenceGradients CpuBackwardCall::gradients(const RecurrenceArguments& a) {
  if (grad_pre_.defined()) {
    grad_.input = grad_pre_;
    if (given(a.index))  // a row of the table sums the gradients of all rows that read it
      grad_.input = call_op<EmbeddingBackwardOp>(grad_pre_.flatten(0, -2), a.index->flatten(),
                                                 a.input.size(0), -1, false);
    grad_.input = grad_.input.to(a.weight_hh[0].options());
  }
  return std::move(grad_);
}

namespace {

// 0 and 1 in turn, for calls of one step with these weights, which pass them back and forth.
int64_t turn_of(const void* weights) {
  static std::atomic<uint8_t> turns[64];  // by the weights' address
  const auto address = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(weights));
  return turns[address * 0x9E3779B97F4A7C15 >> 58].fetch_xor(1, std::memory_order_relaxed);
}

void run_forward(CpuCall& call, const RnnKernels& kernel) {
  if (call.p.T == 1 && !call.p.noise[0]) call.p.first_step = turn_of(call.p.weight_hh[0]);
  const int threads = plan_threads(call.p, 1, max_threads());
  run_call(call, kernel, busy_threads(call.p, kernel.shape, this_machine(), threads));
}

RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save) {
  CpuCall call(a);
  Recurrence& p = call.p;
  const auto make = [&](const auto& shape) { return empty_large(shape, a.weight_hh[0].options()); };
  auto [output, h_n, saved] = call.s.results(save, make);
  if (call.s.empty()) {
    copy_hx(h_n, a.hx);
    return {output, h_n, saved};
  }
  p.output = output.data_ptr();
  p.h_n = h_n.data_ptr();
  if (!saved.empty()) p.saved = saved[0].data_ptr();
  run_forward(call, kernels_for(call.dtype, p));
  return {std::move(output), std::move(h_n), std::move(saved)};
}

// The lists of weights and biases hold a tensor for each layer.
RecurrenceOp::Results recurrence_stack(const RecurrenceArguments& a, bool save) {
  check_stack<int64_t>(a, save);
  const size_t L = a.weight_hh.size();
  std::deque<CpuCall> calls;  // they stay where they are made
  calls.emplace_back(layer_of(a, 0, a.input));
  const Recurrence& first = calls[0].p;
  const RecurrenceSizes& sizes = calls[0].s;
  const auto options = a.weight_hh[0].options();
  const int n = static_cast<int>(L);
  const int64_t S = sizes.cell.states, states[] = {S * n, first.B, first.H};
  if (given(a.hx)) check_like(*a.hx, "hx", states, a.weight_hh[0]);
  OptionalTensor start, anew;  // of all layers
  if (given(a.hx)) start = a.hx->contiguous();
  if (given(a.reset_state)) anew = a.reset_state->repeat_interleave(n, 0);
  const Tensor last = at::empty(states, options);

  std::vector<Recurrence> layers(L, first);
  for (size_t l = 1; l < L; ++l) layers[l].I = first.H;
  const RnnKernels& kernel = kernels_for(calls[0].dtype, first);
  const int threads = plan_threads(layers.back(), n, max_threads());
  // Without a wavefront the layers run in turn, and their outputs alternate between two tensors.
  std::vector<ForwardPlan> plans;
  if (!sizes.empty() && !first.reverse[0])
    plans = plan_wavefront(layers, kernel.shape, this_machine(), threads);
  Tensor outputs[2];
  for (size_t l = 0; l < L; ++l) {
    if (l > 0) calls.emplace_back(layer_of(a, l, outputs[(l - 1) % 2]));
    Tensor& output = outputs[l % 2];
    if (!plans.empty() || l < 2) output = empty_large(sizes.output_shape(), options);
    Recurrence& p = calls[l].p;
    p.layers = n;
    const int64_t state = static_cast<int64_t>(l * last.nbytes() / last.size(0));
    if (start) p.hx = static_cast<const char*>(start->const_data_ptr()) + state;
    if (anew) p.reset_state = static_cast<const char*>(anew->const_data_ptr()) + state;
    p.h_n = static_cast<char*>(last.data_ptr()) + state;
    p.output = output.data_ptr();
    layers[l] = p;
  }
  if (sizes.empty()) {
    copy_hx(last, start);
  } else if (plans.empty()) {
    for (CpuCall& call : calls) run_forward(call, kernel);
  } else {
    size_t bytes = L * kFalseSharing;
    for (size_t l = 0; l < L; ++l) bytes += kernel.forward_workspace(layers[l], plans[l], 1);
    Workspace workspace(bytes);
    run_team(std::min(threads, n), [&](Worker& worker) {
      kernel.stack(layers.data(), plans.data(), n, workspace.data(), worker);
    });
  }
  return {outputs[(L - 1) % 2], last, {}};
}

RecurrenceGradients recurrence_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                                        const Wanted& wanted) {
  CpuBackwardCall call(r, a, wanted);
  if (call.s.empty()) return call.gradients(a);
  const RnnKernels& kernel = kernels_for(call.dtype, call.p);
  const int threads = plan_threads(call.p, kBackwardProducts, max_threads());
  // (The plan depends on what is wanted, so results are allocated before it, perhaps in vain.)
  if (!plan_unpadded(call.p, call.out, kernel.shape, this_machine(), threads)) {
    run_call(call, kernel, threads);
    return call.gradients(a);
  }
  const Unpadded unpadded(call.p);
  KeptBackwardInputs own{.output = unpadded.unpad(r.output)};
  if (given(r.grad_output)) own.grad_output = unpadded.unpad(*r.grad_output);
  if (given(r.grad_h_n)) own.grad_h_n = unpadded.unpad_states(*r.grad_h_n);
  for (const Tensor& rows : r.saved) own.saved.push_back(unpadded.unpad(rows));
  RecurrenceGradients grad = recurrence_backward(own, unpadded.arguments(a), wanted);
  if (wanted.input && !given(a.index)) grad.input = unpadded.pad(grad.input);
  if (wanted.hx) grad.hx = unpadded.pad_states(grad.hx, r.grad_h_n);  // without steps h_n is hx
  return grad;
}

Tensor noise(const Tensor& keys, c10::SymInt T, c10::SymInt B, int64_t D, c10::SymInt H) {
  TORCH_CHECK(keys.scalar_type() == at::kLong, "keys must be int64, got ", dtype_name(keys));
  at::DimVector shape(keys.sizes());
  for (const auto& size : {T, B, c10::SymInt(D), H}) shape.push_back(size.expect_int());
  const int64_t width = shape.back(), steps = shape[keys.dim()], batch = shape[keys.dim() + 1];
  const Tensor numbers = at::empty(shape, at::kFloat);
  const Tensor own = keys.contiguous();
  const int64_t rows = width > 0 && D > 0 ? numbers.numel() / width / D : 0;
  const Normals normals = kernels().complete().normals;
  run_team(numbers.numel() < kFewNumbers ? 1 : max_threads(), [&](const Worker& worker) {
    const Range share = share_of(rows, worker.rank, worker.size);
    PhiloxKeys rounds;
    for (int64_t row = share.begin, key = -1, n; row < share.end; row += n) {
      const int64_t step = row / batch;
      if (step / steps != key) {
        key = step / steps;
        rounds = PhiloxKeys(static_cast<uint64_t>(own.const_data_ptr<int64_t>()[key]));
      }
      n = std::min(share.end - row, batch - row % batch);
      float* const to = numbers.mutable_data_ptr<float>() + row * D * width;
      for (int d = 0; d < D; ++d)
        normals(rounds, step % steps, {nullptr, row % batch, n}, d, width, to + d * width,
                D * width);
    }
  });
  return numbers.flatten(-2);
}

Tensor dropout_mask(const Tensor& key, c10::SymInt T, c10::SymInt B, c10::SymInt H, double p,
                    at::ScalarType dtype) {
  TORCH_CHECK(key.scalar_type() == at::kLong && key.numel() == 1, "key must be one int64, got ",
              dtype_name(key), " of shape ", key.sizes());
  TORCH_CHECK(p >= 0 && p < 1, "p must be at least 0 and less than 1, got ", p);
  parse_dtype(dtype, "dtype");
  const int64_t steps = T.expect_int(), batch = B.expect_int(), width = H.expect_int();
  const Tensor mask = empty_large({steps, batch, width}, key.options().dtype(dtype));
  const PhiloxKeys keys(static_cast<uint64_t>(key.item<int64_t>()));
  const RandomWords random_words = kernels().complete().random_words;
  const auto dropped = static_cast<uint32_t>(p * 0x1p32);  // words below it
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "dropout_mask", [&] {
    auto* const to = mask.mutable_data_ptr<scalar_t>();
    const auto kept = static_cast<scalar_t>(1 / (1 - p));
    const int threads = mask.numel() < kFewNumbers ? 1 : max_threads();
    constexpr int64_t kRows = 8;  // at once
    std::vector<uint32_t> all(mask.numel() > 0 ? threads * kRows * width : 0);
    run_team(threads, [&](const Worker& worker) {
      const Range share = share_of(steps * batch, worker.rank, worker.size);
      uint32_t* const words = all.data() + worker.rank * kRows * width;
      for (int64_t row = share.begin, n; row < share.end; row += n) {
        n = std::min({kRows, share.end - row, batch - row % batch});
        random_words(keys, row / batch, {nullptr, row % batch, n}, width, words);
        for (int64_t j = 0; j < n * width; ++j)
          to[row * width + j] = words[j] < dropped ? scalar_t(0) : kept;
      }
    });
  });
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CPU, m) {
  m.impl("noise", noise);
  m.impl("dropout_mask", dropout_mask);
  m.impl("recurrence", Recurrences::forward<recurrence>);
  m.impl("recurrence_stack", Recurrences::forward<recurrence_stack>);
  m.impl("recurrence_backward", Recurrences::backward<recurrence_backward>);
}

}  // namespace rnnext
