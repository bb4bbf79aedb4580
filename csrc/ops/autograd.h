// Whether a call must be recorded for autograd, whether it has tangents, how it is recorded, what a
// node saves of it, and the call as a loop that can be differentiated.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/signatures.h"
#include "recurrence/cell.h"

namespace rnnext {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

inline bool needs_grad(const Tensor& t) { return t.requires_grad(); }
// Whether autograd records operations on a tensor.
inline bool is_recorded(const Tensor& t) { return at::GradMode::is_enabled() && needs_grad(t); }
// Whether a tensor has a tangent of forward mode.
inline bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }

// Whether `predicate` holds for a tensor in a struct's fields.
template <bool predicate(const Tensor&), class Struct>
bool any_tensor(const Struct& s) {
  bool any = false;
  zip([&](const auto& f) { any = any || std::ranges::any_of(tensors_of(f), predicate); }, s);
  return any;
}
template <class... Struct>
bool any_recorded(const Struct&... s) {
  return at::GradMode::is_enabled() && (any_tensor<needs_grad>(s) || ...);
}
// (It is quicker to find forward mode off than every tensor without a tangent.)
template <class... Struct>
bool any_dual(const Struct&... s) {
  return torch::autograd::ForwardADLevel::try_get_by_idx(0) && (any_tensor<is_dual>(s) || ...);
}

// A tensor without its tangent; and the tangent, undefined if there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t._fw_grad(0); }
inline void set_tangent(const Tensor& t, const Tensor& tangent) {
  if (tangent.defined()) t._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
}

// f() below autograd, which then records nothing.
template <class F>
auto below_autograd(const F& f) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return f();
}

// A node whose backward pass is F::backward(context, gradients of the results), which returns one
// for each edge. Function::apply would make one too, but it refuses calls under transforms of
// torch.func, and keeps the sizes of all tensors, which is half the cost of a small call.
template <class F>
struct Recorded : torch::autograd::CppNode<F> {
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(this->mutex_);
    return F::backward(&this->ctx_, grads);
  }
  std::string name() const override { return F::name; }
};

// A node with an edge to each of a call's tensors, undefined ones included.
template <class F>
auto node_of(const variable_list& arguments) {
  using Node = Recorded<F>;
  auto node = [] {
    if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Node>) {
      return c10::make_intrusive<Node>();
    } else {  // before torch 2.13
      return std::shared_ptr<Node>(new Node, [](Node* node) { deleteNode(node); });
    }
  }();
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(arguments));
  node->is_variable_input_.assign(arguments.size(), true);  // for compiled autograd
  node->ctx_.set_materialize_grads(false);
  return node;
}

// Makes the node the history of the call's results, and saves what its backward pass needs.
template <class Node>
void record(const Node& node, const variable_list& results, variable_list saved) {
  torch::autograd::set_history(results, node);
  for (Tensor& t : saved)  // autograd saves no tensor that was made in inference mode
    if (t.defined() && t.is_inference()) t = t.clone();
  node->ctx_.save_for_backward(std::move(saved));
  try {
    node->save_variables_to_ctx();
  } catch (...) {  // from a hook: torch's checkpoint ends its second computation by throwing
    node->ctx_.save_for_backward({});  // or the node and its output would hold each other for ever
    throw;
  }
}

// How many tensors of a field autograd numbers: absent ones count, too.
template <class Field>
size_t slots_of(const Field& field) {
  return std::is_same_v<Field, OptionalTensor> ? 1 : tensors_of(field).size();
}

// The tensors of structs, field by field.
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

// The rest of structs for an autograd node to keep: the sizes of lists, and fields that are not
// tensors, as values that compiled autograd can read.
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

// Puts tensors and values back into structs of the same fields.
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

// Tensors to differentiate by while gradients are enabled, each replaced by one that requires them.
struct Watched {
  std::vector<Tensor> tensors;
  // Whether one of them required a gradient before, so that results must be recorded.
  bool recorded = false;

  Tensor operator()(const Tensor& t);
};

// torch::autograd::grad with respect to the watched tensors, undefined where there is none;
// results, or their cotangents, may be undefined. It is recorded if any of these tensors or
// cotangents was, and gradients were `enabled` before.
std::vector<Tensor> gradients_of(const std::vector<Tensor>& results,
                                 const std::vector<Tensor>& cotangents, const Watched& watched,
                                 bool enabled);

// The recurrence, a step at a time; `save`: also what a gated cell saves.
RecurrenceOp::Results recurrence_loop(const RecurrenceArguments& a, bool save = false);

// recurrence_backward: for Elman's cell by formulas from the output, else by autograd of the loop.
RecurrenceGradients backward_loop(const BackwardInputs& r, const RecurrenceArguments& a,
                                  const Wanted& wanted);

// backward_loop for an op's kernel, from which torch's dispatcher excludes autograd.
RecurrenceGradients backward_loop_as_kernel(const BackwardInputs& r, const RecurrenceArguments& a,
                                            const Wanted& wanted);

}  // namespace rnnext
