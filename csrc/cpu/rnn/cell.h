// The cells: what happens to an accumulated pre-activation.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/tanh.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

// h = forward(pre), and backward(grad, h), the gradient of pre from the gradient of h and h alone.
// NaN goes through all of them, as in torch.
template <class C, Nonlinearity name>
struct Activation;

template <class C>
struct Activation<C, Nonlinearity::tanh> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return tanh(pre); }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return grad * (1 - h * h); }
};

template <class C>
struct Activation<C, Nonlinearity::relu> {
  // NaN > 0 is false, so test for the values that become 0.
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return pre <= 0 ? Vec<C>{} : pre; }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return h <= 0 ? Vec<C>{} : grad; }
};

template <class C>
struct Activation<C, Nonlinearity::sigmoid> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) {
    const Vec<C> e = exp_minus(magnitude(pre));
    return (pre < 0 ? e : Vec<C>{} + 1) / (1 + e);
  }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) { return grad * (h * (1 - h)); }
};

// From 20 up torch takes pre itself, and 1 for the derivative.
template <class C>
struct Activation<C, Nonlinearity::softplus> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) {
    const Vec<C> h = (pre <= 0 ? Vec<C>{} : pre) + log_one_plus(exp_minus(magnitude(pre)));
    return pre > 20 ? pre : h;
  }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) {
    const Vec<C> t = tanh(h * C(0.5));  // 1 - exp(-h) = 2 t / (1 + t), without cancellation
    return h > 20 ? grad : grad * ((t + t) / (1 + t));
  }
};

template <class C>
struct Activation<C, Nonlinearity::identity> {
  static RNNEXT_INLINE Vec<C> forward(Vec<C> pre) { return pre; }
  static RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C>) { return grad; }
};

// What the kernels ask of a cell. It is a value: at(column) is the cell of the hidden units from
// `column` on, whose numbers it may hold. `forward` gives the state, which is the output, and
// `backward` the gradient of the pre-activation from the gradient of the state and the state alone.
template <class C, Nonlinearity name>
struct PlainCell {
  static constexpr bool kCarries = false;        // the state before enters other than through W_hh
  static constexpr bool kOutputIsState = true;   // else both must be kept for backward
  static constexpr bool kHasParameters = false;  // which have gradients

  RNNEXT_INLINE PlainCell at(int64_t) const { return {}; }
  RNNEXT_INLINE Vec<C> forward(Vec<C> pre) const { return Activation<C, name>::forward(pre); }
  RNNEXT_INLINE Vec<C> backward(Vec<C> grad, Vec<C> h) const {
    return Activation<C, name>::backward(grad, h);
  }
};
// Which cells the kernels know: another kind does not compile before they do.
template <class Cell>
constexpr bool kKnown = !Cell::kCarries && Cell::kOutputIsState && !Cell::kHasParameters;

// A block of R rows times NV vectors of columns from `column` on, through the cell.
template <class Cell, class V, int R, int NV>
RNNEXT_INLINE void forward_block(const Cell& cell, V (&sums)[R][NV], int64_t column) {
  static_assert(kKnown<Cell>);
  constexpr int kStep = sizeof(V) / sizeof(sums[0][0][0]);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sums[r][j] = cell.at(column + j * kStep).forward(sums[r][j]);
}
template <class Cell, class V, int R, int NV>
RNNEXT_INLINE void backward_block(const Cell& cell, V (&grad)[R][NV], const V (&h)[R][NV],
                                  int64_t column) {
  static_assert(kKnown<Cell>);
  constexpr int kStep = sizeof(V) / sizeof(grad[0][0][0]);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      grad[r][j] = cell.at(column + j * kStep).backward(grad[r][j], h[r][j]);
}

// Any nonlinearity, chosen at run time, for a whole block in memory. Tiles of tanh and relu have
// theirs inlined; the others share tiles that call this, which spares a third of the build's time
// and costs a pass of the block through the first cache.
template <class C>
struct NamedCell {
  Nonlinearity name;
};
template <class C>
struct ForwardVectors {
  Vec<C>* x;
  int n;
  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    for (int i = 0; i < n; ++i) x[i] = Activation<C, name>::forward(x[i]);
  }
};
template <class C>
struct BackwardVectors {
  Vec<C>* grad;
  const Vec<C>* h;
  int n;
  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    for (int i = 0; i < n; ++i) grad[i] = Activation<C, name>::backward(grad[i], h[i]);
  }
};
template <class Vectors>
RNNEXT_TILE void for_name(Nonlinearity name, const Vectors& f) {
  RNNEXT_RETURN_FOR(name);
}
template <class C, int R, int NV>
RNNEXT_INLINE void forward_block(const NamedCell<C>& cell, Vec<C> (&sums)[R][NV], int64_t) {
  for_name(cell.name, ForwardVectors<C>{&sums[0][0], R * NV});
}
template <class C, int R, int NV>
RNNEXT_INLINE void backward_block(const NamedCell<C>& cell, Vec<C> (&grad)[R][NV],
                                  const Vec<C> (&h)[R][NV], int64_t) {
  for_name(cell.name, BackwardVectors<C>{&grad[0][0], &h[0][0], R * NV});
}

// f(cell) for the cell of a call.
template <class C, class F>
RNNEXT_INLINE void with_cell(const Recurrence& p, const F& f) {
  switch (p.nonlinearity) {
    case Nonlinearity::tanh:
      return f(PlainCell<C, Nonlinearity::tanh>{});
    case Nonlinearity::relu:
      return f(PlainCell<C, Nonlinearity::relu>{});
    default:
      return f(NamedCell<C>{p.nonlinearity});
  }
}

}  // namespace rnnext::RNNEXT_ISA
