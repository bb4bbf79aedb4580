// The backward pass of the recurrence in ATen operations, differentiable to any order.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// Whether the gradients of a call are differentiated as those of a loop that runs forward again: of
// a leak, or of resets.
template <class Arguments>
bool loops(const Arguments& a) {
  return !a.alpha.empty() || given(a.reset);
}

// recurrence_backward by formulas, from the output. Neither a leak nor resets.
RecurrenceGradients differentiable_backward(KeptArguments s, Tensor output, Tensor grad_output,
                                            const Tensor& grad_h_n);
// recurrence_backward by autograd through the loop. Those wanted are those that require a gradient.
RecurrenceGradients gradients_of_loop(KeptArguments s, const Tensor& grad_output,
                                      const Tensor& grad_h_n);

}  // namespace rnnext
