// What the ops of the recurrence are given and return: each list once, and what follows from it.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <span>
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

// X(type, name) of each argument of a call.
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

// X(type, name) of what the backward op is given before these.
#define RNNEXT_RECURRENCE_RESULTS(X) \
  X(OptionalTensor, grad_output)     \
  X(OptionalTensor, grad_h_n)        \
  X(Tensor, output)                  \
  X(TensorList, saved)

// X(type, name, argument) of each gradient that the backward op returns, and may be asked for, with
// the argument whose gradient it is. (Both biases have the same.)
#define RNNEXT_RECURRENCE_GRADIENTS(X) \
  X(Tensor, input, input)              \
  X(Tensor, hx, hx)                    \
  X(TensorList, weight_ih, weight_ih)  \
  X(TensorList, weight_hh, weight_hh)  \
  X(TensorList, bias, bias_ih)         \
  X(Tensor, reset_state, reset_state)  \
  X(TensorList, alpha, alpha)

// The types of each of them: as a call under way passes it, as it is kept after the call, and as a
// schema names it.
template <class T>
struct TypeOf;
template <>
struct TypeOf<Tensor> {
  using Passed = const Tensor&;
  using Kept = Tensor;
  static constexpr const char* schema = "Tensor";
};
template <>
struct TypeOf<OptionalTensor> {
  using Passed = const OptionalTensor&;
  using Kept = OptionalTensor;
  static constexpr const char* schema = "Tensor?";
};
template <>
struct TypeOf<TensorList> {
  using Passed = TensorList;
  using Kept = std::vector<Tensor>;
  static constexpr const char* schema = "Tensor[]";
};
template <>
struct TypeOf<std::string_view> {
  using Passed = std::string_view;
  using Kept = std::string;
  static constexpr const char* schema = "str";
};
template <>
struct TypeOf<c10::List<bool>> {
  using Passed = const c10::List<bool>&;
  using Kept = c10::List<bool>;
  static constexpr const char* schema = "bool[]";
};

template <class T>
using Passed = typename TypeOf<T>::Passed;
template <class T>
using Kept = typename TypeOf<T>::Kept;
template <class>
using Flag = bool;

// The value of a field that nobody gives.
template <class T>
T unset() {
  if constexpr (std::is_reference_v<T>) {
    static const std::remove_cvref_t<T> none{};
    return none;
  } else {
    return T{};
  }
}

#define RNNEXT_FIELD(type, name, ...) Field<type> name = unset<Field<type>>();
#define RNNEXT_PASS(type, name, ...) , s.name
// A struct with a field for each item of a list. spread(s, f): f(field, field...)
#define RNNEXT_STRUCT(Name, LIST)                               \
  template <template <class> class Field>                       \
  struct Name {                                                 \
    LIST(RNNEXT_FIELD)                                          \
    template <class Self, class F>                              \
    static decltype(auto) spread(Self& s, F&& f) {              \
      return std::invoke(std::forward<F>(f) LIST(RNNEXT_PASS)); \
    }                                                           \
  };
RNNEXT_STRUCT(Arguments, RNNEXT_RECURRENCE_ARGUMENTS)
RNNEXT_STRUCT(Results, RNNEXT_RECURRENCE_RESULTS)
RNNEXT_STRUCT(Gradients, RNNEXT_RECURRENCE_GRADIENTS)
#undef RNNEXT_STRUCT
#undef RNNEXT_PASS
#undef RNNEXT_FIELD

template <class Struct, class F>
decltype(auto) spread(Struct& s, F&& f) {
  return Struct::spread(s, std::forward<F>(f));
}

// f(field, field of the other) of each item.
template <class Struct, class Other, class F>
void zip(Struct& s, Other& other, const F& f) {
  spread(s, [&](auto&... a) { spread(other, [&](auto&... b) { (f(a, b), ...); }); });
}

using RecurrenceArguments = Arguments<Passed>;  // of a call that is under way
using KeptArguments = Arguments<Kept>;
using RecurrenceResults = Results<Passed>;
using KeptResults = Results<Kept>;
using RecurrenceGradients = Gradients<Kept>;
using Wanted = Gradients<Flag>;

// f(argument, gradient...) of each gradient, in one or several structs of them.
template <class Arguments, class F, class... Gradients>
void each_gradient(const F& f, Arguments& a, Gradients&... g) {
#define RNNEXT_EACH(type, name, argument) f(a.argument, g.name...);
  RNNEXT_RECURRENCE_GRADIENTS(RNNEXT_EACH)
#undef RNNEXT_EACH
}

// The fields as a call passes them; the struct that keeps them must outlive the result.
inline RecurrenceArguments passed(const KeptArguments& a) {
  return spread(a, [](const auto&... each) { return RecurrenceArguments{each...}; });
}
inline const RecurrenceArguments& passed(const RecurrenceArguments& a) { return a; }
inline const RecurrenceResults& passed(const RecurrenceResults& r) { return r; }
inline RecurrenceResults passed(const KeptResults& r) {
  return spread(r, [](const auto&... each) { return RecurrenceResults{each...}; });
}
inline const Tensor& own(const Tensor& t) { return t; }
inline const OptionalTensor& own(const OptionalTensor& t) { return t; }
inline std::vector<Tensor> own(TensorList list) { return list.vec(); }
inline std::string own(std::string_view text) { return std::string(text); }
inline const c10::List<bool>& own(const c10::List<bool>& list) { return list; }
inline KeptArguments kept(const RecurrenceArguments& a) {
  return spread(a, [](const auto&... each) { return KeptArguments{own(each)...}; });
}
inline KeptResults kept(const RecurrenceResults& r) {
  return spread(r, [](const auto&... each) { return KeptResults{own(each)...}; });
}

// The tensors in a field, to read or to replace.
inline std::span<Tensor> tensors_of(Tensor& t) { return {&t, 1}; }
inline std::span<Tensor> tensors_of(OptionalTensor& t) {
  return given(t) ? tensors_of(*t) : std::span<Tensor>();
}
inline std::span<Tensor> tensors_of(std::vector<Tensor>& list) { return list; }
inline std::span<Tensor> tensors_of(std::string&) { return {}; }
inline std::span<Tensor> tensors_of(c10::List<bool>&) { return {}; }

// The fields with f(tensor) in place of each tensor.
template <class Struct, class F>
Struct with_each(Struct s, const F& f) {
  const auto replace = [&](auto& field) {
    for (Tensor& t : tensors_of(field)) t = f(t);
  };
  spread(s, [&](auto&... each) { (replace(each), ...); });
  return s;
}
// All but batch_sizes, which are sizes and no data.
template <class F>
KeptArguments with_each(KeptArguments a, const F& f) {
  OptionalTensor batch_sizes = std::exchange(a.batch_sizes, std::nullopt);
  a = with_each<KeptArguments, F>(std::move(a), f);
  a.batch_sizes = std::move(batch_sizes);
  return a;
}

}  // namespace rnnext
