// One step of the recurrence as nn.RNNCell.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// The value of `reverse` for one direction or two, made once, since a list lives on the heap.
const c10::List<bool>& directions(int64_t D);

// [B,n] or [n] as the one step of [1,B,n], and back to the shape of `like`.
inline Tensor as_step(const Tensor& t) {
  return t.dim() == 1 ? t.view_symint({1, 1, t.sym_size(0)}) : t.unsqueeze(0);
}
inline OptionalTensor as_step(const OptionalTensor& t) {
  return given(t) ? OptionalTensor(as_step(*t)) : std::nullopt;
}
inline Tensor from_step(const Tensor& step, const Tensor& like) {
  return like.dim() == 1 ? step.view_symint({step.sym_size(2)}) : step.squeeze(0);
}

// A step of an nn.RNNCell as a call of the recurrence. Its arguments must outlive it.
class CellStep {
 public:
  CellStep(const Tensor& input, const OptionalTensor& hx, const Tensor& weight_ih,
           const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
           std::string_view nonlinearity);

  RecurrenceArguments arguments() const {
    const size_t n = biases_[0].defined();
    return {.input = input_,
            .hx = hx_,
            .weight_ih = weight_ih_,
            .weight_hh = weight_hh_,
            .bias_ih = {&biases_[0], n},
            .bias_hh = {&biases_[1], n},
            .form = "rate",
            .nonlinearity = nonlinearity_,
            .reverse = directions(1)};
  }

 private:
  Tensor input_;
  OptionalTensor hx_;
  const Tensor &weight_ih_, &weight_hh_;
  Tensor biases_[2];  // both or none
  std::string_view nonlinearity_;
};

// The op rnn_cell by such a call, where autograd records each operation by itself.
RnnCellOp::Signature rnn_cell;

}  // namespace rnnext
