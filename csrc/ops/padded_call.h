// A call's rows and states for torch's operations: each step of each sequence, and the one before.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "ops/autograd.h"
#include "ops/check.h"

namespace rnnext {

// A call whose rows are [T, B, ...]: packed rows are padded.
struct PaddedCall {
  KeptArguments a;  // lengths in the place of batch_sizes
  int64_t D;
  c10::SymInt H, T, B;
  Nonlinearity nonlinearity;
  Cell cell;
  int states;
  Tensor active;    // [T,B,1] which steps exist; undefined: all
  Tensor position;  // [N] t * B + b of each row of a packed call; undefined: it is not packed

  explicit PaddedCall(KeptArguments arguments) : a(std::move(arguments)) {
    D = static_cast<int64_t>(a.weight_hh.size());
    H = a.weight_hh[0].sym_size(1);
    nonlinearity = parse_nonlinearity(a.nonlinearity);
    cell = parse_cell(a.cell);
    states = traits_of(cell).states;
    Tensor& rows = given(a.index) ? *a.index : a.input;
    if (given(a.batch_sizes)) {
      // In torch's operations, since a transform of torch.func may have wrapped the sizes.
      const Tensor& sizes = *a.batch_sizes;
      T = sizes.size(0);
      B = T > 0 ? sizes[0].item<int64_t>() : 0;
      const Tensor present = at::arange(B, at::kLong) < sizes.unsqueeze(1);
      position = present.reshape(-1).nonzero().squeeze(1).to(a.weight_hh[0].device());
      rows = pad(rows);
      a.lengths = pad(at::ones_like(position)).sum(0);
      a.batch_sizes.reset();
    } else {
      T = rows.sym_size(0);
      B = rows.sym_size(1);
    }
    if (given(a.lengths)) active = step() < a.lengths->view({1, -1, 1});
  }
  // Pads the rows of a packed call with zeros, and drops the padding again.
  Tensor pad(const Tensor& rows) const {
    if (!position.defined()) return rows;
    std::vector<c10::SymInt> shape = rows.sym_sizes().vec();
    shape[0] = T * B;
    const Tensor flat = at::zeros_symint(shape, rows.options()).index_copy(0, position, rows);
    return flat.unflatten_symint(0, {T, B});
  }
  Tensor drop(const Tensor& rows) const {
    if (!position.defined()) return rows;
    return rows.reshape_symint({T * B, -1}).index_select(0, position);
  }

  // [T,1,1] the number of each step.
  Tensor step() const {
    return at::arange(T, a.weight_hh[0].options().dtype(at::kLong)).view({-1, 1, 1});
  }
  // The number of steps. (A trace keeps the number from when it was traced.)
  int64_t steps() const { return T.guard_int(__FILE__, __LINE__); }
  // The input's rows, [T,B,I] or [T,B,D*G*H]. Values past a sequence's end, NaN included, must not
  // reach any derivative, so they are zeros.
  Tensor input() const {
    Tensor x = a.input;
    if (given(a.index))
      x = x.index_select(0, a.index->reshape(-1)).view_symint({T, B, x.sym_size(1)});
    return active.defined() ? at::where(active, x, 0) : x;
  }
  // [T,B,D*H] the noise that is added to the pre-activations; undefined: none.
  Tensor noise() const {
    if (a.noise.empty()) return Tensor();
    const Tensor scale = at::cat(a.noise);
    return call_op<NoiseOp>(*a.noise_key, T, B, D, H).to(scale.scalar_type()) * scale;
  }
  // The columns of direction d, in rows of D parts.
  Tensor of(const Tensor& rows, int64_t d) const { return rows.chunk(D, -1)[d]; }
  Tensor zeros() const { return at::zeros_symint({B, H}, a.weight_hh[0].options()); }
  // [B,H] of direction d's states hx or reset_state, the first or another one.
  Tensor state(const OptionalTensor& all, int64_t d, int64_t which = 0) const {
    return given(all) ? (*all)[which * D + d] : zeros();
  }
  variable_list each_state(const OptionalTensor& all, int64_t d) const {
    variable_list own;
    for (int64_t s = 0; s < states; ++s) own.push_back(state(all, d, s));
    return own;
  }
  // [T,B,1] the steps before which direction d drops the state; undefined if there are none.
  Tensor restarts(int64_t d) const {
    if (!given(a.reset)) return Tensor();
    Tensor marks = a.reset->unsqueeze(2);
    if (active.defined()) marks = marks.logical_and(active);
    if (!a.reverse[d] || T == 0) return marks;
    return at::cat({marks.narrow_symint(0, 1, T - 1), at::zeros_like(marks.narrow(0, 0, 1))});
  }
  Tensor output_before(const Tensor& output, int64_t d) const {
    Tensor h = of(output, d);
    if (T == 0) return h;
    const Tensor start = state(a.hx, d).unsqueeze(0);
    Tensor before;
    if (!a.reverse[d]) {
      before = at::cat({start, h.narrow_symint(0, 0, T - 1)});
    } else {
      before = at::cat({h.narrow_symint(0, 1, T - 1), start});
      if (given(a.lengths))
        before = at::where(step() == a.lengths->view({1, -1, 1}) - 1, start, before);
    }
    const Tensor anew = restarts(d);
    return anew.defined() ? at::where(anew, state(a.reset_state, d), before) : before;
  }
};

}  // namespace rnnext
