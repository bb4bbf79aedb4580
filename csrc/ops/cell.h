// Plain calls of the recurrence, and one step of it as nn.RNNCell.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// What `reverse` is for one direction or two. (Made once: a list lives on the heap.)
const c10::List<bool>& directions(int64_t D);

// Every sequence through every step: no lengths, resets or leak.
inline RecurrenceArguments plain_arguments(const Tensor& input, const OptionalTensor& hx,
                                           TensorList weight_ih, TensorList weight_hh,
                                           TensorList bias_ih, TensorList bias_hh,
                                           std::string_view nonlinearity, int64_t D = 1) {
  static const OptionalTensor none;
  return {input, hx,   weight_ih, weight_hh, bias_ih, bias_hh,      none,         none,
          none,  none, none,      {},        "rate",  nonlinearity, directions(D)};
}

// [B,n] or [n] as the one step of [1,B,n], and back, as `like` is.
inline Tensor as_step(const Tensor& t) {
  return t.dim() == 1 ? t.view_symint({1, 1, t.sym_size(0)}) : t.unsqueeze(0);
}
inline Tensor from_step(const Tensor& step, const Tensor& like) {
  return like.dim() == 1 ? step.view_symint({step.sym_size(2)}) : step.squeeze(0);
}

// The step of an nn.RNNCell: output and h_n, [1,B,H].
RecurrenceOp::Results cell_step(const Tensor& input, const OptionalTensor& hx,
                                const Tensor& weight_ih, const Tensor& weight_hh,
                                const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                std::string_view nonlinearity);
// The op rnn_cell made of it, where autograd records each operation by itself.
RnnCellOp::Signature rnn_cell;

}  // namespace rnnext
