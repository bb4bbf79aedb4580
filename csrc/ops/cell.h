// One step of the recurrence as nn.RNNCell, nn.GRUCell or nn.LSTMCell.
#pragma once

#include "ops/layers.h"

namespace rnnext {

// [B,n] or [n] as the one step of [1,B,n], and back to the shape of `like`.
inline Tensor as_step(const Tensor& t) {
  if (t.dim() == 1) return t.view_symint({1, 1, t.sym_size(0)});
  if (!is_plain(t)) return t.unsqueeze(0);
  return plain_view(t, {1, t.size(0), t.size(1)}, {0, t.stride(0), t.stride(1)});
}
inline Tensor from_step(const Tensor& step, const Tensor& like) {
  if (like.dim() == 1) return step.view_symint({step.sym_size(2)});
  if (!is_plain(step)) return step.squeeze(0);
  return plain_view(step, {step.size(1), step.size(2)}, {step.stride(1), step.stride(2)});
}

// A step of one of torch's cells as a call of the recurrence. Its arguments must outlive it.
class CellStep {
 public:
  explicit CellStep(const CellArguments& a);

  RecurrenceArguments arguments() const {
    const size_t n = biases_[0].defined();
    return {.input = input_,
            .hx = hx_,
            .weight_ih = a_.weight_ih,
            .weight_hh = a_.weight_hh,
            .bias_ih = {&biases_[0], n},
            .bias_hh = {&biases_[1], n},
            .cell = a_.cell,
            .nonlinearity = a_.nonlinearity,
            .reverse = directions(1)};
  }

  // States as the recurrence takes them, none if none is defined; and back, as separate tensors.
  OptionalTensor stacked(TensorList states) const;
  std::vector<Tensor> states_of(const Tensor& h_n) const;

 private:
  const CellArguments& a_;
  Tensor input_;
  OptionalTensor hx_;
  Tensor biases_[2];  // both or none
};

// The op rnn_cell as such a call; autograd records each of its operations.
std::vector<Tensor> rnn_cell(const CellArguments& a);

}  // namespace rnnext
