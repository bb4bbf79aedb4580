// Whether a call must be recorded for autograd, whether it carries tangents, and how it is
// recorded.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "ops/arguments.h"

namespace rnnext {

template <class Argument>
bool needs_grad(const Argument& argument) {
  return std::ranges::any_of(tensors_of(argument),
                             [](const Tensor& t) { return t.requires_grad(); });
}
template <class... T>
bool records(const T&... arguments) {
  return at::GradMode::is_enabled() && (needs_grad(arguments) || ...);
}

// Whether a tensor has a tangent of forward mode.
inline bool is_dual(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }
template <class... T>
bool any_dual(const T&... arguments) {
  return (std::ranges::any_of(tensors_of(arguments), is_dual) || ...);
}

// The same of the tensors in structs.
template <class... Struct>
bool any_recorded(const Struct&... s) {
  return (spread(s, [](const auto&... each) { return records(each...); }) || ...);
}
template <class... Struct>
bool any_dual_in(const Struct&... s) {
  return (spread(s, [](const auto&... each) { return any_dual(each...); }) || ...);
}

// A tensor without its tangent, and the tangent, undefined where there is none.
inline Tensor primal(const Tensor& t) { return is_dual(t) ? t._fw_primal(0) : t; }
inline Tensor tangent(const Tensor& t) { return t._fw_grad(0); }
inline void set_tangent(const Tensor& t, const Tensor& tangent) {
  if (tangent.defined()) t._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
}

// A node whose backward pass is F::backward(context, gradients of the results), which returns one
// for each edge. Function::apply would make one as well, but refuses calls under transforms of
// torch.func, and keeps the sizes of all tensors, which is half of the cost of a small call.
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
