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
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
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

// choose() for the current device, remembered: a call's shape mostly comes again.
Geometry choice(const Problem& p, c10::DeviceIndex index) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, Device> devices;
  using Key = std::tuple<int, int64_t, int64_t, int64_t, int, int, bool, std::string>;
  static std::map<Key, Geometry> choices;
  constexpr size_t kRemembered = 1024;
  const char* forced = std::getenv("RNNEXT_CUDA_PATH");
  const Key key(index, p.T, p.B, p.H, p.D, static_cast<int>(p.compute), p.backward,
                forced ? forced : "");
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = choices.find(key); known != choices.end()) return known->second;
  if (devices.count(index) == 0) devices[index] = describe(index);
  try {
    if (choices.size() >= kRemembered) choices.clear();
    return choices[key] = choose(p, devices[index], forced);
  } catch (const std::invalid_argument& error) {
    choices.erase(key);
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
    default:
      return at::globalContext().allowTF32CuBLAS() ? Compute::tf32 : Compute::f32;
  }
}

bool even(const Tensor& t) {  // pairs of 16-bit elements can be read as words
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 4 == 0;
}

struct Call : ParsedCall {
  DeviceCall p;
  Compute compute{};
  cudaStream_t stream{};
  at::TensorOptions options;
  bool reads_even = true;

  explicit Call(const RecurrenceArguments& a) {
    parse(a, *this, p);
    p.I = 0;  // the product with W_ih is a GEMM before the kernel
    compute = compute_of(dtype);
    stream = at::cuda::getCurrentCUDAStream();
    options = a.weight_hh[0].options();
    if (s.N == 0) return;
    if (s.packed()) {
      p.step_row = constants(s.step_row);
      p.lengths = constants(s.row_lengths);
    } else if (given(a.lengths)) {
      // Their values are on the device: outside 0..T they count as the nearest of the two.
      p.lengths = static_cast<const int64_t*>(keep(a.lengths->clamp(0, s.T)));
    }
  }

  const void* keep_even(const Tensor& t) {
    const void* data = keep(t);
    reads_even = reads_even && even(alive.back());
    return data;
  }
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
      shape.back() = s.D * s.H;
      rows = empty(shape);
      const Tensor features = from.reshape({s.N, s.I});
      for (int64_t d = 0; d < s.D; ++d) {
        Tensor part = rows.view({s.N, s.D * s.H}).narrow(1, d * s.H, s.H);
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
    alive.push_back(rows);
    p.input.data = rows.const_data_ptr();
    p.input.stride_b = rows.stride(-2);
    p.input.stride_t = rows.dim() == 3 ? rows.stride(0) : 0;
    reads_even = reads_even && even(rows) && p.input.stride_b % 2 == 0 && p.input.stride_t % 2 == 0;
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

  void run_resident(const Geometry& g, bool backward) {
    if (g.path == Path::grid) {
      const int64_t flags = (g.flag_count() * 4 + 15) / 16 * 16;
      alive.push_back(at::zeros({flags + g.exchange_bytes()}, options.dtype(at::kByte)));
      unsigned char* memory = alive.back().mutable_data_ptr<uint8_t>();
      p.flags = reinterpret_cast<unsigned*>(memory);
      p.exchange = memory + flags;
    }
    C10_CUDA_CHECK(launch_resident(p, g, compute, backward, stream));
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

RecurrenceOp::Results recurrence(const RecurrenceArguments& a, bool save) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  Call call(a);
  const RecurrenceSizes& s = call.s;
  const Tensor output = call.empty(s.output_shape());
  const Tensor h_n = call.empty({s.D, s.B, s.H});
  const auto start_from_hx = [&] { given(a.hx) ? h_n.copy_(*a.hx) : h_n.zero_(); };
  if (s.N == 0) {
    start_from_hx();
    return {output, h_n};
  }
  call.set_input(a.input, a.index, a.weight_ih);
  DeviceCall& p = call.p;
  p.paired = s.H % 2 == 0 && call.reads_even;
  p.output = output.data_ptr();
  p.h_n = h_n.data_ptr();
  const Geometry geometry =
      choice({s.T, s.B, s.H, p.D, call.compute, false}, a.input.device().index());
  if (geometry.path == Path::step) {
    start_from_hx();
    call.run_steps(a.weight_hh, h_n, false);
  } else {
    call.set_matrix(a.weight_hh, false);
    call.run_resident(geometry, false);
  }
  return {output, h_n};
}

// The gradient of W_hh: all rows of grad [N,H] (columns of a wider tensor) times the states before
// them. Those are the neighbouring rows of `states`, and hx at the ends.
Tensor weight_gradient(const Tensor& grad, const Tensor& states, const OptionalTensor& hx,
                       int64_t batch, bool reverse) {
  const int64_t rest = grad.size(0) - batch;
  Tensor result = at::mm(grad.narrow(0, reverse ? 0 : batch, rest).t(),
                         states.narrow(0, reverse ? batch : 0, rest));
  if (given(hx)) result.addmm_(grad.narrow(0, reverse ? rest : 0, batch).t(), *hx);
  return result;
}

RecurrenceGradients recurrence_backward(const RecurrenceResults& r, const RecurrenceArguments& a) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::cuda::OptionalCUDAGuard guard(at::device_of(a.input));
  Call call(a);
  const RecurrenceSizes& s = call.s;
  const Tensor& like = a.weight_hh[0];
  check_like(output, "output", s.output_shape(), like);
  if (given(grad_output)) check_like(*grad_output, "grad_output", s.output_shape(), like);
  if (given(grad_h_n)) check_like(*grad_h_n, "grad_h_n", {s.D, s.B, s.H}, like);
  const auto [want_input, want_hx, want_weights, want_bias] = output_mask;

  Tensor grad_pre = call.empty(s.output_shape());
  Tensor grad_hx = call.empty(want_hx ? at::IntArrayRef{s.D, s.B, s.H} : at::IntArrayRef{0});
  DeviceCall& p = call.p;
  if (s.N > 0) {
    p.output = const_cast<void*>(call.keep_even(output));
    if (given(grad_output)) p.grad.grad_output = call.keep_even(*grad_output);
    if (given(grad_h_n)) p.grad.grad_h_n = call.keep(*grad_h_n);
    p.grad_out.pre = grad_pre.data_ptr();
    if (want_hx) p.grad_out.hx = grad_hx.data_ptr();
    p.paired = s.H % 2 == 0 && call.reads_even;
    const Geometry geometry =
        choice({s.T, s.B, s.H, p.D, call.compute, true}, a.input.device().index());
    if (geometry.path == Path::step) {
      call.run_steps(a.weight_hh, call.empty({s.D, s.B, s.H}), true);
    } else {
      call.set_matrix(a.weight_hh, true);
      call.run_resident(geometry, true);
    }
  } else if (want_hx) {
    given(grad_h_n) ? grad_hx.copy_(*grad_h_n) : grad_hx.zero_();
  }

  const int64_t width = s.D * s.H;
  const Tensor grad_rows = grad_pre.view({s.N, width});
  const auto direction = [&](const Tensor& rows, int64_t d) {
    return rows.narrow(1, d * s.H, s.H);
  };
  std::vector<Tensor> grad_weight_ih, grad_weight_hh, grad_bias;
  if (want_weights) {
    // Where sequences start or end at different steps, a kernel collects the states before them.
    const bool collected = s.N > 0 && (s.packed() || (given(a.lengths) && given(a.hx)));
    Tensor states = output.contiguous().view({s.N, width});
    if (collected) {
      states = call.empty({s.N, width});
      C10_CUDA_CHECK(launch_previous_state(p, states.data_ptr(), call.compute, call.stream));
    }
    const Tensor features = s.features ? a.input.reshape({s.N, s.I}) : Tensor();
    for (int64_t d = 0; d < s.D; ++d) {
      const Tensor grad = direction(grad_rows, d), before = direction(states, d);
      const OptionalTensor start = given(a.hx) ? OptionalTensor((*a.hx)[d]) : OptionalTensor();
      grad_weight_hh.push_back(collected || s.N == 0
                                   ? at::mm(grad.t(), before)
                                   : weight_gradient(grad, before, start, s.B, a.reverse[d]));
      if (s.features) grad_weight_ih.push_back(at::mm(grad.t(), features));
    }
  }
  if (want_bias) {
    for (int64_t d = 0; d < s.D; ++d) grad_bias.push_back(direction(grad_rows, d).sum(0));
  }
  Tensor grad_input = call.empty({0});
  if (want_input && s.features) {
    grad_input = at::mm(direction(grad_rows, 0), a.weight_ih[0]);
    if (s.D == 2) grad_input.addmm_(direction(grad_rows, 1), a.weight_ih[1]);
    grad_input = grad_input.view(a.input.sizes());
  } else if (want_input && given(a.index)) {
    // A row of the table collects from every row that read it.
    grad_input =
        call_op<EmbeddingBackwardOp>(grad_rows, a.index->flatten(), a.input.size(0), -1, false);
  } else if (want_input) {
    grad_input = grad_pre;
  }
  return {grad_input, grad_hx, grad_weight_ih, grad_weight_hh, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CUDA, m) {
  m.impl("recurrence", forward_op<recurrence>);
  m.impl("recurrence_backward", backward_op<recurrence_backward>);
}

}  // namespace rnnext::cuda
