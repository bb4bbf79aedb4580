// The recurrence and its backward pass in ATen operations, which can be differentiated to any
// order, in either mode.
#pragma once

#include <vector>

#include "ops/signatures.h"

namespace rnnext {

// Tensors to differentiate by while gradients are enabled, each replaced by a new one that requires
// a gradient.
struct Watched {
  std::vector<Tensor> tensors;
  // Whether one of them required a gradient before, so that results must be recorded.
  bool recorded = false;

  Tensor operator()(const Tensor& t);
};

// torch::autograd::grad by watched tensors, undefined where there is none; results, or their
// cotangents, may be undefined. It is recorded if any of these tensors or of the cotangents was,
// and gradients were enabled before.
std::vector<Tensor> gradients_of(const std::vector<Tensor>& results,
                                 const std::vector<Tensor>& cotangents, const Watched& watched,
                                 bool enabled);

// The recurrence, a step at a time.
RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a);

// recurrence_backward: by formulas from the output or, with a leak, by autograd through the loop.
RecurrenceGradients backward_loop(const RecurrenceResults& r, const RecurrenceArguments& a,
                                  const Wanted& wanted);

}  // namespace rnnext
