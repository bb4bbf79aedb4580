// Checks of the ops' arguments. Sizes are integers, or, without data, a tracer's symbols.
#pragma once

#include <ATen/TensorUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ops/signatures.h"
#include "recurrence/call.h"

namespace rnnext {

// A dtype's name as Python writes it: "float32", not "Float". An op's dtype may be any number.
inline std::string dtype_name(at::ScalarType type) {
  const bool known = type >= at::ScalarType(0) && type < at::ScalarType::Undefined;
  return known ? std::string(c10::getDtypeNames(type).first)
               : "the number " + std::to_string(static_cast<int>(type));
}
inline std::string dtype_name(const Tensor& t) { return dtype_name(t.scalar_type()); }

// The index of a name among those of a list.
template <class List, class NameOf = std::identity>
int parse_name(const char* argument, const List& list, std::string_view name, NameOf name_of = {}) {
  const auto* const place = std::ranges::find(list, name, name_of);
  if (place == std::end(list)) {
    std::vector<std::string_view> known;
    std::ranges::transform(list, std::back_inserter(known), name_of);
    TORCH_CHECK_VALUE(false, argument, " must be one of '", c10::Join("', '", known), "', got '",
                      name, "'");
  }
  return static_cast<int>(place - std::begin(list));
}
inline Nonlinearity parse_nonlinearity(std::string_view name) {
  return static_cast<Nonlinearity>(parse_name("nonlinearity", kNonlinearityNames, name));
}
inline Cell parse_cell(std::string_view name) {
  return static_cast<Cell>(parse_name("cell", kCells, name, &CellTraits::name));
}
// Whether the backward pass reads what the forward pass saved.
inline bool reads_saved(Cell cell, bool want_alpha) {
  return traits_of(cell).always_saves || (is_leaky(cell) && want_alpha);
}

inline DType parse_dtype(at::ScalarType type, const char* name) {
  constexpr at::ScalarType kInOrder[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  const auto* const place = std::ranges::find(kInOrder, type);
  TORCH_CHECK_NOT_IMPLEMENTED(place != std::end(kInOrder), name,
                              " must be float32, float64, bfloat16 or float16, got ",
                              dtype_name(type));
  return static_cast<DType>(place - kInOrder);
}
inline DType parse_dtype(const Tensor& t, const char* name) {
  return parse_dtype(t.scalar_type(), name);
}

// The check of torch.nn.functional.embedding, for its message.
inline void check_index_dtype(const Tensor& indices) {
  at::checkScalarTypes("embedding", {indices, "indices", 1}, {at::kLong, at::kInt});
}

template <class Int>
c10::ArrayRef<Int> sizes_of(const Tensor& t) {
  if constexpr (std::is_same_v<Int, c10::SymInt>) {
    return t.sym_sizes();
  } else {
    return t.sizes();
  }
}
// Whether sizes are equal. If a tracer does not know them, it assumes from now on that they are.
inline bool same(int64_t a, int64_t b) { return a == b; }
inline bool same(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}
template <class Int>
bool same(c10::ArrayRef<Int> a, c10::ArrayRef<Int> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Int& i, const Int& j) { return same(i, j); });
}

// Checks that a tensor has this shape, and the dtype and device of `like`.
template <class Int = int64_t>
void check_like(const Tensor& t, const char* name, c10::ArrayRef<std::type_identity_t<Int>> shape,
                const Tensor& like) {
  TORCH_CHECK(same(sizes_of<Int>(t), shape), name, " must have shape ", shape, ", got ",
              sizes_of<Int>(t));
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the dtype of weight_hh, ",
              dtype_name(like), ", got ", dtype_name(t));
  TORCH_CHECK(t.device() == like.device(), name, " must be on the device of weight_hh, ",
              like.device(), ", got ", t.device());
}

template <class Int>
void check_each(TensorList list, const char* name, c10::ArrayRef<std::type_identity_t<Int>> shape,
                const Tensor& like) {
  for (const Tensor& t : list) check_like<Int>(t, name, shape, like);
}
inline void check_count(TensorList list, const char* name, size_t n,
                        const char* what = " tensors") {
  TORCH_CHECK(list.empty() || list.size() == n, name, " must hold ", n, what, " or none, got ",
              list.size());
}
inline void check_device(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK(t.device() == like.device(), name, " must be on ", like.device(), ", got ",
              t.device());
}

// Sizes of a call of `recurrence`.
template <class Int>
struct Sizes {
  using Shape = c10::SmallVector<Int, 5>;

  Int T, B, I, H, N;
  int64_t D;
  bool features, packed;
  CellTraits cell;

  // The shape of rows with `parts` times H numbers for each direction.
  Shape rows_shape(int64_t parts) const {
    return packed ? Shape{N, D * parts * H} : Shape{T, B, D * parts * H};
  }
  Shape output_shape() const { return rows_shape(1); }
  Shape saved_shape() const { return rows_shape(cell.saved); }
  // The shape of the states before the first step, or after the last: h of each direction, then c.
  Shape states_shape() const { return {Int(cell.states * D), B, H}; }
  Int gate_rows() const { return cell.gates * H; }  // rows of weights and biases
  // The results of the forward pass, each by make(its shape).
  template <class Make>
  RecurrenceOp::Results results(bool save, const Make& make) const {
    Tensor output = make(output_shape()), h_n = make(states_shape());
    std::vector<Tensor> saved;
    if (save && cell.saved > 0) saved.push_back(make(saved_shape()));
    return {std::move(output), std::move(h_n), std::move(saved)};
  }
};

inline void check_biases(const RecurrenceArguments& a) {
  const size_t n = a.weight_hh.size();
  TORCH_CHECK(a.bias_ih.size() == a.bias_hh.size() && (a.bias_ih.empty() || a.bias_ih.size() == n),
              "bias_ih and bias_hh must both hold ", n, " tensors or none, got ", a.bias_ih.size(),
              " and ", a.bias_hh.size());
}

// Checks the rows of a call: those of the index, if there is one, else of the input.
// batch_of(name of the rows) returns how many sequences begin a packed batch.
template <class Int, class BatchOf>
void check_rows(const RecurrenceArguments& a, Sizes<Int>& s, const BatchOf& batch_of) {
  const bool table = given(a.index);
  const Tensor& rows = table ? *a.index : a.input;
  const char* const name = table ? "index" : "input";
  const int64_t dims = table ? 0 : 1;
  s.packed = given(a.batch_sizes);
  if (s.packed) {
    const Tensor& sizes = *a.batch_sizes;
    TORCH_CHECK(!given(a.lengths), "lengths and batch_sizes must not both be given");
    TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
                "batch_sizes must be a 1-D int64 tensor on the CPU, got ", dtype_name(sizes),
                " of shape ", sizes.sym_sizes(), " on ", sizes.device());
    TORCH_CHECK(rows.dim() == 1 + dims, name, " of a packed sequence must have ", 1 + dims,
                " dimensions, got ", rows.dim());
    s.T = sizes_of<Int>(sizes)[0];
    s.N = sizes_of<Int>(rows)[0];
    s.B = batch_of(name);
  } else {
    TORCH_CHECK(rows.dim() == 2 + dims, name, " must have ", 2 + dims, " dimensions, got ",
                rows.dim());
    s.T = sizes_of<Int>(rows)[0];
    s.B = sizes_of<Int>(rows)[1];
    s.N = s.T * s.B;
  }
  if (!table) return;
  TORCH_CHECK(a.input.dim() == 2, "the table must have 2 dimensions, got ", a.input.dim());
  TORCH_CHECK(a.index->scalar_type() == at::kLong || a.index->scalar_type() == at::kInt,
              "index must be int32 or int64, got ", dtype_name(*a.index));
  check_device(*a.index, "index", a.weight_hh[0]);
}

template <class Int>
void check_resets(const RecurrenceArguments& a, const Sizes<Int>& s) {
  if (given(a.reset)) {
    const Tensor& reset = *a.reset;
    TORCH_CHECK_VALUE(!s.packed, "reset must not be given with a packed input");
    TORCH_CHECK_TYPE(reset.scalar_type() == at::kBool, "reset must be a bool tensor, got ",
                     dtype_name(reset));
    TORCH_CHECK_VALUE(same(sizes_of<Int>(reset), c10::ArrayRef<Int>({s.T, s.B})),
                      "reset must have shape [", s.T, ", ", s.B, "], got ", reset.sym_sizes());
    check_device(reset, "reset", a.weight_hh[0]);
  }
  if (given(a.reset_state)) {
    TORCH_CHECK_VALUE(given(a.reset), "reset_state needs a reset");
    check_like<Int>(*a.reset_state, "reset_state", s.states_shape(), a.weight_hh[0]);
  }
}

template <class Int>
void check_lengths(const RecurrenceArguments& a, const Sizes<Int>& s) {
  if (!given(a.lengths)) return;
  const Tensor& lengths = *a.lengths;
  TORCH_CHECK_TYPE(lengths.scalar_type() == at::kLong, "lengths must be an int64 tensor, got ",
                   dtype_name(lengths));
  TORCH_CHECK_VALUE(same(sizes_of<Int>(lengths), c10::ArrayRef<Int>(s.B)),
                    "lengths must have shape [", s.B, "], got ", lengths.sym_sizes());
  check_device(lengths, "lengths", a.weight_hh[0]);
}

template <class Int>
void check_noise(const RecurrenceArguments& a, const Sizes<Int>& s) {
  check_count(a.noise, "noise", s.D);
  check_each<Int>(a.noise, "noise", {s.H}, a.weight_hh[0]);
  TORCH_CHECK(a.noise.empty() != given(a.noise_key),
              "noise and noise_key must both be given, or neither");
  if (!given(a.noise_key)) return;
  const Tensor& key = *a.noise_key;
  TORCH_CHECK(key.dim() == 0 && key.scalar_type() == at::kLong && key.is_cpu(),
              "noise_key must be an int64 tensor of shape [] on the CPU, got ", dtype_name(key),
              " of shape ", key.sym_sizes(), " on ", key.device());
}

inline void check_matrix(const Tensor& weight_hh, Cell cell) {
  const int gates = traits_of(cell).gates;
  TORCH_CHECK(weight_hh.dim() == 2, "weight_hh must have shape [",
              gates == 1 ? "" : c10::str(gates, " * "), "H, H], got ", weight_hh.sym_sizes());
}

// Checks which arguments go with a cell, and its nonlinearity.
template <class Arguments>
void check_cell(const Arguments& a, Cell cell) {
  const auto nonlinearity = parse_nonlinearity(a.nonlinearity);
  TORCH_CHECK_VALUE(a.alpha.empty() != is_leaky(cell), "alpha must ", is_leaky(cell) ? "" : "not ",
                    "be given with cell='", a.cell, "'");
  if (!is_gated(cell)) return;
  TORCH_CHECK_VALUE(nonlinearity == Nonlinearity::tanh, "nonlinearity must be 'tanh' with cell='",
                    a.cell, "', got '", a.nonlinearity, "'");
  TORCH_CHECK_VALUE(a.noise.empty(), "noise must not be given with cell='", a.cell, "'");
}

template <class Int, class BatchOf>
void check_recurrence(const RecurrenceArguments& a, Sizes<Int>& s, const BatchOf& batch_of) {
  s.D = static_cast<int64_t>(a.weight_hh.size());
  TORCH_CHECK(s.D == 1 || s.D == 2, "weight_hh must hold 1 or 2 tensors, one a direction, got ",
              s.D);
  TORCH_CHECK(a.reverse.size() == a.weight_hh.size(), "reverse must hold one bool a direction, ",
              s.D, ", got ", a.reverse.size());
  const Tensor& like = a.weight_hh[0];
  const Cell cell = parse_cell(a.cell);
  s.cell = traits_of(cell);
  check_matrix(like, cell);
  s.H = sizes_of<Int>(like)[1];
  s.features = !a.weight_ih.empty();
  check_count(a.weight_ih, "weight_ih", s.D);
  TORCH_CHECK(!(s.features && given(a.index)), "index needs a table: weight_ih must be empty");
  check_biases(a);
  check_rows(a, s, batch_of);

  const Int width = sizes_of<Int>(a.input).back();
  s.I = s.features ? width : Int(0);
  if (s.features && a.weight_ih[0].dim() == 2) {
    const Int features = sizes_of<Int>(a.weight_ih[0])[1];
    TORCH_CHECK(same(width, features), "input must have ", features,
                " features, as many as weight_ih, got ", width);
  }
  if (!s.features)
    TORCH_CHECK(same(width, s.D * s.gate_rows()), "the last dimension of input must be ",
                s.D * s.gate_rows(), ", got ", width);
  check_like<Int>(a.input, "input", sizes_of<Int>(a.input), like);
  check_each<Int>(a.weight_hh, "weight_hh", {s.gate_rows(), s.H}, like);
  check_each<Int>(a.weight_ih, "weight_ih", {s.gate_rows(), s.I}, like);
  check_each<Int>(a.bias_ih, "bias_ih", {s.gate_rows()}, like);
  check_each<Int>(a.bias_hh, "bias_hh", {s.gate_rows()}, like);
  if (given(a.hx)) check_like<Int>(*a.hx, "hx", s.states_shape(), like);
  check_lengths(a, s);
  check_resets(a, s);
  check_count(a.alpha, "alpha", s.D);
  check_each<Int>(a.alpha, "alpha", {s.H}, like);
  check_cell(a, cell);
  check_noise(a, s);
  parse_dtype(like, "weight_hh");
}

template <class Int>
void check_backward_inputs(const BackwardInputs& r, const RecurrenceArguments& a,
                           const Sizes<Int>& s, const Wanted& wanted) {
  const Tensor& like = a.weight_hh[0];
  const auto shape = s.output_shape();
  check_like<Int>(r.output, "output", shape, like);
  if (given(r.grad_output)) check_like<Int>(*r.grad_output, "grad_output", shape, like);
  if (given(r.grad_h_n)) check_like<Int>(*r.grad_h_n, "grad_h_n", s.states_shape(), like);
  TORCH_CHECK(r.saved.size() <= 1, "saved must hold a tensor or none, got ", r.saved.size());
  check_each<Int>(r.saved, "saved", s.saved_shape(), like);
  TORCH_CHECK(!reads_saved(parse_cell(a.cell), wanted.alpha) || !r.saved.empty(),
              "saved must be what the forward pass saved, got none");
}

// Checks a call of the backward op that torch's operations compute, without a kernel's own checks.
inline void check_backward(const BackwardInputs& r, const RecurrenceArguments& a,
                           const Wanted& wanted) {
  Sizes<c10::SymInt> s;
  check_recurrence(a, s, [&](const char*) -> c10::SymInt {
    return s.T > 0 ? a.batch_sizes->select(0, 0).item<int64_t>() : 0;
  });
  check_backward_inputs(r, a, s, wanted);
}

// For ensembles: how many members there are, and the check that a tensor has as many.
template <class Int>
Int check_members(const RecurrenceArguments& a) {
  const TensorList weights = a.weight_hh;
  TORCH_CHECK(!weights.empty() && weights[0].dim() == 3 && sizes_of<Int>(weights[0])[0] > 0,
              "weight_hh of an ensemble must hold tensors of 3 dimensions, the first M > 0, got ",
              weights.empty() ? std::string("none") : c10::str("shape ", weights[0].sym_sizes()));
  return sizes_of<Int>(weights[0])[0];
}
template <class Int>
void check_member(const Tensor& t, const Int& M) {
  TORCH_CHECK(t.dim() > 0 && same(sizes_of<Int>(t)[0], M), "each tensor of an ensemble must be of ",
              M, " members, as weight_hh is, got shape ", t.sym_sizes());
}

// For a stack: checks the layers above the first, which is checked as a call of its own.
template <class Int>
void check_stack(const RecurrenceArguments& a, bool save) {
  TORCH_CHECK(!save, "recurrence_stack saves nothing: it has no gradient");
  TORCH_CHECK(a.noise.empty(), "recurrence_stack adds no noise: call recurrence for each layer");
  const size_t L = a.weight_hh.size();
  TORCH_CHECK(L > 0, "weight_hh must hold a tensor for each layer, got none");
  TORCH_CHECK(a.weight_ih.size() == L, "weight_ih must hold ", L, " tensors, one a layer, got ",
              a.weight_ih.size());
  check_biases(a);
  check_count(a.alpha, "alpha", L, " tensors, one a layer,");
  const Tensor& like = a.weight_hh[0];
  const Cell cell = parse_cell(a.cell);
  check_matrix(like, cell);
  const Int H = sizes_of<Int>(like)[1], rows = traits_of(cell).gates * H;
  const auto above = [](TensorList list) { return list.empty() ? list : list.slice(1); };
  check_each<Int>(above(a.weight_hh), "weight_hh", {rows, H}, like);
  check_each<Int>(above(a.weight_ih), "weight_ih", {rows, H}, like);
  check_each<Int>(above(a.bias_ih), "bias_ih", {rows}, like);
  check_each<Int>(above(a.bias_hh), "bias_hh", {rows}, like);
  check_each<Int>(above(a.alpha), "alpha", {H}, like);
}

inline void check_embedding(const Tensor& weight, const Tensor& indices) {
  TORCH_CHECK(weight.dim() == 2, "'weight' must be 2-D");
  check_device(indices, "indices", weight);
  check_index_dtype(indices);
}
inline void check_embedding_gradient(const Tensor& grad, const Tensor& indices) {
  parse_dtype(grad, "grad");
  check_device(indices, "indices", grad);
  check_index_dtype(indices);
  const c10::SymIntArrayRef rows = indices.sym_sizes();
  TORCH_CHECK(grad.dim() == indices.dim() + 1 && same(grad.sym_sizes().slice(0, rows.size()), rows),
              "grad must have the shape of indices and one more dimension, got ", grad.sym_sizes(),
              " with indices of shape ", rows);
}

}  // namespace rnnext
