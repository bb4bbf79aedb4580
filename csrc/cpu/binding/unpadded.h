// A call without its padding, for calls that plan_unpadded() (rnn/plan.h) picks: its sequences as a
// PackedSequence, longest first, so that a step works on those that have it. Rows are copied.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "ops/signatures.h"
#include "recurrence/call.h"

namespace rnnext {

class Unpadded {
 public:
  explicit Unpadded(const Recurrence& p);

  // The same call without padding; and the struct that a plan needs, which refers to this object.
  KeptArguments arguments(const RecurrenceArguments& a) const;
  Recurrence planned(Recurrence p) const;

  // Rows [T,B,..] of the batch without those of padding: [N,..].
  Tensor unpad(const Tensor& padded) const;
  // And back, with zeros where there is no step.
  Tensor pad(const Tensor& rows) const;
  // States [S*D,B,H] of sequences with steps, longest first; and back, `rest` or zeros for others.
  Tensor unpad_states(const Tensor& states) const;
  Tensor pad_states(const Tensor& states, const OptionalTensor& rest) const;

 private:
  int64_t T_, B_;
  std::vector<int64_t> first_;    // [T+1] the first row of each step, and how many there are
  std::vector<int64_t> lengths_;  // of the sequences that have steps, longest first
  Tensor order_, rows_;           // the numbers of these sequences; t * B + b of each row
  Tensor batch_sizes_;
};

}  // namespace rnnext
