// The arguments of the recurrence's ops in an autograd node: saved, restored, and their gradients
// in the order in which autograd numbers them.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <string_view>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

using variable_list = std::vector<Tensor>;

// Puts the arguments that the backward pass needs into an autograd node, and takes them out.
struct Saver {
  variable_list tensors;
  c10::impl::GenericList values{c10::AnyType::get()};  // which compiled autograd can look into

  Saver() {
    tensors.reserve(16);
    values.reserve(8);
  }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(TensorList list) {
    values.emplace_back(static_cast<int64_t>(list.size()));
    tensors.insert(tensors.end(), list.begin(), list.end());
  }
  void operator()(std::string_view text) { values.emplace_back(std::string(text)); }
  void operator()(const c10::List<bool>& list) { values.emplace_back(list); }
  template <class Struct>
  void all(const Struct& s) {
    spread(s, [&](const auto&... each) { ((*this)(each), ...); });
  }
};
struct Restorer {
  variable_list tensors;
  at::ArrayRef<c10::IValue> values;
  variable_list::const_iterator tensor = tensors.begin();
  const c10::IValue* value = values.begin();

  void operator()(Tensor& t) { t = *tensor++; }
  void operator()(OptionalTensor& t) { t = *tensor++; }
  void operator()(std::vector<Tensor>& list) {
    const int64_t n = (value++)->toInt();
    list.assign(tensor, tensor + n);
    tensor += n;
  }
  void operator()(std::string& text) { text = (value++)->toStringRef(); }
  void operator()(c10::List<bool>& list) { list = (value++)->toBoolList(); }
  template <class Struct>
  void all(Struct& s) {
    spread(s, [&](auto&... each) { ((*this)(each), ...); });
  }
};

// The tensors of structs in the order in which autograd numbers them; absent ones count, too.
struct Flattener {
  variable_list tensors;

  Flattener() { tensors.reserve(16); }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(TensorList list) { tensors.insert(tensors.end(), list.begin(), list.end()); }
  void operator()(std::string_view) {}
  void operator()(const c10::List<bool>&) {}
};
// The number of tensors in a field.
inline size_t slots_of(const Tensor&) { return 1; }
inline size_t slots_of(const OptionalTensor&) { return 1; }
inline size_t slots_of(const std::vector<Tensor>& list) { return list.size(); }
inline size_t slots_of(const std::string&) { return 0; }
inline size_t slots_of(const c10::List<bool>&) { return 0; }

template <class... Struct>
variable_list flattened(const Struct&... s) {
  Flattener flat;
  (spread(s, [&](const auto&... each) { (flat(each), ...); }), ...);
  return std::move(flat.tensors);
}

}  // namespace rnnext
