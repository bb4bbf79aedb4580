// The two passes: what happens to a word of the vector v at a step once the product M v is there.
// The resident kernels and the step path share them.
//   forward   M = W_hh    v = h    h_t  = f(row_t + bias + M h_{t-1})
//   backward  M = W_hh^T  v = dG   dG_t = f'(h_t) (grad_output_t + M dG_{t+1})
//
// A pass has
//   kBackward                   whether it goes against the direction
//   further()                   steps past T: the product alone
//   kSources, given(i), source(i, t, b, row, picked)
//                               where the rows begin that a step reads; the directions lie
//                               source_step elements apart there. *picked: the table's row, where
//                               there is a table
//   bias(d, unit)               what is added to the product
//   start(state)                an element of the first v; `state` is that of Place
//   skip(state, x)              that element of a sequence without steps
//   step(at, product, sources, bias, before)
//                               the next v at `at`; `before`: v there
//   store(at, v)                writes it to the tensors of the call
//   kAny                        whether it is of any_pass.cuh, for leaks and resets; then also
//   restart<N>(at)              what goes on in the place of v where replaces() says so
// step() reads bias and sources where the sequence has the step, and `before` where it has not. The
// passes here are those of h_t and dG_t as above; any_pass.cuh has those of all other calls.
#pragma once

#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/launch.h"

namespace rnnext::cuda {

// As many as fill a word of at least 4 bytes, the least that cp.async copies.
template <typename T>
constexpr int kWordSize = sizeof(T) == 2 ? 2 : 1;

// `paired`: two elements of 16 bits lie at a multiple of 4 bytes. `second`: there is a second one.
template <typename T, int N>
__device__ __forceinline__ void store_word(T* to, const Word<T, N>& x, bool paired, bool second) {
  if constexpr (N == 1) {
    *to = x.x[0];
  } else if (paired) {
    *reinterpret_cast<Word<T, N>*>(to) = x;
  } else {
    to[0] = x.x[0];
    if (second) to[1] = x.x[1];
  }
}

// Both are read first: an index that is not constant, or a choice of address, would keep the whole
// call in memory, and the compiler would load its fields again and again.
template <class X>
__device__ X of_direction(const X (&each)[kDirections], int d) {
  const X first = each[0], second = each[1];
  return d ? second : first;
}

// The step t that a pass takes as its s-th in one direction.
template <class Pass, class Int>
__device__ Int time_of(bool reverse, Int T, Int s) {
  return reverse != Pass::kBackward ? T - 1 - s : s;
}

// The step whose mark replaces the state, or gradient, that a pass hands on from step t: forward,
// because that step begins an episode; backward, because t does.
// (StateKernel::prologue handles a mark at 0, which no step of a forward pass precedes.)
template <class Pass, class Int>
__device__ Int mark_of(bool reverse, Int t) {
  return t + (reverse == Pass::kBackward);
}
template <class Pass, class Int>
__device__ bool replaces(Int mark, Int length) {
  return mark >= !Pass::kBackward && mark < length;
}

// Elements of a row of output, and of its gradient.
__device__ __forceinline__ int width(const DeviceCall& p) { return p.D * static_cast<int>(p.H); }
// The same where a step reads them, and between the directions there.
__device__ __forceinline__ int source_step(const DeviceCall& p) {
  return static_cast<int>(p.source_step);
}
__device__ __forceinline__ int source_width(const DeviceCall& p) { return p.D * source_step(p); }

template <typename T>
__device__ T state_at(const void* states, int64_t i) {
  return states ? static_cast<const T*>(states)[i] : from_float<T>(Accumulate<T>(0));
}

// A word at a step: some neighbouring hidden units of a sequence in one direction.
struct Place {
  int64_t row;    // its row of the tensors [N, D*H], where it has one
  int column;     // where it begins there
  int64_t state;  // where it begins in the tensors [D,B,H]
  int units;      // how many of its elements exist, at least 1
  // Of the step: whether the row is in memory, and what Span says.
  bool has_row, inside, ends, precedes;
};

template <class Int>
__device__ void set_step(Place& at, const Timeline& time, const Span<Int>& span, Int t) {
  at.inside = t >= 0 && span.inside(t);
  at.has_row = at.inside || !time.step_row;
  at.ends = span.ends(t);
  at.precedes = span.precedes(t);
}

template <typename T, class Act>
struct ForwardPass {
  using Element = T;
  using A = Accumulate<T>;
  static constexpr bool kBackward = false;
  static constexpr bool kAny = std::is_same_v<Act, AnyActivation>;
  static constexpr int kSources = 1;

  const DeviceCall& p;
  const Act activation;

  __device__ explicit ForwardPass(const DeviceCall& p) : p(p), activation{p.nonlinearity} {}

  __device__ int further() const { return 0; }
  __device__ bool given(int) const { return true; }
  __device__ const T* source(int, int64_t t, int64_t b, int64_t row, const int64_t* picked) const {
    const RowSource& from = p.input;
    return static_cast<const T*>(from.data) +
           (from.index ? *picked * from.stride_b : from.offset(p, t, b, row));
  }
  __device__ A bias(int d, int64_t unit) const {
    if (!p.bias_ih[0]) return A(0);
    return to_float(static_cast<const T*>(of_direction(p.bias_ih, d))[unit]) +
           to_float(static_cast<const T*>(of_direction(p.bias_hh, d))[unit]);
  }

  __device__ T start(int64_t state) const { return state_at<T>(p.hx, state); }
  // Whether the last output is h_n. (Otherwise the prologue and AnyForwardPass::output() write it.)
  __device__ bool ends_with_output() const { return !kAny || p.cell != Cell::voltage; }
  __device__ void skip(int64_t state, T h) const {
    if (ends_with_output()) static_cast<T*>(p.h_n)[state] = h;
  }

  template <int N>
  __device__ Word<T, N> step(const Place& at, const A (&product)[N],
                             const Word<T, N>* const (&sources)[kSources], const A* bias,
                             const Word<T, N>& before) const {
    if (!at.inside) return before;  // the state waits
    Word<T, N> h;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      h.x[j] = from_float<T>(A(0));
      if (j > 0 && j >= at.units) continue;
      h.x[j] = from_float<T>(activation.forward(to_float(sources[0]->x[j]) + bias[j] + product[j]));
    }
    return h;
  }

  template <int N>
  __device__ void store(const Place& at, Word<T, N> h) const {
    const bool second = at.units > 1;
    if (at.inside && at.ends && ends_with_output()) {
      store_word(static_cast<T*>(p.h_n) + at.state, h, false, second);
    }
    if (!at.has_row) return;
    if (!at.inside) h = {};
    T* row = static_cast<T*>(p.output) + at.row * width(p);
    store_word(row + at.column, h, p.paired, second);
  }
};

template <typename T, class Act>
struct BackwardPass {
  using Element = T;
  using A = Accumulate<T>;
  static constexpr bool kBackward = true;
  static constexpr bool kAny = std::is_same_v<Act, AnyActivation>;
  static constexpr int kSources = 2;  // h and the gradient of the output

  const DeviceCall& p;
  const Act activation;

  __device__ explicit BackwardPass(const DeviceCall& p) : p(p), activation{p.nonlinearity} {}

  __device__ int further() const { return p.grad_out.hx != nullptr; }
  __device__ bool given(int i) const { return i == 0 || p.grad.grad_output; }
  __device__ const T* source(int i, int64_t, int64_t, int64_t row, const int64_t*) const {
    return static_cast<const T*>(i == 0 ? p.output : p.grad.grad_output) + row * source_width(p);
  }
  __device__ A bias(int, int64_t) const { return A(0); }
  __device__ T start(int64_t) const { return from_float<T>(A(0)); }
  __device__ void skip(int64_t, T) const {}  // step() does it, at the one that precedes

  template <int N>
  __device__ Word<T, N> step(const Place& at, const A (&product)[N],
                             const Word<T, N>* const (&sources)[kSources], const A*,
                             const Word<T, N>&) const {
    const bool joins = at.ends && p.grad.grad_h_n, leaves = at.precedes && p.grad_out.hx;
    Word<T, N> dg;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      dg.x[j] = from_float<T>(A(0));
      if (j > 0 && j >= at.units) continue;
      A dh = product[j];
      if (joins) dh += to_float(static_cast<const T*>(p.grad.grad_h_n)[at.state + j]);
      if (leaves) static_cast<T*>(p.grad_out.hx)[at.state + j] = from_float<T>(dh);
      if (!at.inside) continue;
      if (p.grad.grad_output) dh += to_float(sources[1]->x[j]);
      dg.x[j] = from_float<T>(activation.backward(dh, to_float(sources[0]->x[j])));
    }
    return dg;
  }

  template <int N>
  __device__ void store(const Place& at, const Word<T, N>& dg) const {
    if (!at.has_row) return;
    T* row = static_cast<T*>(p.grad_out.pre) + at.row * width(p);
    store_word(row + at.column, dg, p.paired, at.units > 1);
  }
};

}  // namespace rnnext::cuda
