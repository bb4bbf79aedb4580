// The op schemas: what each argument means is documented in rnnext/ops.py.
#include <torch/library.h>

#include "ops/arguments.h"

namespace rnnext {
namespace {

std::string recurrence_arguments() {
  std::string text;
#define RNNEXT_SCHEMA(type, name)   \
  text += text.empty() ? "" : ", "; \
  text += std::string(ArgumentType<type>::schema) + " " #name;
  RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_SCHEMA)
#undef RNNEXT_SCHEMA
  return text;
}

}  // namespace

TORCH_LIBRARY(rnnext, m) {
  const auto define = [&](const std::string& schema) { m.def(schema.c_str()); };
  const std::string call = recurrence_arguments();
  const std::string forward =
      "(" + call + ", bool save) -> (Tensor output, Tensor h_n, Tensor[] saved)";
  define("recurrence" + forward);
  define("recurrence_stack" + forward);
  define("recurrence_ensemble" + forward);
  const std::string backward =
      "(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor[] saved, " + call +
      ", bool[6] output_mask) -> (Tensor grad_input, Tensor grad_hx, Tensor[] grad_weight_ih, "
      "Tensor[] grad_weight_hh, Tensor[] grad_bias, Tensor grad_reset_state, "
      "Tensor[] grad_alpha)";
  define("recurrence_backward" + backward);
  define("recurrence_ensemble_backward" + backward);
  m.def("occurring(Tensor tokens, int num_rows, int most) -> (Tensor rows, Tensor index)");
  m.def(
      "embedding(Tensor weight, Tensor indices, int padding_idx=-1, "
      "bool scale_grad_by_freq=False, bool sparse=False) -> Tensor");
  m.def(
      "embedding_backward(Tensor grad, Tensor indices, SymInt num_weights, int padding_idx, "
      "bool scale_grad_by_freq) -> Tensor");
  m.def(
      "embedding_sparse_backward(Tensor grad, Tensor indices, SymInt num_weights, "
      "int padding_idx, bool scale_grad_by_freq) -> (Tensor rows, Tensor values)");
  m.def(
      "rnn(Tensor input, Tensor? hx, Tensor[] weights, bool has_biases, int num_layers, "
      "bool bidirectional, bool batch_first, float dropout, bool training, Tensor? index, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset, Tensor? reset_state, Tensor[] alpha, "
      "str form, Tensor[] noise, str nonlinearity) -> (Tensor output, Tensor h_n)");
  m.def(
      "rnn_cell(Tensor input, Tensor? hx, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, str nonlinearity) -> Tensor");
}

}  // namespace rnnext
