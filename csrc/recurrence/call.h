// Plain structs of sizes and pointers: the whole contract between the bindings and the kernels.
#pragma once

#include "recurrence/cell.h"
#include "recurrence/nonlinearity.h"
#include "recurrence/timeline.h"

namespace rnnext {

enum class DType { f32, f64, bf16, f16 };

// The keys of Philox's rounds: the first, two words of 32 bits, to which each round adds constants.
struct PhiloxKeys {
  uint64_t of_round[7][2];

  PhiloxKeys() = default;
  explicit PhiloxKeys(uint64_t key) {
    auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (auto& keys : of_round) {
      keys[0] = low, keys[1] = high;
      low += 0x9E3779B9, high += 0xBB67AE85;
    }
  }
};

// The sequences of a step whose numbers are drawn: order[i], or first + i if there is no order.
struct SequenceNumbers {
  const int64_t* order;
  int64_t first, size;
};

// One layer, D directions side by side. Weights and biases are contiguous. `gates`, `states` and
// `saved` are the cell's (CellTraits); the states of all directions, and layers, are h, then c.
struct Recurrence : Timeline {
  int64_t I = 0, H = 0;  // I > 0: the input is features, multiplied with weight_ih
  int D = 1, layers = 1;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  Cell cell = Cell::elman;
  RowSource input;  // rows of I features, or of D*gates*H precomputed, to which biases are added

  const void* weight_ih[kDirections] = {nullptr, nullptr};  // [gates*H,I]
  const void* weight_hh[kDirections] = {nullptr, nullptr};  // [gates*H,H]
  // Both weights as RnnKernels::pack leaves them, or null; only a call of one step may have them.
  const void* packed_weights = nullptr;
  const void* bias_ih[kDirections] = {nullptr, nullptr};  // [gates*H] or null, both or none
  const void* bias_hh[kDirections] = {nullptr, nullptr};  // [gates*H]
  const void* alpha[kDirections] = {nullptr, nullptr};    // [H] of the leak, if there is one
  // [H] the scale of the noise that is added to the pre-activations, or null
  const void* noise[kDirections] = {nullptr, nullptr};
  const PhiloxKeys* noise_keys = nullptr;
  int64_t first_step = 0;    // the number of this call's first step: for noise, and odd ones pass
                             // weights from the last to the first
  const void* hx = nullptr;  // [states*D,B,H] or null: zeros
  const void* reset_state = nullptr;  // [states*D,B,H] before a reset's step; null: zeros

  int gates() const { return traits_of(cell).gates; }
  int64_t state_size() const { return layers * D * B * H; }
  // Whether some step multiplies W_hh: one step from zeros does not, even where a weight is NaN.
  RNNEXT_BOTH bool multiplies_state() const {
    return T > 1 || hx || reset_state || cell == Cell::voltage;
  }

  void* output = nullptr;  // [N, D*H]
  void* h_n = nullptr;     // [states*D,B,H]
  void* saved = nullptr;   // [N, D*saved*H] what else the backward pass reads (kCells), or null
};

// The gradients that the backward pass takes, besides the forward's struct.
struct RecurrenceGrad {
  const void* grad_output = nullptr;  // [N, D*H] or null: zeros
  const void* grad_h_n = nullptr;     // [states*D,B,H] or null: zeros
};

// The results of the backward pass; null: not wanted. Contiguous and, except `pre`, as stored.
struct RecurrenceGradOut {
  void* pre = nullptr;    // [N, D*gates*H] of precomputed input, float (double for f64)
  void* input = nullptr;  // [N, I] (features only)
  void* weight_ih[kDirections] = {nullptr, nullptr};  // [gates*H,I]
  void* weight_hh[kDirections] = {nullptr, nullptr};  // [gates*H,H]
  void* bias_ih[kDirections] = {nullptr, nullptr};    // [gates*H]
  void* bias_hh[kDirections] = {nullptr, nullptr};    // [gates*H]
  void* alpha[kDirections] = {nullptr, nullptr};      // [H]
  void* hx = nullptr;                                 // [states*D,B,H]
  void* reset_state = nullptr;                        // [states*D,B,H]
};

}  // namespace rnnext
