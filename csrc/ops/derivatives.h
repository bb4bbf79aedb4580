// The recurrence and its backward pass in ATen operations, which can be differentiated to any
// order, in either mode; and its tangents, by the backward op.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "ops/signatures.h"
#include "recurrence/nonlinearity.h"

namespace rnnext {

Tensor activation(Nonlinearity nonlinearity, const Tensor& x);
// The derivative of a nonlinearity as a function of its output h.
Tensor derivative(Nonlinearity nonlinearity, const Tensor& h);

// Where the rows of a packed sequence [N, ...] lie in a rectangle.
struct Padding {
  Tensor position;  // [N]: t * B + b of each row
  int64_t T = 0, B = 0;

  Padding(const Tensor& batch_sizes, at::Device device);
  Tensor add(const Tensor& rows) const;  // zeros where there is no row
  Tensor drop(const Tensor& padded) const;
  Tensor lengths() const;
};

// A call over whole rectangles [T, B, ...]: packed rows are padded, and what each step has before
// it is known.
struct Rectangle {
  KeptArguments a;  // lengths in the place of batch_sizes
  int64_t D;
  c10::SymInt H, T, B;
  Nonlinearity nonlinearity;
  Form form;
  Tensor active;  // [T,B,1] which steps exist; undefined: all

  explicit Rectangle(KeptArguments arguments);
  // Pads the rows of a packed call, and drops the padding again.
  Tensor pad(const Tensor& rows) const { return padding_ ? padding_->add(rows) : rows; }
  Tensor drop(const Tensor& rows) const { return padding_ ? padding_->drop(rows) : rows; }

  // The input's rows, [T,B,I] or [T,B,D*H]; zeros past the end.
  Tensor input() const;
  // [T,B,D*H] the noise that is added to the pre-activations; undefined: none.
  Tensor noise() const;
  // The columns of direction d, in rows [T,B,D*H].
  Tensor of(const Tensor& rows, int64_t d) const { return rows.narrow_symint(-1, H * d, H); }
  // [T,B,1] the steps before which direction d drops the state; undefined: none.
  Tensor restarts(int64_t d) const;
  // [T,B,H] the output that W_hh of direction d multiplies at each step.
  Tensor output_before(const Tensor& output, int64_t d) const;
  // [D,B,H] the rows of the last steps, out of [T,B,D*H]; `start` where there is no step.
  Tensor last(const Tensor& rows, const Tensor& start) const;

 private:
  std::optional<Padding> padding_;

  Tensor step() const;  // [T,1,1] the number of each step
  Tensor ends() const;  // [T,B,1] which of them is a sequence's last
};

// Tensors to differentiate by while gradients are enabled, each replaced by a new one that requires
// a gradient.
struct Watched {
  std::vector<Tensor> tensors;
  // Whether one of them required a gradient before, so that results must be recorded.
  bool recorded = false;

  Tensor operator()(const Tensor& t);
};

// torch::autograd::grad by watched tensors, undefined where there is none. It is recorded if any of
// them or of the cotangents was, and gradients were enabled before.
std::vector<Tensor> gradients_of(const std::vector<Tensor>& results,
                                 const std::vector<Tensor>& cotangents, const Watched& watched,
                                 bool enabled);

// The recurrence, a step at a time.
RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a);

// recurrence_backward: by formulas from the output or, with a leak, by autograd through the loop.
RecurrenceGradients backward_loop(const RecurrenceResults& r, const RecurrenceArguments& a,
                                  const Wanted& wanted);

// Sets the tangents of the results of a call without a leak, from those of its arguments.
void set_tangents(const RecurrenceArguments& a, const Tensor& output, const Tensor& h_n);

}  // namespace rnnext
