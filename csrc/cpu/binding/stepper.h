// A stack of layers that runs one step at a time: it packs the weights once, and keeps the state.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu/binding/recurrence.h"

namespace rnnext {

class Stepper {
 public:
  // One layer's weight_ih [G*H,I], weight_hh, bias_ih, bias_hh, alpha, noise and noise_key, as the
  // op takes them. They are copied. A first layer whose table has pre-activations has no weight_ih.
  using Weights = std::array<OptionalTensor, 7>;
  using NamedTensor = std::pair<std::string, Tensor>;

  // table: rows of the first layer's input, [V,I] features or [V,G*H] pre-activations; steps then
  // take row numbers. (A gated cell's pre-activations are those from the input alone.) The table is
  // not copied. watched: what weights were made from; once one of these changes, steps are refused.
  Stepper(const std::vector<Weights>& layers, const OptionalTensor& table,
          const std::vector<NamedTensor>& watched, std::string_view nonlinearity,
          std::string_view cell, int64_t batch_size);

  const char* input_name() const { return table_.defined() ? "tokens" : "input"; }
  // The last layer's output, [B,H] or [H], for input [B,I] or [I], with a table tokens [B] or [].
  Tensor step(const Tensor& input);
  // The same from the caller's S states [L,B,H]; also returns the next ones. B may be less here.
  std::pair<Tensor, std::vector<Tensor>> step_from(const Tensor& input, TensorList states);

  int64_t state_count() const { return states_.size(1); }  // S
  std::vector<Tensor> get_states() const;                  // copies
  void set_states(TensorList states);
  void reset();                    // to zeros
  void reset(const Tensor& mask);  // of the sequences that a bool [B] marks

 private:
  struct Layer {
    KeptArguments arguments;  // which the call refers to
    CpuCall call;
    Teams<ForwardPlan> teams;  // of the whole batch
  };
  // A tensor as it was when the weights were read. torch counts writes to it in place. Writes that
  // it does not count (by a fused optimizer, through .data, by another process) mostly change all
  // values, so one value is compared. (The storage is kept, so that nothing else gets its address.)
  struct Seen {
    std::string name;
    Tensor tensor;
    c10::Storage storage;
    uint32_t version;
    uint64_t sample;

    // Whether it has been written, or given other memory.
    bool changed() const {
      const c10::Storage& now = tensor.unsafeGetTensorImpl()->unsafe_storage();
      return version_of(tensor) != version || sample_of(tensor) != sample ||
             now.unsafeGetStorageImpl() != storage.unsafeGetStorageImpl();
    }
    static uint32_t version_of(const Tensor& tensor) {  // 0: inference mode's have none
      const auto& counter = tensor.unsafeGetTensorImpl()->version_counter();
      return counter.enabled() ? counter.current_version() : 0;
    }
    // The bits of the value in its middle, and ones above; ones where it cannot be read.
    static uint64_t sample_of(const Tensor& tensor);
  };

  void add_layer(const Weights& weights, std::string_view nonlinearity, std::string_view cell);
  void reserve(size_t bytes);
  std::vector<Tensor> for_caller(const char* from, int64_t B) const;
  Tensor check_states(TensorList states, int64_t B) const;  // in the order of states_
  Tensor check_features(const Tensor& input, int64_t B) const;
  void read_tokens(const Tensor& input, int64_t B);
  Tensor advance(const Tensor& input, int64_t B, const char* from, char* to);
  int64_t batch() const { return layers_.front().call.p.B; }
  int64_t state_bytes() const { return inner_.nbytes() / 2; }  // of one state of a layer
  char* state_of(int which) const {
    return static_cast<char*>(states_.data_ptr()) + which * (states_.nbytes() / 2);
  }

  std::vector<Layer> layers_;
  std::vector<Seen> seen_;  // what is watched
  const RnnKernels* kernels_;
  Tensor table_;                 // undefined: the input is features
  std::vector<int64_t> tokens_;  // [B] of the step at hand
  Tensor states_;                // [2][S,L,B,H]: the last step's and the one before
  int last_ = 0;
  int64_t steps_ = 0;  // taken so far
  Tensor inner_;       // [2][B,H]: outputs of all layers but the last, in turns
  Tensor workspace_;
  int threads_ = 1;  // that the workspace is for
};

}  // namespace rnnext
