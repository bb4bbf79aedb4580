// A backward pass whose padding is worth leaving out, and whose kernel does not by itself (`sorts`
// in rnn/plan.h): its sequences as a packed batch, longest first, so that a step works on those
// that have it and no others. What it costs are copies of the rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "cpu/rnn/plan.h"
#include "ops/signatures.h"

namespace rnnext {

class Packing {
 public:
  // For a backward pass of so many threads; none where it does not pay.
  static std::optional<Packing> of(const Recurrence& p, const RecurrenceGradOut& out,
                                   const KernelShape& shape, const Machine& machine, int threads);

  // The same call of the packed batch, and what a plan asks of it, which refers to this object.
  KeptArguments arguments(const RecurrenceArguments& a) const;
  Recurrence planned(Recurrence p) const;

  // Rows [T,B,..] of the batch, packed: [N,..].
  Tensor pack(const Tensor& rows) const;
  // And back, with zeros where there is no step.
  Tensor unpack(const Tensor& packed) const;
  // States [D,B,H] of the sequences that have steps, longest first, and back: those of the others
  // are `rest`, or zeros.
  Tensor pack_states(const Tensor& states) const;
  Tensor unpack_states(const Tensor& packed, const OptionalTensor& rest) const;

 private:
  int64_t T_ = 0, B_ = 0;
  std::vector<int64_t> first_;    // [T+1] the first packed row of each step, and their number
  std::vector<int64_t> lengths_;  // of the sequences that have steps, longest first
  Tensor order_, rows_;           // which these are; t * B + b of each packed row
  Tensor batch_sizes_;
};

}  // namespace rnnext
