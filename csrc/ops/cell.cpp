// One step as a call of the recurrence: its arguments and its results.
#include "ops/cell.h"

#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/check.h"

namespace rnnext {

CellStep::CellStep(const CellArguments& a) : a_(a) {
  TORCH_CHECK(a.input.dim() == 1 || a.input.dim() == 2, "input must have 1 or 2 dimensions, got ",
              a.input.dim());
  check_count(a.hx, "hx", traits_of(parse_cell(a.cell)).states);
  for (const Tensor& h : a.hx) {
    TORCH_CHECK(h.dim() == a.input.dim(), "hx must have as many dimensions as input, ",
                a.input.dim(), ", got ", h.dim());
    TORCH_CHECK(h.sym_sizes() == a.hx[0].sym_sizes(), "hx must hold states of one shape, got ",
                a.hx[0].sym_sizes(), " and ", h.sym_sizes());
  }
  input_ = as_step(a.input);
  hx_ = stacked(a.hx);
  if (given(a.bias_ih)) biases_[0] = *a.bias_ih;
  if (given(a.bias_hh)) biases_[1] = *a.bias_hh;
  for (int i = 0; i < 2; ++i)  // if only one is given, the other is zeros
    if (!biases_[i].defined() && biases_[1 - i].defined())
      biases_[i] = at::zeros_like(biases_[1 - i]);
}

OptionalTensor CellStep::stacked(TensorList states) const {
  if (states.size() == 1)
    return states[0].defined() ? OptionalTensor(as_step(states[0])) : std::nullopt;
  const auto* const one = std::ranges::find_if(states, &Tensor::defined);
  if (one == states.end()) return std::nullopt;
  std::vector<Tensor> each;
  for (const Tensor& t : states) each.push_back(as_step(t.defined() ? t : at::zeros_like(*one)));
  return joined(each);
}

std::vector<Tensor> CellStep::states_of(const Tensor& h_n) const {
  const int64_t S = traits_of(parse_cell(a_.cell)).states;
  if (S == 1) return {from_step(h_n, a_.input)};
  std::vector<Tensor> states;
  for (int64_t s = 0; s < S; ++s) states.push_back(from_step(state_of(h_n, s, 1), a_.input));
  return states;
}

std::vector<Tensor> rnn_cell(const CellArguments& a) {
  const CellStep step(a);
  const auto results = call_forward<RecurrenceOp>(step.arguments());
  std::vector<Tensor> states = step.states_of(std::get<1>(results));
  for (Tensor& h : states) h = as_result(h);
  return states;
}

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
}
TORCH_LIBRARY_IMPL(rnnext, FuncTorchBatchedDecomposition, m) {
  m.impl("rnn_cell", RnnCellOp::call<rnn_cell>);
}

}  // namespace rnnext
