// The recurrence and its backward pass in ATen operations, which can be differentiated to any
// order, in either mode.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// Tensors to differentiate by, while gradients are enabled: each as one of its own that requires a
// gradient.
struct Watched {
  std::vector<Tensor> tensors;
  // Whether one of them required a gradient before, so that what comes of them must be recorded.
  bool recorded = false;

  Tensor operator()(const Tensor& t);
};

// The recurrence, a step at a time.
RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a);

// recurrence_backward: by formulas, from the output; of a leak by autograd through the loop.
RecurrenceGradients backward_loop(const RecurrenceResults& r, const RecurrenceArguments& a);

}  // namespace rnnext
