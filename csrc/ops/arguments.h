// Arguments and results of the recurrence's ops: each list once, and what follows from it.
//
// One argument, alpha, on its way: its row below makes it a parameter of the schemas (library.cpp)
// and signatures (signatures.h), and a field of Arguments. Python's list arrives as a TensorList,
// in RecurrenceArguments; what outlives the call, such as a node of autograd, has KeptArguments,
// where it is a vector. check.h checks it, parse.h stores its pointers in the kernels' struct, and
// loop.cpp computes with it in torch's operations. zip() visits it wherever all arguments are
// treated alike: autograd saves and restores it, vmap looks for mapped dimensions in it, and
// ensembles split it. It also has a row among the gradients, so autograd knows which result of the
// backward op is its gradient, and Wanted has a flag that asks for it.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

namespace rnnext {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

inline bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }

// Which dimension of an argument or a result is the batch of sequences. rows: the second, or the
// first if the rows are packed. states: the second. first: the first. shared: none, since all
// sequences share it. none: none, since it holds no data of sequences.
enum class Batch { rows, states, first, shared, none };

// The value of `reverse` for one direction or two. It is made once, since a list lives on the heap.
inline const c10::List<bool>& directions(int64_t D) {
  static const c10::List<bool> one({false}), two({false, true});
  return D == 1 ? one : two;
}

// X(type, name, where its batch is) of each argument of a call.
#define RNNEXT_RECURRENCE_ARGUMENTS(X)    \
  X(Tensor, input, rows)                  \
  X(OptionalTensor, hx, states)           \
  X(TensorList, weight_ih, shared)        \
  X(TensorList, weight_hh, shared)        \
  X(TensorList, bias_ih, shared)          \
  X(TensorList, bias_hh, shared)          \
  X(OptionalTensor, index, rows)          \
  X(OptionalTensor, lengths, first)       \
  X(OptionalTensor, batch_sizes, none)    \
  X(OptionalTensor, reset, states)        \
  X(OptionalTensor, reset_state, states)  \
  X(TensorList, alpha, shared)            \
  X(std::string_view, cell, none)         \
  X(TensorList, noise, shared)            \
  X(OptionalTensor, noise_key, shared)    \
  X(std::string_view, nonlinearity, none) \
  X(c10::List<bool>, reverse, none)

// The number of arguments. A new one must not be ignored in silence: nothing compiles until those
// who read arguments by name take it, or refuse it, and assert its number.
#define RNNEXT_ONE(...) +1
constexpr int kArgumentCount = RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_ONE);
#undef RNNEXT_ONE

// X(type, name, where its batch is) of what the backward op takes before the arguments.
#define RNNEXT_BACKWARD_INPUTS(X)      \
  X(OptionalTensor, grad_output, rows) \
  X(OptionalTensor, grad_h_n, states)  \
  X(Tensor, output, rows)              \
  X(TensorList, saved, rows)

// X(type, name) of each gradient that the backward op can return; its argument has the same name.
#define RNNEXT_RECURRENCE_GRADIENTS(X) \
  X(Tensor, input)                     \
  X(Tensor, hx)                        \
  X(TensorList, weight_ih)             \
  X(TensorList, weight_hh)             \
  X(TensorList, bias_ih)               \
  X(TensorList, bias_hh)               \
  X(Tensor, reset_state)               \
  X(TensorList, alpha)

// X(type, name) of each argument of the op rnn, which computes nn.RNN, nn.GRU or nn.LSTM, and of
// rnn_cell, which computes torch's cells. States are lists: (h,) or (h, c), or none for zeros.
#define RNNEXT_RNN_ARGUMENTS(X)  \
  X(Tensor, input)               \
  X(TensorList, hx)              \
  X(TensorList, weights)         \
  X(bool, has_biases)            \
  X(int64_t, num_layers)         \
  X(bool, bidirectional)         \
  X(bool, batch_first)           \
  X(double, dropout)             \
  X(bool, training)              \
  X(OptionalTensor, index)       \
  X(OptionalTensor, lengths)     \
  X(OptionalTensor, batch_sizes) \
  X(OptionalTensor, reset)       \
  X(TensorList, reset_state)     \
  X(TensorList, alpha)           \
  X(std::string_view, cell)      \
  X(TensorList, noise)           \
  X(OptionalTensor, noise_keys)  \
  X(std::string_view, nonlinearity)
#define RNNEXT_CELL_ARGUMENTS(X) \
  X(Tensor, input)               \
  X(TensorList, hx)              \
  X(Tensor, weight_ih)           \
  X(Tensor, weight_hh)           \
  X(OptionalTensor, bias_ih)     \
  X(OptionalTensor, bias_hh)     \
  X(std::string_view, cell)      \
  X(std::string_view, nonlinearity)

// The types of each: as a call passes it, as it is kept after the call, and as a schema names it.
template <class T>
struct TypeOf;
#define RNNEXT_TYPE_OF(type, passed, kept, name) \
  template <>                                    \
  struct TypeOf<type> {                          \
    using Passed = passed;                       \
    using Kept = kept;                           \
    static constexpr const char* schema = name;  \
  };
RNNEXT_TYPE_OF(Tensor, const Tensor&, Tensor, "Tensor")
RNNEXT_TYPE_OF(OptionalTensor, const OptionalTensor&, OptionalTensor, "Tensor?")
RNNEXT_TYPE_OF(TensorList, TensorList, std::vector<Tensor>, "Tensor[]")
RNNEXT_TYPE_OF(std::string_view, std::string_view, std::string, "str")
RNNEXT_TYPE_OF(c10::List<bool>, const c10::List<bool>&, c10::List<bool>, "bool[]")
RNNEXT_TYPE_OF(bool, bool, bool, "bool")
RNNEXT_TYPE_OF(int64_t, int64_t, int64_t, "int")
RNNEXT_TYPE_OF(double, double, double, "float")
#undef RNNEXT_TYPE_OF

template <class T>
using Passed = typename TypeOf<T>::Passed;
template <class T>
using Kept = typename TypeOf<T>::Kept;
template <class>
using Flag = bool;
template <class>
using BatchPlace = Batch;

// The default of an omitted field.
template <class Field>
inline const std::remove_cvref_t<Field> absent{};

template <class...>
struct Types;

// A struct with a field for each item of a list. Its zip(f, s...) is f(field of each struct...)
// item by item. One that keeps its fields converts to one that passes them, and must outlive that.
#define RNNEXT_FIELD(type, name, ...) Field<type> name = absent<Field<type>>;
#define RNNEXT_TYPE(type, ...) , type
#define RNNEXT_NAME(type, name, ...) name,
#define RNNEXT_VISIT(type, name, ...) f(s.name...);
#define RNNEXT_STRUCT(Name, LIST)                 \
  template <template <class> class Field>         \
  struct Name {                                   \
    using AsKept = Name<Kept>;                    \
    using Fields = Types<void LIST(RNNEXT_TYPE)>; \
    LIST(RNNEXT_FIELD)                            \
    template <class F, class... Struct>           \
    static void zip(const F& f, Struct&... s) {   \
      LIST(RNNEXT_VISIT)                          \
    }                                             \
    operator Name<Passed>() const                 \
      requires std::is_same_v<Name, AsKept>       \
    {                                             \
      return {LIST(RNNEXT_NAME)};                 \
    }                                             \
  };
RNNEXT_STRUCT(Arguments, RNNEXT_RECURRENCE_ARGUMENTS)
RNNEXT_STRUCT(BackwardFields, RNNEXT_BACKWARD_INPUTS)
RNNEXT_STRUCT(Gradients, RNNEXT_RECURRENCE_GRADIENTS)
RNNEXT_STRUCT(RnnFields, RNNEXT_RNN_ARGUMENTS)
RNNEXT_STRUCT(CellFields, RNNEXT_CELL_ARGUMENTS)
#undef RNNEXT_STRUCT
#undef RNNEXT_VISIT
#undef RNNEXT_NAME
#undef RNNEXT_TYPE
#undef RNNEXT_FIELD

// f(field of each struct...) for each item of their list, or f(field) of what an op returns.
template <class F, class Struct, class... Others>
void zip(const F& f, Struct& s, Others&... others) {
  Struct::zip(f, s, others...);
}
template <class F, class... T>
void zip(const F& f, std::tuple<T...>& results) {
  std::apply([&](auto&... field) { (f(field), ...); }, results);
}

using RecurrenceArguments = Arguments<Passed>;  // of a call that is under way
using KeptArguments = Arguments<Kept>;
using BackwardInputs = BackwardFields<Passed>;
using KeptBackwardInputs = BackwardFields<Kept>;
using RecurrenceGradients = Gradients<Kept>;
using Wanted = Gradients<Flag>;
using RnnArguments = RnnFields<Passed>;
using CellArguments = CellFields<Passed>;

#define RNNEXT_PLACE(type, name, place, ...) Batch::place,
inline const Arguments<BatchPlace> kArgumentPlaces{RNNEXT_RECURRENCE_ARGUMENTS(RNNEXT_PLACE)};
inline const BackwardFields<BatchPlace> kBackwardPlaces{RNNEXT_BACKWARD_INPUTS(RNNEXT_PLACE)};
#undef RNNEXT_PLACE

// f(argument, gradient...) of each gradient, in one or several structs of them.
template <class F, class... Struct>
void each_gradient(const F& f, Struct&... s) {
  RecurrenceGradients::zip(f, s...);
}

// The tensors in a field of a call, or of a struct that keeps them, to read or to replace.
template <class Field>
auto tensors_of(Field& field) {
  using Type = std::remove_const_t<Field>;
  using Item = std::conditional_t<std::is_const_v<Field>, const Tensor, Tensor>;
  if constexpr (std::is_same_v<Type, Tensor>) {
    return std::span<Item>(&field, 1);
  } else if constexpr (std::is_same_v<Type, OptionalTensor>) {
    return given(field) ? std::span<Item>(&*field, 1) : std::span<Item>();
  } else if constexpr (std::is_same_v<Type, TensorList>) {
    return std::span<const Tensor>(field.data(), field.size());
  } else if constexpr (std::is_same_v<Type, std::vector<Tensor>>) {
    return std::span<Item>(field);
  } else {
    return std::span<Item>();
  }
}

// A struct that keeps what another passes.
template <class Struct>
typename Struct::AsKept kept(const Struct& of) {
  typename Struct::AsKept s;
  const auto keep = [](auto& to, const auto& from) {
    if constexpr (std::is_same_v<decltype(to), std::vector<Tensor>&>) {
      to = from.vec();
    } else {
      to = from;
    }
  };
  zip(keep, s, of);
  return s;
}

// The struct with f(tensor) in place of each tensor, except batch_sizes, which are sizes, not data.
template <class Struct, class F>
Struct with_each(Struct s, const F& f) {
  const void* sizes = nullptr;
  if constexpr (requires { s.batch_sizes; }) sizes = &s.batch_sizes;
  const auto replace = [&](auto& field) {
    if (&field == sizes) return;
    for (Tensor& t : tensors_of(field)) t = f(t);
  };
  zip(replace, s);
  return s;
}

}  // namespace rnnext
