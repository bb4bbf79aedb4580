#include "cpu/binding/unpadded.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "cpu/rnn/plan.h"
#include "cpu/runtime/memory.h"

namespace rnnext {

Unpadded::Unpadded(const Recurrence& p) : T_(p.T), B_(p.B) {
  std::vector<int64_t> order(p.B), present(p.T), rows, sizes;
  WorkItem all{};
  all.size = p.B;
  sorted(all, p, order.data(), present.data());
  order.resize(present[0]);
  for (int64_t t = 0; t < p.T; ++t) {
    first_.push_back(static_cast<int64_t>(rows.size()));
    if (present[t] > 0) sizes.push_back(present[t]);
    for (int64_t i = 0; i < present[t]; ++i) rows.push_back(t * p.B + order[i]);
  }
  first_.push_back(static_cast<int64_t>(rows.size()));
  for (const int64_t b : order) lengths_.push_back(p.lengths[b]);
  order_ = at::tensor(order, at::kLong);
  rows_ = at::tensor(rows, at::kLong);
  batch_sizes_ = at::tensor(sizes, at::kLong);
}

KeptArguments Unpadded::arguments(const RecurrenceArguments& a) const {
  KeptArguments own = kept(a);
  Tensor& rows = given(a.index) ? *own.index : own.input;
  rows = unpad(rows);
  if (given(a.hx)) own.hx = unpad_states(*a.hx);
  own.lengths.reset();
  own.batch_sizes = batch_sizes_;
  return own;
}

Recurrence Unpadded::planned(Recurrence p) const {
  p.T = lengths_.front(), p.B = static_cast<int64_t>(lengths_.size());
  p.step_row = first_.data();
  p.lengths = lengths_.data();
  return p;
}

// Copies come from the pool, since they are as large as results and as short-lived as workspaces.
Tensor Unpadded::unpad(const Tensor& padded) const {
  const Tensor all = padded.flatten(0, 1);
  std::vector<int64_t> shape = all.sizes().vec();
  shape[0] = first_.back();
  Tensor rows = empty_large(shape, all.options());
  at::index_select_out(rows, all, 0, rows_);
  return rows;
}

Tensor Unpadded::pad(const Tensor& rows) const {
  const Tensor padded = empty_large({T_ * B_, rows.size(-1)}, rows.options());
  return padded.zero_().index_copy_(0, rows_, rows).view({T_, B_, rows.size(-1)});
}

Tensor Unpadded::unpad_states(const Tensor& states) const { return states.index_select(1, order_); }

Tensor Unpadded::pad_states(const Tensor& states, const OptionalTensor& rest) const {
  const int64_t shape[] = {states.size(0), B_, states.size(2)};
  Tensor padded =
      given(rest) ? rest->clone(at::MemoryFormat::Contiguous) : at::zeros(shape, states.options());
  return padded.index_copy_(1, order_, states);
}

}  // namespace rnnext
