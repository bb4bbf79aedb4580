// The cells: what happens to an accumulated pre-activation.
#pragma once

#include "cpu/gemm/tile.h"
#include "cpu/simd/exp.h"
#include "cpu/simd/tanh.h"
#include "recurrence/call.h"

namespace rnnext::RNNEXT_ISA {

// h = forward(pre), and backward(grad, h), the gradient of pre from the gradient of h and h alone.
// NaN goes through all of them, as in torch. S: what h is stored as, which matters to tanh alone;
// for the others all that is computed alike shares its tiles.
template <class S, Nonlinearity name>
struct Activation;

template <class S>
struct Activation<S, Nonlinearity::tanh> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    if constexpr (kNative<S>) {
      return tanh(pre);
    } else {
      return rounded_tanh<S>(pre);
    }
  }
  static RNNEXT_INLINE V backward(V grad, V h) { return grad * (1 - h * h); }
};

template <class S>
struct Activation<S, Nonlinearity::relu> {
  using V = Vec<Compute<S>>;
  // NaN > 0 is false, so test for the values that become 0.
  static RNNEXT_INLINE V forward(V pre) { return pre <= 0 ? V{} : pre; }
  static RNNEXT_INLINE V backward(V grad, V h) { return h <= 0 ? V{} : grad; }
};

template <class S>
struct Activation<S, Nonlinearity::sigmoid> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    const V e = exp_minus(magnitude(pre));
    return (pre < 0 ? e : V{} + 1) / (1 + e);
  }
  static RNNEXT_INLINE V backward(V grad, V h) { return grad * (h * (1 - h)); }
};

// From 20 up torch takes pre itself, and 1 for the derivative.
template <class S>
struct Activation<S, Nonlinearity::softplus> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) {
    const V h = (pre <= 0 ? V{} : pre) + log_one_plus(exp_minus(magnitude(pre)));
    return pre > 20 ? pre : h;
  }
  static RNNEXT_INLINE V backward(V grad, V h) {
    const V t = tanh(h * Compute<S>(0.5));  // 1 - exp(-h) = 2 t / (1 + t), without cancellation
    return h > 20 ? grad : grad * ((t + t) / (1 + t));
  }
};

template <class S>
struct Activation<S, Nonlinearity::identity> {
  using V = Vec<Compute<S>>;
  static RNNEXT_INLINE V forward(V pre) { return pre; }
  static RNNEXT_INLINE V backward(V grad, V) { return grad; }
};

// A cell takes a block of R rows times NV vectors, from `row` and `column` of a step on:
//
//   forward_block(cell, x, ...)       x: the pre-activations in, the outputs out
//   backward_block(cell, x, h, ...)   x: the gradients of the outputs in, those of the
//                                     pre-activations out; h: the outputs
//
// kLeaks: the state before enters other than through W_hh. Such a cell holds the rows that hand it
// on from step to step.

// h = f(p) and nothing else, inlined.
template <class S, Nonlinearity name>
struct PlainCell {
  static constexpr bool kLeaks = false;
};
template <class S, Nonlinearity name, class V, int R, int NV>
RNNEXT_INLINE void forward_block(const PlainCell<S, name>&, V (&x)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) x[r][j] = Activation<S, name>::forward(x[r][j]);
}
template <class S, Nonlinearity name, class V, int R, int NV>
RNNEXT_INLINE void backward_block(const PlainCell<S, name>&, V (&x)[R][NV], const V (&h)[R][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) x[r][j] = Activation<S, name>::backward(x[r][j], h[r][j]);
}

// Any nonlinearity, chosen at run time, for a whole block in memory. Tiles of tanh and relu have
// theirs inlined; the others share tiles that call this, which spares a third of the build's time
// and costs a pass of the block through the first cache.
template <class C>
struct NamedCell {
  static constexpr bool kLeaks = false;
  Nonlinearity name;
};

template <class S>
struct ForwardVectors {
  Vec<Compute<S>>* x;
  int n;
  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    for (int i = 0; i < n; ++i) x[i] = Activation<S, name>::forward(x[i]);
  }
};
template <class C>
struct BackwardVectors {
  Vec<C>* x;
  const Vec<C>* h;
  int n;
  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    for (int i = 0; i < n; ++i) x[i] = Activation<C, name>::backward(x[i], h[i]);
  }
};
template <class Vectors>
RNNEXT_TILE void for_name(Nonlinearity name, const Vectors& f) {
  RNNEXT_RETURN_FOR(name);
}
// work, whose x is the block, on a copy of it in memory.
template <class Work, class V, int R, int NV>
RNNEXT_INLINE void in_memory(V (&x)[R][NV], Nonlinearity name, Work work) {
  V memory[R][NV];
  copy_block(memory, x);
  work.x = &memory[0][0];
  for_name(name, work);
  copy_block(x, memory);
}
template <class C, class V, int R, int NV>
RNNEXT_INLINE void forward_block(const NamedCell<C>& cell, V (&x)[R][NV]) {
  in_memory(x, cell.name, ForwardVectors<C>{nullptr, R * NV});
}
template <class C, class V, int R, int NV>
RNNEXT_INLINE void backward_block(const NamedCell<C>& cell, V (&x)[R][NV], const V (&h)[R][NV]) {
  in_memory(x, cell.name, BackwardVectors<C>{nullptr, &h[0][0], R * NV});
}

// A leak (recurrence/nonlinearity.h has the forms) over any nonlinearity, both chosen at run time
// for a block in memory, as NamedCell does. What it needs beside the sums are rows, each read or
// written once; the step's own stores are among them, so the block does not come back.
template <class S>
struct LeakyCell {
  using Storage = S;
  using C = Compute<S>;
  static constexpr bool kLeaks = true;
  Form form;
  Nonlinearity name;
  const C* alpha = nullptr;  // [H] and more, to whole panels
  // Rows `stride` apart. Forward, before: the state before; carry: the same rows, if the state goes
  // there. Backward, carry: the gradient of the state before, but for what comes through W_hh, read
  // and then written; mixed: of rate, the gradient of what the leak mixes.
  const C* before = nullptr;
  C *carry = nullptr, *mixed = nullptr;
  int64_t stride = 0;
  // The step's rows of Recurrence::saved, or null, and, backward, of the output.
  S* saved = nullptr;
  const S* output = nullptr;
  int64_t row_stride = 0;
  C* alpha_grad = nullptr;  // [H] and more: its sums, or null where alpha needs no gradient
};

// (1 - a) x + a y: y itself where a is 1.
template <class C>
RNNEXT_INLINE Vec<C> mix(Vec<C> a, Vec<C> x, Vec<C> y) {
  return fused<C>(1 - a, x, a * y);
}

// leak.run<Activation, form>() for the form that it is at run time.
template <class Activation, class Leak>
RNNEXT_INLINE void run_form(const Leak& leak, Form form) {
  switch (form) {
    case Form::rate:
      return leak.template run<Activation, Form::rate>();
    case Form::voltage:
      return leak.template run<Activation, Form::voltage>();
    case Form::blend:
      return leak.template run<Activation, Form::blend>();
    case Form::none:
      break;
  }
  __builtin_unreachable();
}

// The end of a tile: x, its sums, and where in the step it lies. `Step` (forward.h) has the rows.
// (Locals: the compiler cannot know that the stores leave the step as it is.)
template <class Step>
struct ForwardLeak {
  using S = typename decltype(Step::cell)::Storage;
  using C = Compute<S>;
  using F = typename Step::F;
  const Step& step;
  Vec<C>* x;
  int rows, vectors;
  int64_t row, column;

  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    run_form<Activation<S, name>>(*this, step.cell.form);
  }
  template <class Activation, Form form>
  RNNEXT_INLINE void run() const {
    const LeakyCell<S>& cell = step.cell;
    const int64_t stride = cell.stride, row_stride = cell.row_stride;
    const int64_t next_stride = step.next_stride, output_stride = step.output_stride;
    const int rows = this->rows, vectors = this->vectors;
    const Vec<C>* at = x;
    const C* before = cell.before + row * stride;
    C* carry = cell.carry ? cell.carry + row * stride : nullptr;
    S* saved = cell.saved ? cell.saved + row * row_stride : nullptr;
    F* next = step.next + row * next_stride;
    C* output = step.output ? step.output + row * output_stride : nullptr;
    // Row by row: down a column the processor would prefetch on, into another thread's rows.
    for (int r = 0; r < rows; ++r, before += stride, next += next_stride) {
      for (int64_t j = column, end = column + vectors * kLanes<C>; j < end; j += kLanes<C>, ++at) {
        const int64_t left = step.H - j;
        const Vec<C> a = load(cell.alpha + j), s = load_some(before + j, left), pre = *at;
        Vec<C> state, out, kept;
        if constexpr (form == Form::rate) {
          kept = Activation::forward(pre);
          out = state = as_stored<S>(mix<C>(a, s, kept));
        } else if constexpr (form == Form::voltage) {
          kept = pre - s;
          state = as_stored<S>(mix<C>(a, s, pre));
          out = Activation::forward(state);
        } else {
          kept = pre - s;
          out = state = as_stored<S>(Activation::forward(mix<C>(a, s, pre)));
        }
        if (carry) store(carry + j, state);
        if (saved) store_some(saved + j, kept, left);
        Factors<F>::store_some(next, j, out, step.next_end - j);
        if (output) store_some(output + j, out, left);
      }
      if (carry) carry += stride;
      if (saved) saved += row_stride;
      if (output) output += output_stride;
    }
  }
};

// With q the gradient of what the leak mixes, s' the state before and c what is mixed with it, the
// gradient of alpha is the sum of q (c - s'). Voltage and blend saved c - s'. Of rate a step adds
// its own q c and takes away, of the step after it, q s', whose s' is the state that this one left.
template <class Step>
struct BackwardLeak {
  using S = typename decltype(Step::cell)::Storage;
  using C = Compute<S>;
  using F = typename Step::F;
  const Step& step;
  const Vec<C>* x;
  int rows, vectors;
  int64_t row, column;

  template <Nonlinearity name>
  RNNEXT_INLINE void operator()(Named<name>) const {
    run_form<Activation<C, name>>(*this, step.cell.form);
  }
  template <class Activation, Form form>
  RNNEXT_INLINE void run() const {
    const LeakyCell<S>& cell = step.cell;
    const int64_t stride = cell.stride, values_stride = step.values_stride;
    const int64_t grad_pre_stride = step.grad_pre_stride, next_stride = step.next_stride;
    const int64_t row_stride = cell.row_stride;
    const int rows = this->rows, vectors = this->vectors;
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = column + v * kLanes<C>, left = step.H - j;
      const Vec<C> a = load(cell.alpha + j), rest = 1 - a;
      const Vec<C>* at = x + v;
      const C* values = step.values + row * values_stride + j;
      C* carry = cell.carry + row * stride + j;
      C* grad_pre = step.grad_pre + row * grad_pre_stride + j;
      F* next = step.next ? step.next + row * next_stride : nullptr;
      C* const alpha_grad = cell.alpha_grad ? cell.alpha_grad + j : nullptr;
      C* mixed = cell.mixed + row * stride + j;
      const S* saved = alpha_grad ? cell.saved + row * row_stride + j : nullptr;
      const S* output = cell.output + row * row_stride + j;
      Vec<C> sum = {};
      for (int r = 0; r < rows; ++r, at += vectors) {
        const Vec<C> h = load_some(values, left), carried = load(carry), grad = *at;
        Vec<C> q, pre;
        if constexpr (form == Form::rate) {
          q = grad + carried;
          pre = Activation::backward(a * q, h);
        } else if constexpr (form == Form::voltage) {
          q = Activation::backward(grad, h) + carried;
          pre = a * q;
        } else {
          q = Activation::backward(grad + carried, h);
          pre = a * q;
        }
        store(carry, rest * q);
        store_some(grad_pre, pre, left);
        if (next) Factors<F>::store(next, j, pre), next += next_stride;
        values += values_stride, carry += stride, grad_pre += grad_pre_stride;
        if (!alpha_grad) continue;
        if constexpr (form == Form::rate) {
          sum += q * h;
          sum -= load(mixed) * load_some(output, left);
          store(mixed, q);
          mixed += stride, output += row_stride;
        } else {
          sum += q * load_some(saved, left);
          saved += row_stride;
        }
      }
      if (alpha_grad) store(alpha_grad, load(alpha_grad) + sum);
    }
  }
};

// The same of a tile's sums.
template <template <class> class Leak, class Step, class V, int R, int NV>
RNNEXT_INLINE void leak_block(const Step& step, const V (&sums)[R][NV], int64_t row,
                              int64_t column) {
  V memory[R][NV];
  copy_block(memory, sums);
  for_name(step.cell.name, Leak<Step>{step, &memory[0][0], R, NV, row, column});
}

// f(cell) for the cell of a call.
template <class S, class F, class C = Compute<S>>
RNNEXT_INLINE void with_cell(const Recurrence& p, const F& f) {
  if (p.form != Form::none) return f(LeakyCell<S>{p.form, p.nonlinearity});
  switch (p.nonlinearity) {
    case Nonlinearity::tanh:
      return f(PlainCell<S, Nonlinearity::tanh>{});
    case Nonlinearity::relu:
      return f(PlainCell<C, Nonlinearity::relu>{});
    default:
      return f(NamedCell<C>{p.nonlinearity});
  }
}

}  // namespace rnnext::RNNEXT_ISA
