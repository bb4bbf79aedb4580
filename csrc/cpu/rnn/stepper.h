// A stack of layers that is fed one step at a time: its weights are packed once, its state is kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "cpu/runtime/dispatch.h"

namespace rnnext {

class Stepper {
 public:
  // params: for each layer weight_ih [H,I], weight_hh [H,H] and, with bias, bias_ih [H],
  // bias_hh [H]. They are copied.
  Stepper(const std::vector<at::Tensor>& params, bool bias, std::string_view nonlinearity,
          int64_t batch_size);

  // input [B,I], or [I] if B is 1 -> the last layer's new state, [B,H] or [H].
  at::Tensor step(const at::Tensor& input);
  // [L,B,H]
  at::Tensor state() const;
  void set_state(const at::Tensor& state);
  void reset();

 private:
  struct Layer {
    Recurrence call;
    at::Tensor packed, biases;
  };

  char* state_of(int which, int64_t layer) const;

  std::vector<Layer> layers_;
  const RnnKernels* kernels_;
  at::Tensor states_;  // [2][L,B,H]: the last step's and the one before
  int last_ = 0;
  at::Tensor inner_;  // [B,H]: what a layer but the last puts out, beside its state
  at::Tensor workspace_;
  int threads_ = 1;  // that the workspace is for
};

}  // namespace rnnext
