// The two passes of every call that has a leak or resets, or another nonlinearity than tanh and
// relu. They branch at run time. The forms of a leak are those of recurrence/cell.h, with s the
// state, p the pre-activation, f the nonlinearity, and v what goes through W_hh:
//   forward   s_t  = mix(a, s_{t-1}, f(p_t))    v = s       rate
//             s_t  = mix(a, s_{t-1}, p_t)       v = f(s)    voltage
//             s_t  = f(mix(a, s_{t-1}, p_t))    v = s       blend
//   backward  q_t, the gradient of what is mixed; (1 - a) q_t goes on to s_{t-1} past W_hh, and
//             v = dG_t, which is f'(f(p_t)) a q_t, or a q_t
// The state that a leak mixes, or the gradient that goes past W_hh, waits in memory for the next
// step: in h_n, or in `carry`. The vector v may be rounded for the product, or another number. One
// thread reads and writes each element.
#pragma once

#include "cuda/recurrence/pass.cuh"

namespace rnnext::cuda {

// The word of f(j, sums[j]). The loop is not unrolled: two elements at once spill registers. Arrays
// stay in registers with constant indices only, so elements pass through the last place.
template <typename T, int N, class F>
__device__ Word<T, N> one_by_one(const Accumulate<T> (&sums)[N], const F& f) {
  Word<T, N> word = {};
  Accumulate<T> next = sums[0];
#pragma unroll 1
  for (int j = 0; j < N; ++j) {
    const T x = f(j, next);
    if constexpr (N == 2) word.x[0] = word.x[1];
    word.x[N - 1] = x;
    next = sums[N - 1];
  }
  return word;
}

template <typename T>
struct AnyForwardPass : ForwardPass<T, AnyActivation> {
  using Base = ForwardPass<T, AnyActivation>;
  using Base::activation;
  using Base::Base;
  using Base::kSources;
  using Base::p;
  using typename Base::A;

  template <int N>
  __device__ Word<T, N> step(const Place& at, const A (&product)[N],
                             const Word<T, N>* const (&sources)[kSources], const A* bias,
                             const Word<T, N>& before) const {
    if (!at.inside) return before;
    return one_by_one<T>(product, [&](int j, A sum) {
      if (j >= at.units) return from_float<T>(A(0));
      return output(at, j, to_float(sources[0]->x[j]) + bias[j] + sum);
    });
  }

  template <int N>
  __device__ Word<T, N> restart(const Place& at) const {
    Word<T, N> v = {};
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j > 0 && j >= at.units) continue;
      const int64_t i = at.state + j;
      v.x[j] = static_cast<const T*>(p.reset_output)[i];
      if (p.cell == Cell::elman) continue;
      static_cast<T*>(p.h_n)[i] = state_at<T>(p.reset_state, i);
    }
    return v;
  }

 private:
  // The output of element j of a word, from its pre-activation; and the state, to h_n.
  __device__ T output(const Place& at, int j, A pre) const {
    const Cell kind = p.cell;
    T* const state = static_cast<T*>(p.h_n) + at.state + j;
    A a = 1, s = 0, x = pre;
    if (kind != Cell::elman) {
      a = to_float(static_cast<const T*>(p.alpha[0])[at.column + j]);
      s = to_float(*state);
    }
    if (kind == Cell::voltage || kind == Cell::blend) x = mix(a, s, pre);
    if (kind == Cell::voltage) x = to_float(from_float<T>(x));
    const A y = activation.forward(x);
    const T h = from_float<T>(kind == Cell::rate ? mix(a, s, y) : y);
    if (kind != Cell::elman) *state = kind == Cell::voltage ? from_float<T>(x) : h;
    if (p.saved) {
      static_cast<T*>(p.saved)[at.row * width(p) + at.column + j] =
          from_float<T>(kind == Cell::rate ? y : pre - s);
    }
    return h;
  }
};

template <typename T>
struct AnyBackwardPass : BackwardPass<T, AnyActivation> {
  using Base = BackwardPass<T, AnyActivation>;
  using Base::activation;
  using Base::Base;
  using Base::kSources;
  using Base::p;
  using typename Base::A;

  template <int N>
  __device__ Word<T, N> step(const Place& at, const A (&product)[N],
                             const Word<T, N>* const (&sources)[kSources], const A*,
                             const Word<T, N>&) const {
    const bool leaves = at.precedes && p.grad_out.hx;
    if (!at.inside && !leaves) return {};
    return one_by_one<T>(product, [&](int j, A sum) {
      A h = 0;
      if (j >= at.units) return from_float<T>(A(0));
      if (at.inside) {
        h = to_float(sources[0]->x[j]);
        if (p.grad.grad_output) sum += to_float(sources[1]->x[j]);
      }
      return from_float<T>(gradient(at, j, sum, h, leaves));
    });
  }

  template <int N>
  __device__ Word<T, N> restart(const Place& at) const {
#pragma unroll
    for (int j = 0; j < N && p.cell != Cell::elman; ++j) {
      if (j == 0 || j < at.units) static_cast<A*>(p.carry)[at.state + j] = 0;
    }
    return {};
  }

 private:
  // The gradient of the pre-activation of element j of a word; or, at the step before the first,
  // that of hx, which it writes. grad: of the output; h: what f's derivative is computed from.
  __device__ A gradient(const Place& at, int j, A grad, A h, bool leaves) const {
    const Cell kind = p.cell;
    const int64_t i = at.state + j;
    A a = 1, past = 0;  // past: the gradient of the state
    if (kind != Cell::elman) {
      a = to_float(static_cast<const T*>(p.alpha[0])[at.column + j]);
      past = static_cast<A*>(p.carry)[i];
    }
    if (at.ends && p.grad.grad_h_n) past += to_float(static_cast<const T*>(p.grad.grad_h_n)[i]);
    if (kind == Cell::voltage) {
      if (leaves && grad != 0) h = to_float(static_cast<const T*>(p.hx)[i]);
    } else {
      grad += past;
    }
    const A y = activation.backward(kind == Cell::rate ? a * grad : grad, h);
    if (leaves) {
      static_cast<T*>(p.grad_out.hx)[i] = from_float<T>(kind == Cell::voltage ? y + past : grad);
      return 0;
    }
    if (kind == Cell::elman) return y;
    const A q = kind == Cell::rate ? grad : kind == Cell::voltage ? y + past : y;
    static_cast<A*>(p.carry)[i] = (1 - a) * q;
    if (p.mixed) {
      static_cast<T*>(p.mixed)[at.row * width(p) + at.column + j] = from_float<T>(q);
    }
    return kind == Cell::rate ? y : a * q;
  }
};

}  // namespace rnnext::cuda
