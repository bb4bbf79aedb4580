// The first part of every device's binding: checks the arguments of a call, and fills its struct.
#pragma once

#include "ops/check.h"

namespace rnnext {

// The sizes of a call with data.
struct RecurrenceSizes : Sizes<int64_t> {
  std::vector<int64_t> step_row;          // [T+1], packed input only
  std::vector<int64_t> sequence_lengths;  // [B], packed input only

  // Whether there is nothing to compute. (H may be 0, as in torch.nn.RNNCell.)
  bool empty() const { return N == 0 || H == 0; }

  // Fills both from batch_sizes, T numbers, for N rows. Returns B.
  int64_t unpack(const Tensor& batch_sizes, const char* rows) {
    const Tensor sizes = batch_sizes.contiguous();
    const int64_t* n = sizes.const_data_ptr<int64_t>();
    const int64_t batch = T > 0 ? n[0] : 0;
    TORCH_CHECK(batch <= N, "batch_sizes[0] = ", batch, " is more than ", rows, " has rows, ", N);
    step_row.assign(1, 0);
    sequence_lengths.assign(batch > 0 ? batch : 0, 0);
    for (int64_t t = 0; t < T; ++t) {
      TORCH_CHECK(n[t] > 0 && (t == 0 || n[t] <= n[t - 1]),
                  "batch_sizes must be positive and must not increase, got ", n[t], " at step ", t);
      step_row.push_back(step_row.back() + n[t]);
      for (int64_t b = t + 1 < T ? std::max<int64_t>(0, n[t + 1]) : 0; b < n[t]; ++b)
        sequence_lengths[b] = t + 1;
    }
    TORCH_CHECK(N == step_row.back(), rows, " must have sum(batch_sizes) = ", step_row.back(),
                " rows, got ", N);
    return batch;
  }
};

// A call of the recurrence after checks, and the tensors that its struct points into.
struct ParsedCall {
  RecurrenceSizes s;
  DType dtype;
  c10::SmallVector<Tensor, 8> alive;
  PhiloxKeys noise_keys;

  const void* keep(const Tensor& t) {
    alive.push_back(t.contiguous());
    return alive.back().const_data_ptr();
  }
  // As keep(), for an argument, which outlives the call.
  const void* read(const Tensor& t) { return t.is_contiguous() ? t.const_data_ptr() : keep(t); }
};

// The last state of a call without steps: hx, or zeros.
inline void copy_hx(const Tensor& h_n, const OptionalTensor& hx) {
  given(hx) ? h_n.copy_(*hx) : h_n.zero_();
}

// Checks the arguments and fills what is the same on every device. Weights, rows, lengths and what
// a packed input implies are left to the device's binding.
inline void parse(const RecurrenceArguments& a, ParsedCall& call, Recurrence& p) {
  static_assert(kArgumentCount == 17);
  RecurrenceSizes& s = call.s;
  check_recurrence(a, static_cast<Sizes<int64_t>&>(s),
                   [&](const char* rows) { return s.unpack(*a.batch_sizes, rows); });
  call.dtype = parse_dtype(a.weight_hh[0], "weight_hh");
  p.T = s.T, p.B = s.B, p.I = s.I, p.H = s.H;
  p.D = static_cast<int>(s.D);
  p.nonlinearity = parse_nonlinearity(a.nonlinearity);
  p.cell = parse_cell(a.cell);
  for (int d = 0; d < p.D; ++d) {
    p.reverse[d] = a.reverse[d];
    if (!a.alpha.empty()) p.alpha[d] = call.read(a.alpha[d]);
    if (!a.noise.empty()) p.noise[d] = call.read(a.noise[d]);
    if (a.bias_ih.empty()) continue;
    p.bias_ih[d] = call.read(a.bias_ih[d]);
    p.bias_hh[d] = call.read(a.bias_hh[d]);
  }
  if (given(a.noise_key)) {
    call.noise_keys = PhiloxKeys(static_cast<uint64_t>(a.noise_key->item<int64_t>()));
    p.noise_keys = &call.noise_keys;
  }
  if (given(a.hx)) p.hx = call.read(*a.hx);
  if (given(a.reset)) p.reset = static_cast<const bool*>(call.read(*a.reset));
  if (given(a.reset_state)) p.reset_state = call.read(*a.reset_state);
}

}  // namespace rnnext
