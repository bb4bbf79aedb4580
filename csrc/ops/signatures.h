// This library's ops: their C++ signatures in one place, calls of them through the dispatcher, and
// kernels of the recurrence that take their arguments as a struct.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <array>
#include <bit>
#include <tuple>
#include <vector>

#include "ops/arguments.h"

namespace rnnext {

// A tensor that stands for an empty list, undefined unless one of torch's modes traces a call:
// AOTInductor drops empty lists. No real tensor of a list has 6 dimensions and no elements. And a
// struct that has it in place of each empty list.
inline Tensor stand_in(const Tensor& like) {
  const bool traces = c10::impl::TorchDispatchModeTLS::any_modes_set();
  return traces ? like.new_empty({0, 0, 0, 0, 0, 0}) : Tensor();
}
template <class Struct>
Struct as_traced(Struct s, const Tensor& none) {
  const auto show = [&](auto& field) {
    if constexpr (std::is_same_v<decltype(field), TensorList&>)
      if (field.empty()) field = none;
  };
  if (none.defined()) zip(show, s);
  return s;
}

// An argument of type T as a kernel takes it.
template <class T>
Passed<T> as_passed(Passed<T> value) {
  if constexpr (std::is_same_v<T, TensorList>)
    if (value.size() == 1 && value[0].dim() == 6 && value[0].sym_numel() == 0) return {};
  return value;
}

// The ops of the recurrence: what they return, their signatures, and functions to register for
// kernels that take structs. (Those of fake.h have other parameter types, and one more parameter.)
template <template <class> class Parameter, class Arguments, class Results, class Gradients,
          class... More>
struct RecurrenceTypes;
template <template <class> class Parameter, class... A, class... R, class... G, class... More>
struct RecurrenceTypes<Parameter, Types<void, A...>, Types<void, R...>, Types<void, G...>,
                       More...> {
  // output, the last states, and, if `save` and the cell saves, what else the backward pass reads
  using ForwardResults = std::tuple<Tensor, Tensor, std::vector<Tensor>>;
  using ForwardSignature = ForwardResults(Passed<A>..., bool save);
  using BackwardResults = std::tuple<Kept<G>...>;
  using Mask = std::array<bool, sizeof...(G)>;
  using BackwardSignature = BackwardResults(Passed<R>..., Passed<A>..., Mask output_mask);

  template <auto kernel>
  static ForwardResults forward(Parameter<A>... each, bool save, More... more) {
    return kernel(RecurrenceArguments{as_passed<A>(each)...}, save, more...);
  }
  template <auto kernel>
  static BackwardResults backward(Parameter<R>... results, Parameter<A>... each, Mask output_mask,
                                  More... more) {
    const RecurrenceArguments a{as_passed<A>(each)...};
    const auto wanted = std::bit_cast<Wanted>(output_mask);
    return returned(kernel(BackwardInputs{as_passed<R>(results)...}, a, wanted, more...),
                    a.weight_hh[0]);
  }

 private:
  // A kernel's gradients as an op returns them: those that are left out become empty tensors. (On
  // the CPU without the dispatcher, which takes a tenth of the time.)
  static BackwardResults returned(RecurrenceGradients g, const Tensor& like) {
    const auto fill = [&](auto& field) {
      for (Tensor& t : tensors_of(field))
        if (!t.defined())
          t = like.is_cpu() && !at::isTensorSubclassLike(like)
                  ? Tensor(at::detail::empty_cpu({0}, like.scalar_type()))
                  : like.new_empty({0});
    };
    zip(fill, g);
#define RNNEXT_MOVED(type, name, ...) std::move(g.name),
    return {RNNEXT_RECURRENCE_GRADIENTS(RNNEXT_MOVED)};
#undef RNNEXT_MOVED
  }
};
template <template <class> class Parameter, class... More>
using RecurrencesOf = RecurrenceTypes<Parameter, RecurrenceArguments::Fields,
                                      BackwardInputs::Fields, RecurrenceGradients::Fields, More...>;
using Recurrences = RecurrencesOf<Passed>;

struct RecurrenceBackwardOp {
  static constexpr const char* name = "rnnext::recurrence_backward";
  using Results = Recurrences::BackwardResults;
  using Signature = Recurrences::BackwardSignature;
};
struct RecurrenceOp {
  static constexpr const char* name = "rnnext::recurrence";
  using Results = Recurrences::ForwardResults;
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

// The rows of a table that occur among tokens, ascending, and for each token its row's number among
// these. If more than `most` occur: no rows, and -1 for each token.
struct OccurringOp {
  static constexpr const char* name = "rnnext::occurring";
  using Signature = std::tuple<Tensor, Tensor>(const Tensor& tokens, int64_t num_rows,
                                               int64_t most);
};
// Standard normals, float32 [*keys.shape, T, B, D*H], which the recurrence adds, times `noise`.
struct NoiseOp {
  static constexpr const char* name = "rnnext::noise";
  using Signature = Tensor(const Tensor& keys, c10::SymInt T, c10::SymInt B, int64_t D,
                           c10::SymInt H);
};
// The factors of dropout, [T, B, H]: 0 with probability p, else 1 / (1 - p).
struct DropoutMaskOp {
  static constexpr const char* name = "rnnext::dropout_mask";
  using Signature = Tensor(const Tensor& key, c10::SymInt T, c10::SymInt B, c10::SymInt H, double p,
                           at::ScalarType dtype);
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
template <class Arguments, class Result, class Types = typename Arguments::Fields>
struct OpOf;
template <class Arguments, class Result, class... T>
struct OpOf<Arguments, Result, Types<void, T...>> {
  using Signature = Result(Passed<T>...);

  // The function to register for a kernel that takes the struct.
  template <auto kernel>
  static Result call(Passed<T>... each) {
    return kernel(Arguments{each...});
  }
};
struct RnnOp : OpOf<RnnArguments, std::tuple<Tensor, std::vector<Tensor>>> {
  static constexpr const char* name = "rnnext::rnn";
};
struct RnnCellOp : OpOf<CellArguments, std::vector<Tensor>> {
  static constexpr const char* name = "rnnext::rnn_cell";
};

template <class Op, class... T>
decltype(auto) call_op(const T&... arguments) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(Op::name, "")
                             .template typed<typename Op::Signature>();
  return op.call(arguments...);
}

#define RNNEXT_ARGUMENT(type, name, ...) a.name,
#define RNNEXT_RESULT(type, name, ...) r.name,
template <class Op>
typename Op::Results call_forward(const RecurrenceArguments& arguments, bool save = false) {
  const Tensor none = stand_in(arguments.input);
  const RecurrenceArguments a = as_traced(arguments, none);
  return call_op<Op>(RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_ARGUMENT) save);
}
template <class Op>
RecurrenceGradients call_backward(const BackwardInputs& results,
                                  const RecurrenceArguments& arguments, const Wanted& wanted) {
  const Tensor none = stand_in(arguments.input);
  const BackwardInputs r = as_traced(results, none);
  const RecurrenceArguments a = as_traced(arguments, none);
  const auto mask = std::bit_cast<Recurrences::Mask>(wanted);
  auto gradients = call_op<Op>(RNNEXT_BACKWARD_INPUTS(RNNEXT_RESULT)
                                   RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_ARGUMENT) mask);
  return std::apply([](auto&... gradient) { return RecurrenceGradients{std::move(gradient)...}; },
                    gradients);
}
#undef RNNEXT_RESULT
#undef RNNEXT_ARGUMENT

// The call of layer l of a stack, with x as its input.
inline RecurrenceArguments layer_of(const RecurrenceArguments& a, size_t l, const Tensor& x,
                                    const OptionalTensor& hx = absent<OptionalTensor>) {
  const auto own = [&]<class Field>(std::string_view name, const Field& field) -> decltype(auto) {
    if constexpr (std::is_same_v<Field, Tensor>) {
      return (x);  // the input
    } else if constexpr (std::is_same_v<Field, OptionalTensor>) {
      return name == "hx" ? hx : field;
    } else if constexpr (std::is_same_v<Field, TensorList>) {
      return field.empty() ? field : field.slice(l, 1);
    } else {
      return (field);
    }
  };
#define RNNEXT_OWN(type, name, ...) own(#name, a.name),
  return {RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_OWN)};
#undef RNNEXT_OWN
}

// recurrence_stack layer by layer, which can be differentiated and mapped.
RecurrenceOp::Results layer_by_layer(const RecurrenceArguments& a, bool save);

}  // namespace rnnext
