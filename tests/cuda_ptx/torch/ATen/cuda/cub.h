// Twin of torch's header, whose functions the host can do.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

namespace at::cuda::cub {

inline int get_num_bits(uint64_t max_key) { return std::bit_width(max_key | 1); }

// Stable, by the lowest `end_bit` bits.
template <typename Key, typename Value>
void radix_sort_pairs(const Key* keys_in, Key* keys_out, const Value* values_in, Value* values_out,
                      int64_t n, bool, int64_t, int64_t end_bit) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t i) { return uint64_t(keys_in[i]) & ((uint64_t{1} << end_bit) - 1); };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return key(a) < key(b); });
  for (int64_t i = 0; i < n; ++i) {
    keys_out[i] = keys_in[order[i]], values_out[i] = values_in[order[i]];
  }
}

}  // namespace at::cuda::cub
