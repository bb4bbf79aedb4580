// The arguments of the recurrence's ops in an autograd node: saved, restored, and their gradients
// in the order in which autograd numbers them.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

using variable_list = std::vector<Tensor>;

// The number of tensors in a field as autograd numbers them: absent ones count, too.
template <class Field>
size_t slots_of(const Field& field) {
  return std::is_same_v<Field, OptionalTensor> ? 1 : tensors_of(field).size();
}

// The tensors of structs in that order.
template <class... Struct>
variable_list flattened(const Struct&... s) {
  variable_list flat;
  flat.reserve(24);
  const auto add = [&](const auto& field) {
    const auto tensors = tensors_of(field);
    for (const Tensor& t : tensors) flat.push_back(t);
    if (tensors.size() < slots_of(field)) flat.emplace_back();
  };
  (zip(add, s), ...);
  return flat;
}

// What an autograd node keeps of structs besides these tensors: the sizes of lists, and what is no
// tensor, as values that compiled autograd can look into.
template <class... Struct>
c10::impl::GenericList values_of(const Struct&... s) {
  c10::impl::GenericList values{c10::AnyType::get()};
  values.reserve(8);
  const auto add = [&]<class Field>(const Field& field) {
    if constexpr (std::is_same_v<Field, TensorList>) {
      values.emplace_back(static_cast<int64_t>(field.size()));
    } else if constexpr (std::is_same_v<Field, std::string_view>) {
      values.emplace_back(std::string(field));
    } else if constexpr (!std::is_same_v<Field, Tensor> && !std::is_same_v<Field, OptionalTensor>) {
      values.emplace_back(field);
    }
  };
  (zip(add, s), ...);
  return values;
}

// Puts both back into structs of the same fields.
template <class... Struct>
void restore(const variable_list& tensors, const c10::List<c10::IValue>& values, Struct&... s) {
  auto tensor = tensors.begin();
  auto value = values.begin();
  const auto fill = [&]<class Field>(Field& field) {
    if constexpr (std::is_same_v<Field, Tensor> || std::is_same_v<Field, OptionalTensor>) {
      field = *tensor++;
    } else if constexpr (std::is_same_v<Field, std::vector<Tensor>>) {
      const auto end = tensor + (*value++).get().toInt();
      field.assign(tensor, end);
      tensor = end;
    } else {
      field = (*value++).get().to<Field>();
    }
  };
  (zip(fill, s), ...);
}

}  // namespace rnnext
