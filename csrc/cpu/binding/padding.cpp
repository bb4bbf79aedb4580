#include "cpu/binding/padding.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/binding/memory.h"
#include "cpu/runtime/team.h"

namespace rnnext {

// Copies that are worth a second thread. (Less, and the team costs more than it saves.)
constexpr int64_t kCopiedPerThread = 128 << 10;

std::optional<Packing> Packing::of(const Recurrence& p, const RecurrenceGradOut& out,
                                   const KernelShape& shape, const Machine& machine, int threads) {
  if (!p.ragged() || p.step_row || p.reset ||
      plan_backward(p, out, shape, machine, threads, threads).sorts)
    return std::nullopt;
  const int64_t* const lengths = p.lengths;
  const int64_t steps = std::accumulate(lengths, lengths + p.B, int64_t{0});
  const double spared =
      static_cast<double>(p.T * p.B - steps) * p.D * p.H * static_cast<double>(p.H + p.I) * 3;
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
  for (const int64_t b : order) packing.lengths_.push_back(lengths[b]);
  packing.T_ = p.T, packing.B_ = p.B;
  packing.order_ = at::tensor(order, at::kLong);
  packing.first_ = {0};
  std::vector<int64_t> sizes;
  for (int64_t t = 0; t < lengths[order[0]]; ++t) {
    while (lengths[order[batch - 1]] <= t) --batch;
    sizes.push_back(batch);
    packing.first_.push_back(packing.first_.back() + batch);
  }
  packing.first_.resize(p.T + 1, steps);
  packing.batch_sizes_ = at::tensor(sizes, at::kLong);
  return packing;
}

RecurrenceArguments Packing::arguments(const RecurrenceArguments& a) {
  input_ = given(a.index) ? a.input : pack(a.input);
  if (given(a.index)) index_ = pack(*a.index);
  if (given(a.hx)) hx_ = pack_states(*a.hx);
  return {.input = input_,
          .hx = hx_,
          .weight_ih = a.weight_ih,
          .weight_hh = a.weight_hh,
          .index = index_,
          .batch_sizes = batch_sizes_,
          .alpha = a.alpha,
          .form = a.form,
          .nonlinearity = a.nonlinearity,
          .reverse = a.reverse};
}

Recurrence Packing::planned(Recurrence p) const {
  p.T = lengths_.front(), p.B = static_cast<int64_t>(lengths_.size());
  p.step_row = first_.data();
  p.lengths = lengths_.data();
  return p;
}

// f(part) for each part of n copies of so many bytes, shared out.
template <class F>
static void share_out(int64_t n, size_t bytes, const F& f) {
  const int64_t threads = n * static_cast<int64_t>(bytes) / kCopiedPerThread;
  run_team(static_cast<int>(std::clamp<int64_t>(threads, 1, max_threads())),
           [&](Worker& worker) { f(part(n, worker.rank, worker.size)); });
}

// The copies are as large as results, and as short-lived as workspaces: from the pool.
Tensor Packing::pack(const Tensor& padded) const {
  const bool direct = padded.dim() < 3 || padded.size(2) == 1 || padded.stride(2) == 1;
  const Tensor rows = direct ? padded : padded.contiguous();
  std::vector<int64_t> shape = rows.sizes().slice(1).vec();
  shape[0] = first_.back();
  Tensor packed = empty_large(shape, rows.options());
  if (packed.numel() == 0) return packed;
  const size_t bytes = packed.nbytes() / shape[0];
  const auto item = static_cast<int64_t>(rows.element_size());
  const int64_t stride_t = rows.stride(0) * item, stride_b = rows.stride(1) * item;
  const char* const from = static_cast<const char*>(rows.const_data_ptr());
  char* const to = static_cast<char*>(packed.data_ptr());
  const int64_t* const order = order_.const_data_ptr<int64_t>();
  share_out(first_.back(), bytes, [&](const Range& share) {
    auto next = std::upper_bound(first_.begin(), first_.end(), share.begin);
    for (int64_t n = share.begin; n < share.end; ++n) {
      while (n >= *next) ++next;
      const int64_t t = next - first_.begin() - 1, b = order[n - first_[t]];
      std::memcpy(to + n * bytes, from + t * stride_t + b * stride_b, bytes);
    }
  });
  return packed;
}

// Step by step: zeros, and into them, while they are in cache, the rows that there are.
Tensor Packing::unpack(const Tensor& packed) const {
  const Tensor padded = empty_large({T_, B_, packed.size(-1)}, packed.options());
  if (padded.numel() == 0) return padded;
  const size_t bytes = packed.size(-1) * packed.element_size();
  const char* const from = static_cast<const char*>(packed.const_data_ptr());
  char* const to = static_cast<char*>(padded.data_ptr());
  const int64_t* const order = order_.const_data_ptr<int64_t>();
  share_out(T_, B_ * bytes, [&](const Range& share) {
    for (int64_t t = share.begin; t < share.end; ++t) {
      char* const step = to + t * B_ * bytes;
      std::memset(step, 0, B_ * bytes);
      for (int64_t n = first_[t], i = 0; n < first_[t + 1]; ++n, ++i)
        std::memcpy(step + order[i] * bytes, from + n * bytes, bytes);
    }
  });
  return padded;
}

Tensor Packing::pack_states(const Tensor& states) const { return states.index_select(1, order_); }

Tensor Packing::unpack_states(const Tensor& packed, const OptionalTensor& rest) const {
  const int64_t shape[] = {packed.size(0), B_, packed.size(2)};
  Tensor states =
      given(rest) ? rest->clone(at::MemoryFormat::Contiguous) : at::zeros(shape, packed.options());
  return states.index_copy_(1, order_, packed);
}

}  // namespace rnnext
