// How a call is recorded for autograd. (torch's headers for that include all of ATen.)
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "ops/records.h"

namespace rnnext {

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
