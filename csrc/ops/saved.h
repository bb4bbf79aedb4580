// The arguments of the recurrence's ops in an autograd node: saved, restored, and their gradients
// in the order in which autograd numbers them.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/variable.h>

#include <string>
#include <string_view>
#include <vector>

#include "ops/signatures.h"

namespace rnnext {

using torch::autograd::variable_list;

// Puts the arguments that the backward pass needs into an autograd node, and takes them out.
struct Saver {
  variable_list tensors;
  c10::impl::GenericList values{c10::AnyType::get()};  // which compiled autograd can look into

  Saver() {
    tensors.reserve(12);
    values.reserve(8);
  }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(TensorList list) {
    values.emplace_back(static_cast<int64_t>(list.size()));
    tensors.insert(tensors.end(), list.begin(), list.end());
  }
  void operator()(const std::vector<Tensor>& list) { (*this)(TensorList(list)); }
  void operator()(std::string_view text) { values.emplace_back(std::string(text)); }
  void operator()(const c10::List<bool>& list) { values.emplace_back(list); }
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
};

// Arguments, or their gradients, one a tensor: as autograd numbers them.
struct Flattener {
  variable_list tensors;

  Flattener() { tensors.reserve(16); }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const OptionalTensor& t) { tensors.push_back(t.value_or(Tensor())); }
  void operator()(TensorList list) { tensors.insert(tensors.end(), list.begin(), list.end()); }
  void operator()(const std::vector<Tensor>& list) { (*this)(TensorList(list)); }
  void operator()(std::string_view) {}
  void operator()(const c10::List<bool>&) {}
};

}  // namespace rnnext
