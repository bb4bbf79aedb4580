// The nonlinearities in one list. C++ code that must know each of them is generated from it, or is
// a template specialised for each, so that it does not compile if one is missing.
#pragma once

#include <string_view>

#ifdef __CUDACC__
#define RNNEXT_BOTH __host__ __device__  // of a function that both devices call
#else
#define RNNEXT_BOTH __attribute__((always_inline))  // else GCC calls some once a row
#endif

namespace rnnext {

#define RNNEXT_NONLINEARITIES(X) X(tanh) X(relu) X(sigmoid) X(softplus) X(identity)

#define RNNEXT_CASE(name) name,
enum class Nonlinearity { RNNEXT_NONLINEARITIES(RNNEXT_CASE) };
#undef RNNEXT_CASE
#define RNNEXT_CASE(name) #name,
constexpr std::string_view kNonlinearityNames[] = {RNNEXT_NONLINEARITIES(RNNEXT_CASE)};
#undef RNNEXT_CASE

// A nonlinearity that is known at compile time, as a type.
template <Nonlinearity name>
struct Fixed {
  static constexpr Nonlinearity value = name;
};

// Returns f(Fixed<n>{}) where n is the value of `name`. (A macro for the kernels of an ISA, whose
// functions must be defined under its target.)
#define RNNEXT_RETURN_FOR(name)                                     \
  switch (name) { RNNEXT_NONLINEARITIES(RNNEXT_NONLINEARITY_CASE) } \
  __builtin_unreachable()
#define RNNEXT_NONLINEARITY_CASE(name) \
  case Nonlinearity::name:             \
    return f(Fixed<Nonlinearity::name>{});

template <class F>
auto with_nonlinearity(Nonlinearity name, const F& f) -> decltype(f(Fixed<Nonlinearity::tanh>{})) {
  RNNEXT_RETURN_FOR(name);
}

}  // namespace rnnext
