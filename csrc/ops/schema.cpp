// The op schemas: what each argument means is documented in rnnext/ops.py.
#include <torch/library.h>

TORCH_LIBRARY(rnnext, m) {
  m.def(
      "recurrence(Tensor input, Tensor? index, Tensor[] weight_ih, Tensor[] weight_hh, "
      "Tensor[] bias_ih, Tensor[] bias_hh, Tensor? h0, Tensor? lengths, Tensor? batch_sizes, "
      "str nonlinearity, bool[] reverse) -> (Tensor output, Tensor h_n)");
  m.def(
      "recurrence_stack(Tensor input, Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_ih, "
      "Tensor[] bias_hh, Tensor? h0, Tensor? lengths, Tensor? batch_sizes, str nonlinearity) -> "
      "(Tensor output, Tensor h_n)");
  m.def(
      "recurrence_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor input, "
      "Tensor? index, Tensor[] weight_ih, Tensor[] weight_hh, Tensor? h0, Tensor? lengths, "
      "Tensor? batch_sizes, str nonlinearity, bool[] reverse, bool[4] output_mask) -> "
      "(Tensor grad_input, Tensor[] grad_weight_ih, Tensor[] grad_weight_hh, Tensor[] grad_bias, "
      "Tensor grad_h0)");
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
      "rnn(Tensor input, Tensor? hx, Tensor[] params, bool has_biases, int num_layers, "
      "float dropout, bool train, bool bidirectional, bool batch_first, str nonlinearity, "
      "Tensor? lengths=None, Tensor? batch_sizes=None) -> (Tensor, Tensor)");
  m.def(
      "rnn_cell(Tensor input, Tensor? hx, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, str nonlinearity) -> Tensor");
}
