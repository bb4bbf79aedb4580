// This library's ops: their C++ signatures in one place, calls of them through the dispatcher, and
// kernels of the recurrence that take their arguments as a struct.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

template <class Result, class... T>
using RecurrenceSignature = Result(Passed<T>...);
#define RNNEXT_TYPE(type, name) , type

struct RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence";
  using Results = std::tuple<Tensor, Tensor>;  // output, h_n
  using Signature = RecurrenceSignature<Results RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_TYPE)>;
};
struct RecurrenceStackOp : RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence_stack";
};
#undef RNNEXT_TYPE

template <class Forward>
struct Backward;
template <class Result, class... P>
struct Backward<Result(P...)> {
  // Of input, hx, weight_ih, weight_hh and bias: both biases have the same gradient.
  using Results =
      std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;
  using Mask = std::array<bool, 4>;  // which of input, hx, weights and bias are wanted
  using Signature = Results(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const Tensor& output, P... forward, Mask output_mask);
};
struct RecurrenceBackwardOp : Backward<RecurrenceOp::Signature> {
  static constexpr const char* name = "rnnext::recurrence_backward";
};

struct EmbeddingOp {
  static constexpr const char* name = "rnnext::embedding";
  using Signature = Tensor(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                           bool scale_grad_by_freq, bool sparse);
};
struct EmbeddingBackwardOp {
  static constexpr const char* name = "rnnext::embedding_backward";
  using Signature = Tensor(const Tensor& grad, const Tensor& indices, c10::SymInt num_weights,
                           int64_t padding_idx, bool scale_grad_by_freq);
};
struct EmbeddingSparseBackwardOp {
  static constexpr const char* name = "rnnext::embedding_sparse_backward";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& grad, const Tensor& indices,
                                               c10::SymInt num_weights, int64_t padding_idx,
                                               bool scale_grad_by_freq);
};
struct RnnOp {
  static constexpr const char* name = "rnnext::rnn";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& input, const OptionalTensor& hx,
                                               TensorList weights, bool has_biases,
                                               int64_t num_layers, bool bidirectional,
                                               bool batch_first, double dropout, bool training,
                                               const OptionalTensor& lengths,
                                               const OptionalTensor& batch_sizes,
                                               std::string_view nonlinearity);
};
struct RnnCellOp {
  static constexpr const char* name = "rnnext::rnn_cell";
  using Signature = Tensor(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                           const Tensor& weight_hh, const OptionalTensor& bias_ih,
                           const OptionalTensor& bias_hh, std::string_view nonlinearity);
};

template <class Op, class... T>
decltype(auto) call_op(const T&... arguments) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(Op::name, "")
                             .template typed<typename Op::Signature>();
  return op.call(arguments...);
}

template <class Op, class Arguments>
typename Op::Results call_forward(const Arguments& a) {
  return spread(a, [](const auto&... each) { return call_op<Op>(each...); });
}

template <class Arguments>
RecurrenceBackwardOp::Results call_backward(const OptionalTensor& grad_output,
                                            const OptionalTensor& grad_h_n, const Tensor& output,
                                            const Arguments& a,
                                            const RecurrenceBackwardOp::Mask& output_mask) {
  return spread(a, [&](const auto&... each) {
    return call_op<RecurrenceBackwardOp>(grad_output, grad_h_n, output, each..., output_mask);
  });
}

// What to register for an op whose kernel takes the arguments as a struct.
template <class Signature>
struct Unpacked;
template <class Results, class... P>
struct Unpacked<Results(P...)> {
  template <auto kernel>
  static Results forward(P... each) {
    return kernel(RecurrenceArguments{each...});
  }
  template <auto kernel>
  static RecurrenceBackwardOp::Results backward(const OptionalTensor& grad_output,
                                                const OptionalTensor& grad_h_n,
                                                const Tensor& output, P... each,
                                                RecurrenceBackwardOp::Mask output_mask) {
    return kernel(grad_output, grad_h_n, output, RecurrenceArguments{each...}, output_mask);
  }
};
template <auto kernel>
constexpr auto forward_op = &Unpacked<RecurrenceOp::Signature>::forward<kernel>;
template <auto kernel>
constexpr auto backward_op = &Unpacked<RecurrenceOp::Signature>::backward<kernel>;

}  // namespace rnnext
