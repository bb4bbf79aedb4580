// This library's ops: their C++ signatures in one place, calls of them through the dispatcher, and
// kernels of the recurrence that take their arguments as a struct.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

// What the backward op gets beside the arguments of the forward op.
struct RecurrenceResults {
  const OptionalTensor &grad_output, &grad_h_n;
  const Tensor& output;
  TensorList saved;
  std::array<bool, 6> output_mask;
};
// Gradients of a call of the recurrence.
struct RecurrenceGradients {
  Tensor input, hx;
  std::vector<Tensor> weight_ih, weight_hh, bias;  // both biases have the same gradient
  Tensor reset_state;
  std::vector<Tensor> alpha;
};
// f(gradient, gradient...), in the order in which the ops return them.
template <class Gradients, class F>
decltype(auto) spread_gradients(Gradients& g, F&& f) {
  return f(g.input, g.hx, g.weight_ih, g.weight_hh, g.bias, g.reset_state, g.alpha);
}

// The ops of the recurrence, what they return, and their signatures, P being the arguments' types.
template <class None, class... T>
struct RecurrenceTypes {
  // output, h_n, and, if `save` and there is a leak, what its backward pass reads besides the
  // output
  using Forward = std::tuple<Tensor, Tensor, std::vector<Tensor>>;
  using ForwardSignature = Forward(Passed<T>..., bool save);
  // As RecurrenceGradients.
  using Backward = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>,
                              std::vector<Tensor>, Tensor, std::vector<Tensor>>;
  // Which of input, hx, weights, bias, reset_state and alpha are wanted.
  using Mask = std::array<bool, 6>;
  using BackwardSignature = Backward(const OptionalTensor& grad_output,
                                     const OptionalTensor& grad_h_n, const Tensor& output,
                                     TensorList saved, Passed<T>..., Mask output_mask);

  // What to register for kernels that take their arguments as structs.
  template <auto kernel>
  static Forward forward(Passed<T>... each, bool save) {
    return kernel(RecurrenceArguments{each...}, save);
  }
  template <auto kernel>
  static Backward backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                           const Tensor& output, TensorList saved, Passed<T>... each,
                           Mask output_mask) {
    RecurrenceGradients g =
        kernel({grad_output, grad_h_n, output, saved, output_mask}, RecurrenceArguments{each...});
    return spread_gradients(g, [](auto&... each) { return Backward{std::move(each)...}; });
  }
};
#define RNNEXT_TYPE(type, name) , type
using Recurrences = RecurrenceTypes<void RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_TYPE)>;
#undef RNNEXT_TYPE

struct RecurrenceBackwardOp {
  static constexpr const char* name = "rnnext::recurrence_backward";
  using Results = Recurrences::Backward;
  using Signature = Recurrences::BackwardSignature;
};
struct RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence";
  using Results = Recurrences::Forward;
  using Signature = Recurrences::ForwardSignature;
  using Backward = RecurrenceBackwardOp;
};
struct RecurrenceStackOp : RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence_stack";
};
// Calls of several members at once: each tensor has a first dimension more, but for batch_sizes.
struct EnsembleBackwardOp : RecurrenceBackwardOp {
  static constexpr const char* name = "rnnext::recurrence_ensemble_backward";
};
struct EnsembleOp : RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence_ensemble";
  using Backward = EnsembleBackwardOp;
};

// The rows of a table that occur among tokens, ascending, and for each token which of these it is.
// If more than `most` occur: no rows, and -1 for each token.
struct OccurringOp {
  static constexpr const char* name = "rnnext::occurring";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& tokens, int64_t num_rows,
                                               int64_t most);
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
  using Signature = std::tuple<Tensor, Tensor>(
      const Tensor& input, const OptionalTensor& hx, TensorList weights, bool has_biases,
      int64_t num_layers, bool bidirectional, bool batch_first, double dropout, bool training,
      const OptionalTensor& index, const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
      const OptionalTensor& reset, const OptionalTensor& reset_state, TensorList alpha,
      std::string_view form, TensorList noise, std::string_view nonlinearity);
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
typename Op::Results call_forward(const Arguments& a, bool save = false) {
  return spread(a, [&](const auto&... each) { return call_op<Op>(each..., save); });
}
template <class Op, class Arguments>
RecurrenceGradients call_backward(const RecurrenceResults& r, const Arguments& a) {
  return std::apply([](auto&&... each) { return RecurrenceGradients{std::move(each)...}; },
                    spread(a, [&](const auto&... each) {
                      return call_op<Op>(r.grad_output, r.grad_h_n, r.output, r.saved, each...,
                                         r.output_mask);
                    }));
}

}  // namespace rnnext
