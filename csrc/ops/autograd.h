// What the autograd kernels of all ops share: whether a call must be recorded, whether it carries
// tangents, and how it is recorded.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "ops/signatures.h"

namespace rnnext {

inline bool needs_grad(const Tensor& t) { return t.requires_grad(); }
inline bool needs_grad(const OptionalTensor& t) { return given(t) && needs_grad(*t); }
inline bool needs_grad(TensorList list) {
  for (const Tensor& t : list)
    if (needs_grad(t)) return true;
  return false;
}
inline bool needs_grad(std::string_view) { return false; }
inline bool needs_grad(const c10::List<bool>&) { return false; }
template <class Number>
std::enable_if_t<std::is_arithmetic_v<Number>, bool> needs_grad(Number) {
  return false;
}

template <class... T>
bool records(const T&... arguments) {
  return at::GradMode::is_enabled() && (needs_grad(arguments) || ...);
}

// Whether forward mode has a tangent of it.
inline bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
inline bool is_dual(const OptionalTensor& t) { return given(t) && is_dual(*t); }
inline bool is_dual(TensorList list) {
  for (const Tensor& t : list)
    if (is_dual(t)) return true;
  return false;
}
inline bool is_dual(std::string_view) { return false; }
inline bool is_dual(const c10::List<bool>&) { return false; }
template <class Number>
std::enable_if_t<std::is_arithmetic_v<Number>, bool> is_dual(Number) {
  return false;
}

template <class... T>
bool any_dual(const T&... arguments) {
  return (is_dual(arguments) || ...);
}

// A tensor without its tangent, and the tangent, undefined where there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t.defined() ? t._fw_grad(0) : t; }
inline Tensor tangent(const OptionalTensor& t) { return given(t) ? tangent(*t) : Tensor(); }

// A node whose backward pass is F::backward(context, gradients of the results); that gives one for
// each edge. Function::apply would make one as well, but refuses calls under transforms of
// torch.func, and keeps the sizes of all tensors, at half of what a small call takes to record.
template <class F>
struct Recorded : torch::autograd::CppNode<F> {
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(this->mutex_);
    return F::backward(&this->ctx_, grads);
  }
  std::string name() const override { return F::name; }
};

// A node with an edge to each of a call's tensors, also to those that are not defined.
template <class F>
auto node_of(const torch::autograd::variable_list& arguments) {
  using Node = Recorded<F>;
  const auto node = [] {
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

// The node becomes the history of the call's results, and keeps what its backward pass needs.
template <class Node>
void record(const Node& node, const torch::autograd::variable_list& results,
            torch::autograd::variable_list saved) {
  torch::autograd::set_history(results, node);
  node->ctx_.save_for_backward(std::move(saved));
  node->save_variables_to_ctx();
}

}  // namespace rnnext
