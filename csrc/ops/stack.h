// A stack of layers by calls for each.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// Layer l of a stack, over x.
inline RecurrenceArguments layer_of(const RecurrenceArguments& a, size_t l, const Tensor& x,
                                    const OptionalTensor& hx) {
  const auto own = [&](const auto& field) -> decltype(auto) {
    if constexpr (std::is_same_v<decltype(field), const TensorList&>) {
      return field.empty() ? field : field.slice(l, 1);
    } else {
      return field;
    }
  };
  return spread(a, [&](const Tensor&, const OptionalTensor&, const auto&... rest) {
    return RecurrenceArguments{x, hx, own(rest)...};
  });
}

// recurrence_stack layer by layer, which can be differentiated and mapped.
RecurrenceOp::Results layer_by_layer(const RecurrenceArguments& a, bool save);

}  // namespace rnnext
