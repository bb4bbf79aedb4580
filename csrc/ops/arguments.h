// What a call of the recurrence is made of, as its ops pass it.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace rnnext {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

inline bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }

// X(type, name) of each argument. The schemas and signatures of the recurrence's ops, the structs
// below, and what autograd saves follow this list, in its order.
#define RNNEXT_RECURRENCE_ARGUMENTS(X) \
  X(Tensor, input)                     \
  X(OptionalTensor, hx)                \
  X(TensorList, weight_ih)             \
  X(TensorList, weight_hh)             \
  X(TensorList, bias_ih)               \
  X(TensorList, bias_hh)               \
  X(OptionalTensor, index)             \
  X(OptionalTensor, lengths)           \
  X(OptionalTensor, batch_sizes)       \
  X(OptionalTensor, reset)             \
  X(OptionalTensor, reset_state)       \
  X(TensorList, alpha)                 \
  X(std::string_view, form)            \
  X(std::string_view, nonlinearity)    \
  X(c10::List<bool>, reverse)

// How an argument is passed to an op, how it is kept after the call, and what schemas call it.
template <class T>
struct ArgumentType;
template <>
struct ArgumentType<Tensor> {
  using Passed = const Tensor&;
  using Kept = Tensor;
  static constexpr const char* schema = "Tensor";
};
template <>
struct ArgumentType<OptionalTensor> {
  using Passed = const OptionalTensor&;
  using Kept = OptionalTensor;
  static constexpr const char* schema = "Tensor?";
};
template <>
struct ArgumentType<TensorList> {
  using Passed = TensorList;
  using Kept = std::vector<Tensor>;
  static constexpr const char* schema = "Tensor[]";
};
template <>
struct ArgumentType<std::string_view> {
  using Passed = std::string_view;
  using Kept = std::string;
  static constexpr const char* schema = "str";
};
template <>
struct ArgumentType<c10::List<bool>> {
  using Passed = const c10::List<bool>&;
  using Kept = c10::List<bool>;
  static constexpr const char* schema = "bool[]";
};

template <class T>
using Passed = typename ArgumentType<T>::Passed;
template <class T>
using Kept = typename ArgumentType<T>::Kept;

#define RNNEXT_FIELD(type, name) Field<type> name;
template <template <class> class Field>
struct Arguments {
  RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_FIELD)
};
#undef RNNEXT_FIELD

using RecurrenceArguments = Arguments<Passed>;  // of a call that is under way
using KeptArguments = Arguments<Kept>;

// f(argument, argument...)
#define RNNEXT_NAME(type, name) , a.name
template <class Arguments, class F>
decltype(auto) spread(Arguments& a, F&& f) {
  return std::invoke(f RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_NAME));
}
#undef RNNEXT_NAME

// Arguments as a call passes them; what they are kept in must outlive the result.
inline RecurrenceArguments passed(const KeptArguments& a) {
  return spread(a, [](const auto&... each) { return RecurrenceArguments{each...}; });
}
inline KeptArguments kept(const RecurrenceArguments& a) {
  const auto own = [](const auto& each) {
    if constexpr (std::is_same_v<decltype(each), const TensorList&>) {
      return each.vec();
    } else if constexpr (std::is_same_v<decltype(each), const std::string_view&>) {
      return std::string(each);
    } else {
      return each;
    }
  };
  return spread(a, [&](const auto&... each) { return KeptArguments{own(each)...}; });
}

// The arguments with f(tensor) in the place of each tensor, but for batch_sizes: sizes, no data.
template <class F>
KeptArguments with_each(KeptArguments a, const F& f) {
  struct {
    const F& f;
    void operator()(Tensor& t) const { t = f(t); }
    void operator()(OptionalTensor& t) const {
      if (given(t)) t = f(*t);
    }
    void operator()(std::vector<Tensor>& list) const {
      for (Tensor& t : list) t = f(t);
    }
    void operator()(const std::string&) const {}
    void operator()(const c10::List<bool>&) const {}
  } visit{f};
  const OptionalTensor batch_sizes = std::move(a.batch_sizes);
  a.batch_sizes.reset();
  spread(a, [&](auto&... each) { (visit(each), ...); });
  a.batch_sizes = batch_sizes;
  return a;
}

}  // namespace rnnext
