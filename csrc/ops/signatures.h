// Calls of this library's ops through the dispatcher: their signatures, in one place.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

using at::TensorList;

using RecurrenceOp = std::tuple<Tensor, Tensor>(
    const Tensor& input, const OptionalTensor& index, TensorList weight_ih, TensorList weight_hh,
    TensorList bias_ih, TensorList bias_hh, const OptionalTensor& h0, const OptionalTensor& lengths,
    const OptionalTensor& batch_sizes, c10::string_view nonlinearity,
    const c10::List<bool>& reverse);
using RecurrenceStackOp = std::tuple<Tensor, Tensor>(const Tensor& input, TensorList weight_ih,
                                                     TensorList weight_hh, TensorList bias_ih,
                                                     TensorList bias_hh, const OptionalTensor& h0,
                                                     const OptionalTensor& lengths,
                                                     const OptionalTensor& batch_sizes,
                                                     c10::string_view nonlinearity);
using RecurrenceBackwardOp =
    std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor>(
        const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& output,
        const Tensor& input, const OptionalTensor& index, TensorList weight_ih,
        TensorList weight_hh, const OptionalTensor& h0, const OptionalTensor& lengths,
        const OptionalTensor& batch_sizes, c10::string_view nonlinearity,
        const c10::List<bool>& reverse, std::array<bool, 4> output_mask);
using EmbeddingOp = Tensor(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                           bool scale_grad_by_freq, bool sparse);
using EmbeddingBackwardOp = Tensor(const Tensor& grad, const Tensor& indices,
                                   c10::SymInt num_weights, int64_t padding_idx,
                                   bool scale_grad_by_freq);
using EmbeddingSparseBackwardOp = std::tuple<Tensor, Tensor>(const Tensor& grad,
                                                             const Tensor& indices,
                                                             c10::SymInt num_weights,
                                                             int64_t padding_idx,
                                                             bool scale_grad_by_freq);
using RnnOp = std::tuple<Tensor, Tensor>(const Tensor& input, const OptionalTensor& hx,
                                         TensorList params, bool has_biases, int64_t num_layers,
                                         double dropout, bool train, bool bidirectional,
                                         bool batch_first, c10::string_view nonlinearity,
                                         const OptionalTensor& lengths,
                                         const OptionalTensor& batch_sizes);
using RnnCellOp = Tensor(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
                         const Tensor& weight_hh, const OptionalTensor& bias_ih,
                         const OptionalTensor& bias_hh, c10::string_view nonlinearity);

// Slow: keep the handle in a static.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace rnnext
