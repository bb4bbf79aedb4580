// The recurrence on CUDA devices: check, choose a path, fill the params, launch. Everything runs on
// the current stream without waiting for the device, so CUDA graphs can capture it. The products
// with W_ih, and in the backward pass those that give the gradients of weights and input, are one
// large GEMM each, outside of the recurrence.
#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/embedding/index_check.h"
#include "cuda/recurrence/launch.h"
#include "ops/parse.h"
#include "ops/signatures.h"

namespace rnnext::cuda {
namespace {

Device describe(c10::DeviceIndex index) {
  const cudaDeviceProp* properties = at::cuda::getDeviceProperties(index);
  Device device;
  device.capability = 10 * properties->major + properties->minor;
  device.sm_count = properties->multiProcessorCount;
  device.shared_bytes = static_cast<int>(properties->sharedMemPerBlockOptin);
  device.registers = properties->regsPerMultiprocessor;
  if (device.capability >= 90) count_clusters(device.shared_bytes, device.clusters);
  return device;
}

const char* forced_path() { return std::getenv("RNNEXT_CUDA_PATH"); }

Exchange wanted_exchange() {
  const char* const word = std::getenv("RNNEXT_CUDA_EXCHANGE");
  const std::string name = word ? word : "";
  TORCH_CHECK_VALUE(name.empty() || name == "fenced" || name == "tagged",
                    "RNNEXT_CUDA_EXCHANGE=", name, ": expected fenced or tagged");
  return name == "tagged" ? Exchange::tagged : Exchange::fenced;
}

Geometry choice(const Problem& p, c10::DeviceIndex index) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, Device> devices;
  static Choices choices;
  const Exchange exchange = wanted_exchange();
  const std::lock_guard<std::mutex> lock(mutex);
  if (devices.count(index) == 0) devices[index] = describe(index);
  try {
    Geometry g = choices.find(p, index, devices[index], forced_path());
    g.exchange = exchange;
    return g;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

Compute compute_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return Compute::f64;
    case DType::bf16:
      return Compute::bf16;
    case DType::f16:
      return Compute::f16;
    default: {
      // What the GEMMs beside the recurrence do. (allowTF32CuBLAS() throws once a user has set
      // fp32_precision.)
      const auto precision =
          at::globalContext().float32Precision(at::str2backend("cuda"), at::str2op("matmul"));
      return precision == at::Float32Precision::TF32 ? Compute::tf32 : Compute::f32;
    }
  }
}

// Whether pairs of 16-bit elements lie at multiples of 4 bytes in all rows.
bool even(const Tensor& rows) {
  const at::IntArrayRef strides = rows.strides().slice(0, rows.dim() - 1);
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 4 == 0 && rows.stride(-1) == 1 &&
         std::all_of(strides.begin(), strides.end(), [](int64_t n) { return n % 2 == 0; });
}

struct Call : ParsedCall {
  DeviceCall p;
  Compute compute{};
  cudaStream_t stream{};
  at::TensorOptions options;
  bool reads_pairs = false;

  explicit Call(const RecurrenceArguments& a) {
    parse(a, *this, p);
    p.I = 0;  // the product with W_ih is a GEMM before the kernel
    p.source_step = s.H;
    p.paired = s.H % 2 == 0;
    compute = compute_of(dtype);
    stream = at::cuda::getCurrentCUDAStream();
    options = a.weight_hh[0].options();
    if (s.N == 0) return;
    // (Values of alpha are on the device: nobody waits to check them.)
    if (p.form != Form::none && s.D > 1) p.alpha[0] = keep(at::cat(a.alpha));
    if (p.reset) p.marks = static_cast<const int*>(keep(a.reset->to(at::kInt)));
    if (s.packed()) {
      p.step_row = constants(s.step_row);
      p.lengths = constants(s.row_lengths);
    } else if (given(a.lengths)) {
      // Their values are on the device: outside 0..T they count as the nearest of the two.
      p.lengths = static_cast<const int64_t*>(keep(a.lengths->clamp(0, s.T)));
    }
  }

  // The path, and how the rows lie that its steps read (DeviceCall::source_step).
  Geometry choose_path(bool backward, const at::Device& device) {
    const Geometry g = choice({s.T, s.B, s.H, p.D, compute, backward}, device.index());
    reads_pairs = g.path != Path::step && element_size(compute) == 2;
    if (reads_pairs) p.source_step = s.H + s.H % 2;
    return g;
  }
  // Rows [.., D*H] so: a copy where they do not lie so already.
  Tensor sources(const Tensor& rows) const {
    if (!reads_pairs || (p.paired && even(rows))) return rows;
    std::vector<int64_t> shape = rows.sizes().vec();
    shape.back() = s.D;
    shape.push_back(p.source_step);
    const Tensor copy = empty(shape);
    copy.narrow(-1, 0, s.H).copy_(rows.unflatten(-1, {s.D, s.H}));
    return copy.flatten(-2);
  }
  const void* keep_sources(const Tensor& rows) { return keep(sources(rows)); }
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, options); }

  const int64_t* constants(const std::vector<int64_t>& values) {
    alive.push_back(at::empty({static_cast<int64_t>(values.size())}, options.dtype(at::kLong)));
    int64_t* to = alive.back().mutable_data_ptr<int64_t>();
    C10_CUDA_CHECK(launch_write_constants(to, values.data(), values.size(), stream));
    return to;
  }

  // The rows of the forward pass: ready, picked by an index, or the product with W_ih.
  void set_input(const Tensor& input, const OptionalTensor& index, TensorList weight_ih) {
    Tensor rows = input;
    if (s.features) {
      // A batch-first input is multiplied as it lies in memory, and read through strides.
      const bool swapped =
          input.dim() == 3 && !input.is_contiguous() && input.transpose(0, 1).is_contiguous();
      const Tensor from = swapped ? input.transpose(0, 1) : input;
      std::vector<int64_t> shape = from.sizes().vec();
      shape.back() = s.D * p.source_step;
      rows = empty(shape);
      const Tensor features = from.reshape({s.N, s.I});
      for (int64_t d = 0; d < s.D; ++d) {
        Tensor part = rows.view({s.N, shape.back()}).narrow(1, d * p.source_step, s.H);
        at::mm_out(part, features, weight_ih[d].t());
      }
      if (swapped) rows = rows.transpose(0, 1);
    } else if (input.stride(-1) != 1) {
      rows = input.contiguous();
    }
    if (given(index)) {
      TORCH_CHECK_INDEX(input.size(0) > 0, "index out of range in self: the table has no rows");
      const Tensor flat = index->contiguous();
      alive.push_back(at::empty({s.N}, options.dtype(at::kLong)));
      int64_t* to = alive.back().mutable_data_ptr<int64_t>();
      C10_CUDA_CHECK(launch_table_rows(checked_indices(flat, input.size(0)), to, stream));
      p.input.index = to;
    }
    if (!s.features) rows = sources(rows);
    alive.push_back(rows);
    p.input.data = rows.const_data_ptr();
    p.input.stride_b = rows.stride(-2);
    p.input.stride_t = rows.dim() == 3 ? rows.stride(0) : 0;
  }

  // With a leak or resets: what enters W_hh first, as launch_enter says, and h_n.
  Tensor enter() {
    if (!p.reset && p.form == Form::none) return {};
    const Tensor first = empty({s.D, s.B, s.H});
    void* anew = nullptr;
    if (p.reset) {
      alive.push_back(empty(first.sizes()));
      p.reset_output = anew = alive.back().data_ptr();
    }
    C10_CUDA_CHECK(launch_enter(p, first.data_ptr(), anew, compute, stream));
    p.hx = keep(first);
    return first;
  }

  // In which kernels compute.
  at::TensorOptions accumulators() const {
    return options.dtype(dtype == DType::f64 ? at::kDouble : at::kFloat);
  }
  // Rows of output that kernels write where a sequence has the step: zeros elsewhere.
  Tensor empty_rows() const {
    return p.lengths && !p.step_row ? at::zeros(s.output_shape(), options)
                                    : empty(s.output_shape());
  }

  // W_hh or its transpose as the resident kernels read it.
  void set_matrix(TensorList weight_hh, bool transposed) {
    const int64_t block = 64 / element_size(compute);
    p.matrix_stride = (s.H + block - 1) / block * block;
    for (int d = 0; d < p.D; ++d) {
      Tensor matrix = transposed ? weight_hh[d].t() : weight_hh[d];
      if (p.matrix_stride != s.H) {
        Tensor padded = at::zeros({s.H, p.matrix_stride}, options);
        padded.narrow(1, 0, s.H).copy_(matrix);
        matrix = padded;
      }
      matrix = matrix.contiguous();
      if (reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % 16) matrix = matrix.clone();
      p.matrix[d] = keep(matrix);
    }
  }

  // False where the device runs fewer blocks at once than its properties say, which is so in a
  // green context: nothing has run then.
  bool run_resident(const Geometry& g, TensorList weight_hh, bool backward) {
    if (g.path == Path::step) return false;
    set_matrix(weight_hh, backward);
    if (g.path == Path::grid) {
      const int64_t flags = (g.flag_count() * 4 + 15) / 16 * 16;
      alive.push_back(at::zeros({flags + g.exchange_bytes()}, options.dtype(at::kByte)));
      unsigned char* memory = alive.back().mutable_data_ptr<uint8_t>();
      p.flags = reinterpret_cast<unsigned*>(memory);
      p.exchange = memory + flags;
    }
    const cudaError_t error = launch_resident(p, g, compute, backward, stream);
    const bool too_many =
        error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize;
    if (too_many && (!forced_path() || !*forced_path())) {
      cudaGetLastError();
      return false;
    }
    C10_CUDA_CHECK(error);
    return true;
  }

  // Steps of a pass on the step path: a GEMM, M v, and a kernel for the rest. v lies in memory
  // between steps; forward it is h_n, which starts as hx.
  void run_steps(TensorList weight_hh, const Tensor& v, bool backward) {
    const Tensor weights = at::stack(weight_hh);
    const Tensor matrix = backward ? weights : weights.transpose(1, 2);
    const Tensor product = empty(v.sizes());
    const int64_t steps = s.T + (backward && p.grad_out.hx != nullptr);
    Step step;
    step.v = v.data_ptr();
    for (; step.number < steps; ++step.number) {
      if (!backward || step.number > 0) {
        const int64_t rows = backward ? s.B : batch(step.number);
        Tensor part = product.narrow(1, 0, rows);
        at::bmm_out(part, v.narrow(1, 0, rows), matrix);
        step.product = product.const_data_ptr();
      }
      C10_CUDA_CHECK(launch_step(p, step, compute, backward, stream));
    }
  }

  // Sequences that some direction has at its step `number`.
  int64_t batch(int64_t number) const {
    if (!s.packed()) return s.B;
    int64_t most = 0;
    for (int d = 0; d < p.D; ++d) {
      const int64_t t = p.reverse[d] ? s.T - 1 - number : number;
      most = std::max(most, s.step_row[t + 1] - s.step_row[t]);
    }
    return most;
  }
};

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
  if (s.N == 0) {
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

RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a) {
  const BelowAutograd below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  Call call(a);
  const RecurrenceSizes& s = call.s;
  DeviceCall& p = call.p;
  check_results(r, s, p, a.weight_hh[0]);
  const auto [want_input, want_hx, want_weights, want_bias, want_reset_state, want_alpha] =
      r.output_mask;
  const bool leaks = p.form != Form::none, grad_of_reset = want_reset_state && given(a.reset);
  const bool grad_of_alpha = want_alpha && leaks;
  const bool empty = s.N == 0;

  const Tensor none = call.empty({0});
  RecurrenceGradients grad{none, none, {}, {}, {}, none, {}};
  const Tensor grad_pre = call.empty(s.output_shape());
  const std::array<int64_t, 3> state{s.D, s.B, s.H};
  Tensor mixed, first;
  if (want_hx) grad.hx = call.empty(state);
  if (grad_of_alpha || (grad_of_reset && leaks)) mixed = call.empty_rows();
  if (!empty) {
    const Geometry geometry = call.choose_path(true, a.input.device());
    p.output = const_cast<void*>(call.keep_sources(r.output));
    if (!r.saved.empty()) p.saved = const_cast<void*>(call.keep_sources(r.saved[0]));
    if (given(r.grad_output)) p.grad.grad_output = call.keep_sources(*r.grad_output);
    if (given(r.grad_h_n)) p.grad.grad_h_n = call.keep(*r.grad_h_n);
    p.grad_out.pre = grad_pre.data_ptr();
    if (want_hx) p.grad_out.hx = grad.hx.data_ptr();
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
      C10_CUDA_CHECK(launch_reset_sums(p, sums.data_ptr(), call.compute, call.stream));
      const Tensor product = at::bmm(sums, at::stack(a.weight_hh));
      C10_CUDA_CHECK(launch_reset_gradient(p, product.const_data_ptr(), grad.reset_state.data_ptr(),
                                           call.compute, call.stream));
    }
  } else {
    if (want_hx) given(r.grad_h_n) ? grad.hx.copy_(*r.grad_h_n) : grad.hx.zero_();
    if (grad_of_reset) grad.reset_state = at::zeros(state, call.options);
  }

  const int64_t width = s.D * s.H;
  const Tensor grad_rows = grad_pre.view({s.N, width});
  const auto direction = [&](const Tensor& t, int64_t d) { return t.narrow(1, d * s.H, s.H); };
  const auto previous = [&](const States& from) {
    const Tensor rows = call.empty({s.N, width});
    if (!empty)
      C10_CUDA_CHECK(launch_previous_state(p, from, rows.data_ptr(), call.compute, call.stream));
    return rows;
  };
  const Tensor outputs = r.output.contiguous().view({s.N, width});
  const States states{empty ? nullptr : outputs.const_data_ptr(), p.hx, p.reset_output};
  Tensor outputs_before;
  if (want_weights) {
    // Where sequences start or end at different steps, a kernel collects the outputs before them.
    const OptionalTensor start = first.defined() ? OptionalTensor(first) : a.hx;
    const bool collected = s.packed() || p.reset || (given(a.lengths) && given(start));
    if (collected) outputs_before = previous(states);
    const Tensor features = s.features ? a.input.reshape({s.N, s.I}) : Tensor();
    for (int64_t d = 0; d < s.D; ++d) {
      const Tensor rows = direction(grad_rows, d);
      grad.weight_hh.push_back(
          empty       ? at::mm(rows.t(), direction(outputs, d))
          : collected ? at::mm(rows.t(), direction(outputs_before, d))
                      : weight_gradient(rows, direction(outputs, d),
                                        given(start) ? OptionalTensor((*start)[d]) : std::nullopt,
                                        s.B, a.reverse[d]));
      if (s.features) grad.weight_ih.push_back(at::mm(rows.t(), features));
    }
  }
  if (want_bias) {
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
  if (want_input && s.features) {
    grad.input = at::mm(direction(grad_rows, 0), a.weight_ih[0]);
    if (s.D == 2) grad.input.addmm_(direction(grad_rows, 1), a.weight_ih[1]);
    grad.input = grad.input.view(a.input.sizes());
  } else if (want_input && given(a.index)) {
    // A row of the table collects from every row that read it.
    grad.input =
        call_op<EmbeddingBackwardOp>(grad_rows, a.index->flatten(), a.input.size(0), -1, false);
  } else if (want_input) {
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
