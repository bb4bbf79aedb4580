// Plain structs of sizes and pointers: the whole contract between the bindings and the kernels.
#pragma once

#include <cstdint>

namespace rnnext {

enum class DType { f32, f64, bf16, f16 };
enum class Nonlinearity { tanh, relu };

// One layer, D directions side by side. Weights and biases are contiguous; strides count elements.
// "Rows" are the N = T*B (or, packed, the sum of the batch sizes) steps of single sequences.
struct Recurrence {
  int64_t T = 0, B = 0, I = 0, H = 0;  // I > 0: features, multiplied with weight_ih
  int D = 1;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  bool reverse[2] = {false, false};
  const int64_t* step_row = nullptr;  // [T+1] packed: the first row of step t; null: t * B
  const int64_t* lengths = nullptr;   // [B] steps of each sequence (packed too); null: all T

  // [T,B,I] features, [T,B,D*H] ready pre-activations, a [V,D*H] table; null: zeros
  const void* input = nullptr;
  int64_t input_stride_t = 0,
          input_stride_b = 0;      // packed: stride_b alone; table: stride_b is a row
  const int64_t* index = nullptr;  // [N] table row of each row, or null

  const void* weight_ih[2] = {nullptr, nullptr};  // [H,I]
  const void* weight_hh[2] = {nullptr, nullptr};  // [H,H]
  // Both as RnnKernels::pack leaves them, or null. One step of one direction only.
  const void* packed = nullptr;
  const void* bias_ih[2] = {nullptr, nullptr};  // [H] or null, both or none
  const void* bias_hh[2] = {nullptr, nullptr};  // [H]
  const void* h0 = nullptr;                     // [D,B,H] or null: zeros

  void* output = nullptr;  // [N, D*H]
  void* h_n = nullptr;     // [D,B,H]

  int64_t first_row(int64_t t) const { return step_row ? step_row[t] : t * B; }
  // Sequences that have a row in memory at step t.
  int64_t batch(int64_t t) const { return step_row ? step_row[t + 1] - step_row[t] : B; }
  int64_t rows() const { return first_row(T); }
  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  // Whether t is the step of sequence b that direction d ends with (starts with).
  bool last_step(int d, int64_t b, int64_t t) const {
    return t == (reverse[d] ? 0 : length(b) - 1);
  }
  bool first_step(int d, int64_t b, int64_t t) const {
    return t == (reverse[d] ? length(b) - 1 : 0);
  }
};

// What the backward pass adds to the forward's struct.
struct RecurrenceGrad {
  const void* grad_output = nullptr;  // [N, D*H] or null: zeros
  const void* grad_h_n = nullptr;     // [D,B,H] or null: zeros
};

// What the backward kernel writes; null: not wanted. All contiguous, in the storage type, but
// `pre`.
struct RecurrenceGradOut {
  void* pre = nullptr;    // [N, D*H] of the pre-activations, float (double for f64)
  void* input = nullptr;  // [N, I] (features only)
  void* weight_ih[2] = {nullptr, nullptr};  // [H,I]
  void* weight_hh[2] = {nullptr, nullptr};  // [H,H]
  void* bias[2] = {nullptr, nullptr};       // [H]
  void* h0 = nullptr;                       // [D,B,H]
};

}  // namespace rnnext
