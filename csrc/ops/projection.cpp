// W_ih x for all rows at once, where a layer's input is a table or noise is added to it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include "ops/layers.h"

namespace rnnext {

// Rows times W_ih, plus the biases, on the CPU, the directions side by side: one step of as many
// sequences from a state of zeros. Its sums equal those that a step of the recurrence starts from,
// to the bit and on any number of threads. W_hh only gives H.
static Tensor project_step(const Tensor& x, TensorList ih, TensorList hh, TensorList bias_ih,
                           TensorList bias_hh) {
  const size_t D = hh.size();
  const Tensor unread[2] = {hh[0].detach(), D > 1 ? hh[1].detach() : Tensor()};
  const Tensor step = x.unsqueeze(0);
  const RecurrenceArguments a{.input = step,
                              .weight_ih = ih,
                              .weight_hh = {unread, D},
                              .bias_ih = bias_ih,
                              .bias_hh = bias_hh,
                              .cell = "elman",
                              .nonlinearity = "identity",
                              .reverse = directions(static_cast<int64_t>(D))};
  return std::get<0>(call_forward<RecurrenceOp>(a)).squeeze(0);
}

Tensor project(const Tensor& x, const DirectionWeights& of, Cell cell) {
  const size_t D = of.hh.size();
  const bool has_biases = !of.bias_ih.empty(), gated = is_gated(cell);
  if (x.is_cpu()) {
    if (x.dim() == 3) {
      const Tensor rows = project(x.flatten(0, 1), of, cell);
      return rows.view_symint({x.sym_size(0), x.sym_size(1), rows.sym_size(1)});
    }
    if (!gated) return project_step(x, of.ih, of.hh, of.bias_ih, of.bias_hh);
    std::vector<Tensor> gates;
    const int64_t G = traits_of(cell).gates;
    for (int64_t g = 0; g < G; ++g) {
      const auto gate = [&](TensorList all) {
        std::vector<Tensor> own;
        for (const Tensor& t : all) own.push_back(t.chunk(G)[g]);
        return own;
      };
      const std::vector<Tensor> bias = gate(of.bias_ih);
      std::vector<Tensor> none;
      for (const Tensor& t : bias) none.push_back(at::zeros_like(t));
      const Tensor rows = project_step(x, gate(of.ih), gate(of.hh), bias, none);
      gates.push_back(rows.unflatten(-1, {static_cast<int64_t>(D), -1}));
    }
    return at::stack(gates, -2).flatten(1);
  }
  Tensor parts[2];
  for (size_t d = 0; d < D; ++d) {
    const OptionalTensor bias = !has_biases ? OptionalTensor()
                                : gated     ? of.bias_ih[d]
                                            : OptionalTensor(of.bias_ih[d] + of.bias_hh[d]);
    parts[d] = at::linear(x, of.ih[d], bias);
  }
  return D == 1 ? parts[0] : at::cat({parts[0], parts[1]}, -1);
}

}  // namespace rnnext
