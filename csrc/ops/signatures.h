// This library's ops: their C++ signatures in one place, calls of them through the dispatcher, and
// kernels of the recurrence that take their arguments as a struct.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <array>
#include <tuple>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

// The ops of the recurrence: what they return and their signatures, from the lists of types of
// arguments, results and gradients.
template <class... T>
struct Types;
#define RNNEXT_TYPE(type, ...) , type
using ArgumentTypes = Types<void RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_TYPE)>;
using ResultTypes = Types<void RNNEXT_RECURRENCE_RESULTS(RNNEXT_TYPE)>;
using GradientTypes = Types<void RNNEXT_RECURRENCE_GRADIENTS(RNNEXT_TYPE)>;
using RnnTypes = Types<void RNNEXT_RNN_ARGUMENTS(RNNEXT_TYPE)>;
using CellTypes = Types<void RNNEXT_CELL_ARGUMENTS(RNNEXT_TYPE)>;
#undef RNNEXT_TYPE

// Whether this stands for an empty list, as it does while one of torch's modes traces a call, since
// AOTInductor passes nothing in place of one. No real tensor of a list has as many dimensions.
inline bool stands_for_none(TensorList list) { return list.size() == 1 && list[0].dim() == 6; }
// f of a struct as a call passes it, with such a tensor in place of each empty list while a mode
// traces.
template <class Struct, class F>
auto as_traced(const Struct& s, const Tensor& like, const F& f) {
  if (!c10::impl::TorchDispatchModeTLS::any_modes_set()) return f(s);
  Struct shown = s;
  const Tensor none = like.new_empty({0, 0, 0, 0, 0, 0});
  const auto show = [&](auto& field) {
    if constexpr (std::is_same_v<decltype(field), TensorList&>)
      if (field.empty()) field = none;
  };
  zip(show, shown);
  return f(shown);
}

// An argument of type T as a kernel takes it.
template <class T>
Passed<T> as_passed(Passed<T> value) {
  if constexpr (std::is_same_v<T, TensorList>)
    if (stands_for_none(value)) return {};
  return value;
}

template <class Mask>
Wanted wanted(const Mask& output_mask) {
  return std::apply([](auto... want) { return Wanted{want...}; }, output_mask);
}

template <class, class, class>
struct RecurrenceTypes;
template <class... A, class... R, class... G>
struct RecurrenceTypes<Types<void, A...>, Types<void, R...>, Types<void, G...>> {
  // output, h_n, and, if `save` and there is a leak, what its backward pass reads besides the
  // output
  using Forward = std::tuple<Tensor, Tensor, std::vector<Tensor>>;
  using ForwardSignature = Forward(Passed<A>..., bool save);
  using Backward = std::tuple<Kept<G>...>;
  using Mask = std::array<bool, sizeof...(G)>;
  using BackwardSignature = Backward(Passed<R>..., Passed<A>..., Mask output_mask);

  // A kernel's gradients as an op returns them. One that is left out, since it is not wanted or not
  // there, is an empty tensor. (A plain one on the CPU is made without the dispatcher, in a tenth
  // of the time.)
  static Backward returned(RecurrenceGradients g, const Tensor& like) {
    const auto absent = [&] {
      return like.is_cpu() && !at::isTensorSubclassLike(like)
                 ? Tensor(at::detail::empty_cpu({0}, like.scalar_type()))
                 : like.new_empty({0});
    };
    const auto fill = [&](auto& field) {
      for (Tensor& t : tensors_of(field))
        if (!t.defined()) t = absent();
    };
    zip(fill, g);
    return spread(g, [](auto&... gradient) { return Backward{std::move(gradient)...}; });
  }

  // What to register for kernels that take structs.
  template <auto kernel>
  static Forward forward(Passed<A>... each, bool save) {
    return kernel(RecurrenceArguments{as_passed<A>(each)...}, save);
  }
  template <auto kernel>
  static Backward backward(Passed<R>... results, Passed<A>... each, Mask output_mask) {
    const RecurrenceArguments a{as_passed<A>(each)...};
    return returned(kernel(RecurrenceResults{as_passed<R>(results)...}, a, wanted(output_mask)),
                    a.weight_hh[0]);
  }
};
using Recurrences = RecurrenceTypes<ArgumentTypes, ResultTypes, GradientTypes>;

struct RecurrenceBackwardOp {
  static constexpr const char* name = "rnnext::recurrence_backward";
  using Results = Recurrences::Backward;
  using Signature = Recurrences::BackwardSignature;
};
struct RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence";
  using Results = Recurrences::Forward;
  using Signature = Recurrences::ForwardSignature;
  using Backward = RecurrenceBackwardOp;
};
struct RecurrenceStackOp : RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence_stack";
};
// Calls of several members at once: every tensor but batch_sizes has one more dimension in front.
struct EnsembleBackwardOp : RecurrenceBackwardOp {
  static constexpr const char* name = "rnnext::recurrence_ensemble_backward";
};
struct EnsembleOp : RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence_ensemble";
  using Backward = EnsembleBackwardOp;
};

// The rows of a table that occur among tokens, ascending, and for each token which of these it is.
// If more than `most` occur: no rows, and -1 for each token.
struct OccurringOp {
  static constexpr const char* name = "rnnext::occurring";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& tokens, int64_t num_rows,
                                               int64_t most);
};
// Standard normal numbers, float32 [*keys.shape, T, B, D*H]: what the recurrence multiplies with
// `noise` and adds.
struct NoiseOp {
  static constexpr const char* name = "rnnext::noise";
  using Signature = Tensor(const Tensor& keys, c10::SymInt T, c10::SymInt B, int64_t D,
                           c10::SymInt H);
};
struct EmbeddingOp {
  static constexpr const char* name = "rnnext::embedding";
  using Signature = Tensor(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                           bool scale_grad_by_freq, bool sparse);
};
struct EmbeddingBackwardOp {
  static constexpr const char* name = "rnnext::embedding_backward";
  using Signature = Tensor(const Tensor& grad, const Tensor& indices, c10::SymInt num_weights,
                           int64_t padding_idx, bool scale_grad_by_freq);
};
struct EmbeddingSparseBackwardOp {
  static constexpr const char* name = "rnnext::embedding_sparse_backward";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& grad, const Tensor& indices,
                                               c10::SymInt num_weights, int64_t padding_idx,
                                               bool scale_grad_by_freq);
};

// An op whose arguments are a struct's fields.
template <class Arguments, class Result, class Types>
struct OpOf;
template <class Arguments, class Result, class... T>
struct OpOf<Arguments, Result, Types<void, T...>> {
  using Signature = Result(Passed<T>...);

  // What to register for a kernel that takes the struct.
  template <auto kernel>
  static Result call(Passed<T>... each) {
    return kernel(Arguments{each...});
  }
};
struct RnnOp : OpOf<RnnArguments, std::tuple<Tensor, Tensor>, RnnTypes> {
  static constexpr const char* name = "rnnext::rnn";
};
struct RnnCellOp : OpOf<CellArguments, Tensor, CellTypes> {
  static constexpr const char* name = "rnnext::rnn_cell";
};

template <class Op, class... T>
decltype(auto) call_op(const T&... arguments) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(Op::name, "")
                             .template typed<typename Op::Signature>();
  return op.call(arguments...);
}

template <class Op>
typename Op::Results call_forward(const RecurrenceArguments& a, bool save = false) {
  return as_traced(a, a.input, [&](const auto& shown) {
    return spread(shown, [&](const auto&... each) { return call_op<Op>(each..., save); });
  });
}
template <class Op>
RecurrenceGradients call_backward(const RecurrenceResults& r, const RecurrenceArguments& a,
                                  const Wanted& wanted) {
  const auto mask = spread(wanted, [](auto... want) { return Recurrences::Mask{want...}; });
  const auto call = [&](const auto& results, const auto& arguments) {
    return spread(results, [&](const auto&... result) {
      return spread(arguments,
                    [&](const auto&... each) { return call_op<Op>(result..., each..., mask); });
    });
  };
  auto gradients = as_traced(r, a.input, [&](const auto& results) {
    return as_traced(a, a.input, [&](const auto& arguments) { return call(results, arguments); });
  });
  return std::apply([](auto&... gradient) { return RecurrenceGradients{std::move(gradient)...}; },
                    gradients);
}

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
