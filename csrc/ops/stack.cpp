#include "ops/stack.h"

#include <ATen/ATen.h>

namespace rnnext {

RecurrenceOp::Results layer_by_layer(const RecurrenceArguments& a, bool save) {
  TORCH_CHECK(!save, "recurrence_stack saves nothing: it has no backward op");
  const auto of_layer = [](TensorList list, size_t l) {
    return list.empty() ? list : list.slice(l, 1);
  };
  Tensor x = a.input;
  std::vector<Tensor> h_n;
  for (size_t l = 0; l < a.weight_hh.size(); ++l) {
    const OptionalTensor start =
        given(a.hx) ? OptionalTensor(a.hx->narrow(0, static_cast<int64_t>(l), 1)) : std::nullopt;
    auto [output, h, saved] = call_forward<RecurrenceOp>(RecurrenceArguments{
        x, start, of_layer(a.weight_ih, l), of_layer(a.weight_hh, l), of_layer(a.bias_ih, l),
        of_layer(a.bias_hh, l), a.index, a.lengths, a.batch_sizes, a.reset, a.reset_state,
        of_layer(a.alpha, l), a.form, a.nonlinearity, a.reverse});
    x = std::move(output);
    h_n.push_back(std::move(h));
  }
  return {x, at::cat(h_n), {}};
}

}  // namespace rnnext
