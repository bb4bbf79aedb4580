#include "cpu/rnn/padding.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/rnn/tuning.h"
#include "cpu/runtime/memory.h"

namespace rnnext {

std::optional<Packing> Packing::of(const Recurrence& p, const RecurrenceArguments& a,
                                   int products) {
  if (!given(a.lengths) || p.reset) return std::nullopt;
  const int64_t* const lengths = p.lengths;
  const int64_t steps = std::accumulate(lengths, lengths + p.B, int64_t{0});
  const double spared = static_cast<double>(p.T * p.B - steps) * p.D * p.H *
                        static_cast<double>(p.H + p.I) * products;
  if (steps == 0 || steps > kPackedShare * static_cast<double>(p.T * p.B) || spared < kPackedWork)
    return std::nullopt;

  std::vector<int64_t> order(p.B);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t b, int64_t c) { return lengths[b] > lengths[c]; });
  int64_t batch = p.B;
  while (lengths[order[batch - 1]] == 0) --batch;
  order.resize(batch);

  Packing packing;
  packing.T_ = p.T, packing.B_ = p.B;
  packing.order_ = at::tensor(order, at::kLong);
  packing.rows_ = at::empty({steps}, at::kLong);
  int64_t* row = packing.rows_.mutable_data_ptr<int64_t>();
  std::vector<int64_t> sizes;
  for (int64_t t = 0; t < lengths[order[0]]; ++t) {
    while (lengths[order[batch - 1]] <= t) --batch;
    sizes.push_back(batch);
    for (int64_t i = 0; i < batch; ++i) *row++ = t * p.B + order[i];
  }
  packing.batch_sizes_ = at::tensor(sizes, at::kLong);
  return packing;
}

RecurrenceArguments Packing::arguments(const RecurrenceArguments& a) {
  input_ = given(a.index) ? a.input : pack(a.input);
  if (given(a.index)) index_ = pack(*a.index);
  if (given(a.hx)) hx_ = pack_states(*a.hx);
  return {input_,       hx_,   a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh,      index_,   none_,
          batch_sizes_, none_, none_,       a.alpha,     a.form,    a.nonlinearity, a.reverse};
}

// The copies are as large as results, and as short-lived as workspaces: from the pool.
Tensor Packing::pack(const Tensor& rows) const {
  const Tensor by_b = rows.transpose(0, 1);
  const bool batch_first = !rows.is_contiguous() && by_b.is_contiguous();
  const Tensor from = batch_first ? by_b.flatten(0, 1) : rows.flatten(0, 1);
  const Tensor picked =
      batch_first ? rows_.remainder(B_).mul_(T_).add_(rows_.floor_divide(B_)) : rows_;
  std::vector<int64_t> shape = from.sizes().vec();
  shape[0] = rows_.numel();
  Tensor packed = empty_large(shape, from.options());
  return at::index_select_out(packed, from, 0, picked);
}

Tensor Packing::unpack(const Tensor& packed) const {
  const int64_t shape[] = {T_ * B_, packed.size(-1)};
  const Tensor rows = empty_large(shape, packed.options());
  rows.zero_().index_copy_(0, rows_, packed);
  return rows.view({T_, B_, packed.size(-1)});
}

Tensor Packing::pack_states(const Tensor& states) const { return states.index_select(1, order_); }

Tensor Packing::unpack_states(const Tensor& packed, const OptionalTensor& rest) const {
  const int64_t shape[] = {packed.size(0), B_, packed.size(2)};
  Tensor states =
      given(rest) ? rest->clone(at::MemoryFormat::Contiguous) : at::zeros(shape, packed.options());
  return states.index_copy_(1, order_, packed);
}

}  // namespace rnnext
