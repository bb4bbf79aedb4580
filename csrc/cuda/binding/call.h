// A call of the ops on a CUDA device: its tensors as kernels take them, its path, its launches.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "cuda/recurrence/launch.h"
#include "ops/parse.h"

namespace rnnext::cuda {

struct CudaCall : ParsedCall {
  DeviceCall p;
  Compute compute{};
  cudaStream_t stream{};
  at::TensorOptions options;
  bool reads_pairs = false;  // 16-bit elements are read as aligned words of two

  explicit CudaCall(const RecurrenceArguments& a);

  // Chooses the path, and how the rows lie that its steps read (DeviceCall::source_step).
  Geometry choose_path(bool backward);
  // Sets the rows of the forward pass: as given, picked by an index, or the product with W_ih.
  void set_input(const Tensor& input, const OptionalTensor& index, TensorList weight_ih);
  const void* keep_sources(const Tensor& rows) { return keep(sources(rows)); }
  // With a leak or resets, runs StateKernel::prologue; returns what the first steps multiply.
  Tensor run_prologue();
  void launch_state_kernel(StateKernel what, const Tensor& from, const Tensor& to) const;

  // Keeps new memory as long as the call lives.
  void* take(const Tensor& fresh) { return const_cast<void*>(keep(fresh)); }
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, options); }
  // Rows of output for kernels that write only where a sequence has the step: zeros elsewhere.
  Tensor empty_rows() const;
  // The type in which kernels compute.
  at::TensorOptions accumulators() const {
    return options.dtype(dtype == DType::f64 ? at::kDouble : at::kFloat);
  }

  // Returns false if the device runs fewer blocks at once than its properties say, as in a green
  // context; nothing has run then.
  bool run_resident(const Geometry& g, TensorList weight_hh, bool backward);
  // Runs the steps of a pass on the step path: a GEMM, M v, and a kernel for the rest. Between
  // steps v is in memory; forward it is h_n, which starts as hx.
  void run_steps(TensorList weight_hh, const Tensor& v, bool backward);

 private:
  const int64_t* constants(const std::vector<int64_t>& values);
  // Whether steps can read rows [.., D*H] where they lie; and the rows, copied if not.
  bool readable(const Tensor& rows) const;
  Tensor sources(const Tensor& rows) const;
};

}  // namespace rnnext::cuda
