#include "cuda/binding/call.h"

#include <ATen/cuda/CUDAContext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/binding/errors.h"

namespace rnnext::cuda {
namespace {

const char* forced_path() { return std::getenv("RNNEXT_CUDA_PATH"); }

// The choice for the current device. Choices are remembered, since most shapes come again. T is
// rounded up to a power of two, so that batches of sentences share choices.
Geometry choice(Problem p) {
  constexpr size_t kRemembered = 1024;
  static std::mutex mutex;
  static std::map<int, Device> devices;
  static std::map<std::tuple<int, Problem, std::string>, Geometry> choices;
  int index = 0;
  check_launch(cudaGetDevice(&index));
  const int64_t steps = p.T;
  for (p.T = 1; p.T < steps;) p.T *= 2;
  const char* const forced = forced_path();
  const std::lock_guard<std::mutex> lock(mutex);
  Device& device = devices[index];
  if (device.capability == 0) check_launch(describe(&device));
  const auto key = std::make_tuple(index, p, std::string(forced ? forced : ""));
  if (const auto known = choices.find(key); known != choices.end()) return known->second;
  if (choices.size() >= kRemembered) choices.clear();
  try {
    return choices.emplace(key, choose(p, device, forced)).first->second;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// TF32 if GEMMs elsewhere use it. (allowTF32CuBLAS() throws once a user has set fp32_precision.)
Compute compute_of(DType dtype) {
  static_assert(int(Compute::f64) == int(DType::f64) && int(Compute::bf16) == int(DType::bf16) &&
                int(Compute::f16) == int(DType::f16));
  if (dtype != DType::f32) return static_cast<Compute>(dtype);
  const auto precision =
      at::globalContext().float32Precision(at::str2backend("cuda"), at::str2op("matmul"));
  return precision == at::Float32Precision::TF32 ? Compute::tf32 : Compute::f32;
}

// Whether, in all rows, pairs of 16-bit elements lie at multiples of 4 bytes.
bool even(const Tensor& rows) {
  const at::IntArrayRef strides = rows.strides().slice(0, rows.dim() - 1);
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 4 == 0 && rows.stride(-1) == 1 &&
         std::all_of(strides.begin(), strides.end(), [](int64_t n) { return n % 2 == 0; });
}

}  // namespace

CudaCall::CudaCall(const RecurrenceArguments& a) {
  static_assert(kArgumentCount == 17);
  parse(a, *this, p);
  TORCH_CHECK_NOT_IMPLEMENTED(a.noise.empty(),
                              "noise of the recurrence op is drawn on the CPU alone: on a GPU add "
                              "it to precomputed input, as LeakyRNN does");
  p.source_step = s.H;
  p.paired = s.H % 2 == 0;
  compute = compute_of(dtype);
  stream = at::cuda::getCurrentCUDAStream();
  options = a.weight_hh[0].options();
  if (s.empty() || is_gated(p.cell)) return;
  // (The values of alpha are on the device; checking them would wait for it.)
  if (p.cell != Cell::elman && s.D > 1) p.alpha[0] = keep(at::cat(a.alpha));
  if (p.reset) p.marks = static_cast<const int*>(keep(a.reset->to(at::kInt)));
  if (s.packed) {
    p.step_row = constants(s.step_row);
    p.lengths = constants(s.sequence_lengths);
  } else if (given(a.lengths)) {  // on the device, unchecked: those outside 0..T are clamped
    p.lengths = static_cast<const int64_t*>(keep(a.lengths->clamp(0, s.T)));
  }
}

Geometry CudaCall::choose_path(bool backward) {
  const Geometry g = choice({s.T, s.B, s.H, p.D, compute, backward});
  reads_pairs = g.path != Path::step && element_size(compute) == 2;
  if (reads_pairs) p.source_step = s.H + s.H % 2;
  return g;
}

bool CudaCall::readable(const Tensor& rows) const {
  return !reads_pairs || (p.paired && even(rows));
}

Tensor CudaCall::sources(const Tensor& rows) const {
  if (readable(rows)) return rows;
  const Tensor each = rows.unflatten(-1, {s.D, s.H});
  std::vector<int64_t> shape = each.sizes().vec();
  shape.back() = p.source_step;
  const Tensor copy = empty(shape);
  copy.narrow(-1, 0, s.H).copy_(each);
  return copy.flatten(-2);
}

const int64_t* CudaCall::constants(const std::vector<int64_t>& values) {
  const auto count = static_cast<int64_t>(values.size());
  auto* to = static_cast<int64_t*>(take(at::empty({count}, options.dtype(at::kLong))));
  check_launch(launch_write_constants(to, values.data(), values.size(), stream));
  return to;
}

void CudaCall::set_input(const Tensor& input, const OptionalTensor& index, TensorList weight_ih) {
  Tensor rows = input;
  if (s.features) {
    std::vector<int64_t> shape = input.sizes().vec();
    shape.back() = s.D * p.source_step;
    rows = empty(shape);
    const Tensor features = input.reshape({s.N, s.I});
    for (int64_t d = 0; d < s.D; ++d) {
      Tensor part = rows.view({s.N, shape.back()}).narrow(1, d * p.source_step, s.H);
      at::mm_out(part, features, weight_ih[d].t());
    }
  } else if (input.stride(-1) != 1) {
    rows = input.contiguous();
  }
  if (given(index)) {
    TORCH_CHECK_INDEX(input.size(0) > 0, "index out of range in self: the table has no rows");
    const Tensor flat = index->contiguous();
    const Tensor picked = at::empty({s.N}, options.dtype(at::kLong));
    check_launch(launch_table_rows(checked_indices(flat, input.size(0)),
                                   picked.mutable_data_ptr<int64_t>(), stream));
    if (readable(rows)) {
      p.input.index = static_cast<const int64_t*>(keep(picked));
    } else {  // the rows that occur, instead of the whole table
      rows = rows.index_select(0, picked).view(s.output_shape());
    }
  }
  if (!s.features) rows = sources(rows);
  alive.push_back(rows);
  p.input.data = rows.const_data_ptr();
  p.input.stride_b = rows.stride(-2);
  p.input.stride_t = rows.dim() == 3 ? rows.stride(0) : 0;
}

Tensor CudaCall::run_prologue() {
  if (!p.reset && p.cell == Cell::elman) return {};
  const Tensor first = empty({s.D, s.B, s.H});
  if (p.reset) p.reset_output = take(empty(first.sizes()));
  launch_state_kernel(StateKernel::prologue, {}, first);
  p.hx = keep(first);
  return first;
}

void CudaCall::launch_state_kernel(StateKernel what, const Tensor& from, const Tensor& to) const {
  check_launch(cuda::launch_state_kernel(what, p, from.defined() ? from.const_data_ptr() : nullptr,
                                         to.data_ptr(), compute, stream));
}

Tensor CudaCall::empty_rows() const {
  return p.lengths && !p.step_row ? at::zeros(s.output_shape(), options) : empty(s.output_shape());
}

bool CudaCall::run_resident(const Geometry& g, TensorList weight_hh, bool backward) {
  if (g.path == Path::step) return false;
  // W_hh or its transpose, as the kernels read it.
  const int64_t block = 64 / element_size(compute);
  p.matrix_stride = (s.H + block - 1) / block * block;
  for (int d = 0; d < p.D; ++d) {
    Tensor matrix = backward ? weight_hh[d].t() : weight_hh[d];
    if (p.matrix_stride != s.H) matrix = at::constant_pad_nd(matrix, {0, p.matrix_stride - s.H});
    matrix = matrix.contiguous();
    if (reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % 16) matrix = matrix.clone();
    p.matrix[d] = keep(matrix);
  }
  if (g.path == Path::grid) {
    const int64_t flags = (g.flag_count() * 4 + 15) / 16 * 16;
    void* memory = take(at::zeros({flags + g.exchange_bytes()}, options.dtype(at::kByte)));
    p.flags = static_cast<unsigned*>(memory);
    p.exchange = static_cast<unsigned char*>(memory) + flags;
  }
  const cudaError_t error = launch_resident(p, g, compute, backward, stream);
  const bool too_many =
      error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize;
  if (too_many && (!forced_path() || !*forced_path())) {
    cudaGetLastError();
    return false;
  }
  check_launch(error);
  return true;
}

void CudaCall::run_steps(TensorList weight_hh, const Tensor& v, bool backward) {
  const Tensor weights = at::stack(weight_hh);
  const Tensor matrix = backward ? weights : weights.transpose(1, 2);
  Tensor product = empty(v.sizes());
  const int64_t steps = s.T + (backward && p.grad_out.hx != nullptr);
  Step step;
  step.v = v.data_ptr();
  for (; step.number < steps; ++step.number) {
    if (!backward || step.number > 0) {
      at::bmm_out(product, v, matrix);
      step.product = product.const_data_ptr();
    }
    check_launch(launch_step(p, step, compute, backward, stream));
  }
}

}  // namespace rnnext::cuda
