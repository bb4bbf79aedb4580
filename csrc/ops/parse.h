// What the bindings of all devices do with arguments first: check them, and fill the call's struct.
#pragma once

#include <ATen/TensorUtils.h>
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "ops/signatures.h"
#include "recurrence/call.h"

namespace rnnext {

// As Python writes it: "float32", not "Float".
inline auto dtype_name(const Tensor& t) { return c10::getDtypeNames(t.scalar_type()).first; }

// Which of the known names it is.
template <size_t N>
int parse_name(const char* argument, const char* const (&known)[N], std::string_view name) {
  std::string list;
  for (size_t i = 0; i < N; ++i) {
    if (name == known[i]) return static_cast<int>(i);
    list += (i ? ", '" : "'") + std::string(known[i]) + "'";
  }
  TORCH_CHECK_VALUE(false, argument, " must be one of ", list, ", got '", name, "'");
}
inline Nonlinearity parse_nonlinearity(std::string_view name) {
  return static_cast<Nonlinearity>(parse_name("nonlinearity", kNonlinearityNames, name));
}
inline Form parse_form(std::string_view name) {
  return static_cast<Form>(1 + parse_name("form", kFormNames, name));  // after Form::none
}
template <class Arguments>
Form form_of(const Arguments& a) {
  return a.alpha.empty() ? Form::none : parse_form(a.form);
}
// Whether the backward pass reads what the forward pass saved of a leak.
inline bool reads_saved(Form form, bool want_alpha) {
  return saves_more(form) || (form != Form::none && want_alpha);
}

inline DType parse_dtype(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, name, " must be float32, float64, bfloat16 or float16, got ", dtype_name(t));
  }
}

// By torch.nn.functional.embedding's check, for its message.
inline void check_indices(const Tensor& indices) {
  at::checkScalarTypes("embedding", {indices, "indices", 1}, {at::kLong, at::kInt});
}

// Same dtype and device as `like`, and this shape.
inline void check_like(const Tensor& t, const char* name, at::IntArrayRef shape,
                       const Tensor& like) {
  TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the dtype of weight_hh, ",
              dtype_name(like), ", got ", dtype_name(t));
  TORCH_CHECK(t.device() == like.device(), name, " must be on the device of weight_hh, ",
              like.device(), ", got ", t.device());
}

// Sizes of a call of `recurrence`; step_row and row_lengths hold what a packed input implies.
struct RecurrenceSizes {
  int64_t T, B, I, H, D, N;
  bool features;
  std::vector<int64_t> step_row;     // [T+1], packed input only
  std::vector<int64_t> row_lengths;  // [B], packed input only

  bool packed() const { return !step_row.empty(); }
  // Nothing to compute. (Of units torch.nn.RNNCell may have none.)
  bool empty() const { return N == 0 || H == 0; }
  at::DimVector output_shape() const {
    return packed() ? at::DimVector{N, D * H} : at::DimVector{T, B, D * H};
  }
};

inline RecurrenceSizes check_recurrence(const RecurrenceArguments& a) {
  RecurrenceSizes s{};
  s.D = static_cast<int64_t>(a.weight_hh.size());
  TORCH_CHECK(s.D == 1 || s.D == 2, "weight_hh must hold 1 or 2 tensors, one a direction, got ",
              s.D);
  TORCH_CHECK(a.reverse.size() == a.weight_hh.size(), "reverse must hold one bool a direction, ",
              s.D, ", got ", a.reverse.size());
  const Tensor& like = a.weight_hh[0];
  TORCH_CHECK(like.dim() == 2, "weight_hh must have shape [H, H], got ", like.sizes());
  s.H = like.size(0);
  s.features = !a.weight_ih.empty();
  TORCH_CHECK(!s.features || a.weight_ih.size() == a.weight_hh.size(), "weight_ih must hold ", s.D,
              " tensors or none, got ", a.weight_ih.size());
  TORCH_CHECK(!(s.features && given(a.index)), "index needs a table: weight_ih must be empty");
  TORCH_CHECK(a.bias_ih.size() == a.bias_hh.size() &&
                  (a.bias_ih.empty() || a.bias_ih.size() == a.weight_hh.size()),
              "bias_ih and bias_hh must both hold ", s.D, " tensors or none, got ",
              a.bias_ih.size(), " and ", a.bias_hh.size());

  // Rows: of the index if there is one, otherwise of the input.
  const Tensor& rows = given(a.index) ? *a.index : a.input;
  const int64_t row_dims = given(a.index) ? 0 : 1;
  const char* rows_name = given(a.index) ? "index" : "input";
  if (given(a.batch_sizes)) {
    TORCH_CHECK(!given(a.lengths), "lengths and batch_sizes must not both be given");
    TORCH_CHECK(a.batch_sizes->dim() == 1 && a.batch_sizes->scalar_type() == at::kLong &&
                    a.batch_sizes->device().is_cpu(),
                "batch_sizes must be a 1-D int64 tensor on the CPU, got ",
                dtype_name(*a.batch_sizes), " of shape ", a.batch_sizes->sizes(), " on ",
                a.batch_sizes->device());
    TORCH_CHECK(rows.dim() == 1 + row_dims, rows_name, " of a packed sequence must have ",
                1 + row_dims, " dimensions, got ", rows.dim());
    const Tensor sizes = a.batch_sizes->contiguous();
    const int64_t* n = sizes.const_data_ptr<int64_t>();
    s.T = sizes.numel();
    s.B = s.T > 0 ? n[0] : 0;
    TORCH_CHECK(s.B <= rows.size(0), "batch_sizes[0] = ", s.B, " is more than ", rows_name,
                " has rows, ", rows.size(0));
    s.step_row.assign(1, 0);
    s.row_lengths.assign(s.B > 0 ? s.B : 0, 0);
    for (int64_t t = 0; t < s.T; ++t) {
      TORCH_CHECK(n[t] > 0 && (t == 0 || n[t] <= n[t - 1]),
                  "batch_sizes must be positive and must not increase, got ", n[t], " at step ", t);
      s.step_row.push_back(s.step_row.back() + n[t]);
      for (int64_t b = t + 1 < s.T ? std::max<int64_t>(0, n[t + 1]) : 0; b < n[t]; ++b)
        s.row_lengths[b] = t + 1;
    }
    s.N = s.step_row.back();
    TORCH_CHECK(rows.size(0) == s.N, rows_name, " must have sum(batch_sizes) = ", s.N,
                " rows, got ", rows.size(0));
  } else {
    TORCH_CHECK(rows.dim() == 2 + row_dims, rows_name, " must have ", 2 + row_dims,
                " dimensions, got ", rows.dim());
    s.T = rows.size(0);
    s.B = rows.size(1);
    s.N = s.T * s.B;
  }

  if (given(a.index)) {
    TORCH_CHECK(a.input.dim() == 2, "the table must have 2 dimensions, got ", a.input.dim());
    TORCH_CHECK(a.index->scalar_type() == at::kLong || a.index->scalar_type() == at::kInt,
                "index must be int32 or int64, got ", dtype_name(*a.index));
    TORCH_CHECK(a.index->device() == like.device(), "index must be on ", like.device(), ", got ",
                a.index->device());
  }
  const int64_t width = a.input.size(-1);
  s.I = s.features ? width : 0;
  if (s.features && a.weight_ih[0].dim() == 2)
    TORCH_CHECK(width == a.weight_ih[0].size(1), "input must have ", a.weight_ih[0].size(1),
                " features, as many as weight_ih, got ", width);
  if (!s.features)
    TORCH_CHECK(width == s.D * s.H, "the last dimension of input must be ", s.D * s.H, ", got ",
                width);
  check_like(a.input, "input", a.input.sizes(), like);
  for (size_t d = 0; d < a.weight_hh.size(); ++d) {
    check_like(a.weight_hh[d], "weight_hh", {s.H, s.H}, like);
    if (s.features) check_like(a.weight_ih[d], "weight_ih", {s.H, s.I}, like);
    if (!a.bias_ih.empty()) {
      check_like(a.bias_ih[d], "bias_ih", {s.H}, like);
      check_like(a.bias_hh[d], "bias_hh", {s.H}, like);
    }
  }
  if (given(a.hx)) check_like(*a.hx, "hx", {s.D, s.B, s.H}, like);
  if (given(a.reset)) {
    TORCH_CHECK_VALUE(!s.packed(), "reset must not be given with a packed input");
    TORCH_CHECK_TYPE(a.reset->scalar_type() == at::kBool, "reset must be a bool tensor, got ",
                     dtype_name(*a.reset));
    TORCH_CHECK_VALUE(a.reset->sizes() == at::IntArrayRef({s.T, s.B}), "reset must have shape [",
                      s.T, ", ", s.B, "], got ", a.reset->sizes());
    TORCH_CHECK(a.reset->device() == like.device(), "reset must be on ", like.device(), ", got ",
                a.reset->device());
  }
  if (given(a.reset_state)) {
    TORCH_CHECK_VALUE(given(a.reset), "reset_state needs a reset");
    check_like(*a.reset_state, "reset_state", {s.D, s.B, s.H}, like);
  }
  TORCH_CHECK(a.alpha.empty() || a.alpha.size() == a.weight_hh.size(), "alpha must hold ", s.D,
              " tensors or none, got ", a.alpha.size());
  for (const Tensor& alpha : a.alpha) check_like(alpha, "alpha", {s.H}, like);
  if (given(a.lengths)) {
    TORCH_CHECK_TYPE(a.lengths->scalar_type() == at::kLong, "lengths must be an int64 tensor, got ",
                     dtype_name(*a.lengths));
    TORCH_CHECK_VALUE(a.lengths->dim() == 1 && a.lengths->size(0) == s.B,
                      "lengths must have shape [", s.B, "], got ", a.lengths->sizes());
    TORCH_CHECK(a.lengths->device() == like.device(), "lengths must be on ", like.device(),
                ", got ", a.lengths->device());
  }
  return s;
}

// What the backward op is given besides.
inline void check_results(const RecurrenceResults& r, const RecurrenceSizes& s, const Recurrence& p,
                          const Tensor& like) {
  check_like(r.output, "output", s.output_shape(), like);
  if (given(r.grad_output)) check_like(*r.grad_output, "grad_output", s.output_shape(), like);
  if (given(r.grad_h_n)) check_like(*r.grad_h_n, "grad_h_n", {s.D, s.B, s.H}, like);
  TORCH_CHECK(r.saved.size() <= 1, "saved must hold a tensor or none, got ", r.saved.size());
  for (const Tensor& saved : r.saved) check_like(saved, "saved", s.output_shape(), like);
  TORCH_CHECK(!reads_saved(p.form, r.output_mask[5]) || !r.saved.empty(),
              "saved must be what the forward pass saved, got none");
}

// What a call of the recurrence comes to: its sizes, its element type, and the tensors that its
// struct points into.
struct ParsedCall {
  RecurrenceSizes s;
  DType dtype;
  c10::SmallVector<Tensor, 8> alive;

  const void* keep(const Tensor& t) {
    alive.push_back(t.contiguous());
    return alive.back().const_data_ptr();
  }
  // Of an argument, which outlives the call.
  const void* read(const Tensor& t) { return t.is_contiguous() ? t.const_data_ptr() : keep(t); }
};

// Checks the arguments and fills all that has one meaning on every device. Weights, rows, lengths
// and what a packed input implies are left to the device's binding.
inline void parse(const RecurrenceArguments& a, ParsedCall& call, Recurrence& p) {
  const RecurrenceSizes& s = call.s = check_recurrence(a);
  call.dtype = parse_dtype(a.weight_hh[0], "weight_hh");
  p.T = s.T;
  p.B = s.B;
  p.I = s.I;
  p.H = s.H;
  p.D = static_cast<int>(s.D);
  p.nonlinearity = parse_nonlinearity(a.nonlinearity);
  parse_form(a.form);  // which must be one, also without a leak
  p.form = form_of(a);
  for (int d = 0; d < p.D; ++d) {
    p.reverse[d] = a.reverse[d];
    if (!a.alpha.empty()) p.alpha[d] = call.read(a.alpha[d]);
    if (a.bias_ih.empty()) continue;
    p.bias_ih[d] = call.read(a.bias_ih[d]);
    p.bias_hh[d] = call.read(a.bias_hh[d]);
  }
  if (given(a.hx)) p.hx = call.read(*a.hx);
  if (given(a.reset)) p.reset = static_cast<const bool*>(call.read(*a.reset));
  if (given(a.reset_state)) p.reset_state = call.read(*a.reset_state);
}

}  // namespace rnnext
