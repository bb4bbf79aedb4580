// The gradients of W_hh, W_ih and the biases: sums over rows of the gradient of the pre-activations
// times the state, or the features, that the row started from.
#pragma once

#include "cpu/rnn/work_items.h"

namespace rnnext::RNNEXT_ISA {

// Goes through a work item's rows step by step, from step t on.
template <class S>
struct RowCursor {
  const Recurrence& p;
  // [D,B,H] what W_hh multiplies in the first step, and in one with a reset; null: zeros
  const S *start_operand, *reset_operand;
  WorkItem item;
  int64_t t, i = 0;

  int64_t row() const { return p.row(t, item.sequence(i)); }
  // The operands of W_hh and of W_ih in the row; null: zeros.
  const S* state() const {
    return state_before<S>(p, start_operand, reset_operand, item.d, t, item.sequence(i));
  }
  const S* features() const {
    const int64_t b = item.sequence(i);
    return !p.inside(b, t) || !p.input.data ? nullptr : input_row<S>(p, t, b);
  }
};

// Sums for hidden units [begin, begin + height) of one direction, and one part of grad_pre. The
// parts share scratch but for their sums: right operands are packed by the first that reads them.
template <class S, class MK>
struct WeightGradients : BackwardCall {
  using F = typename MK::Operand;
  using C = Compute<S>;
  static constexpr int kMR = MK::kMR;
  static constexpr int64_t kLeftStride = scratch_stride<F>(kGradientRows);
  // Packed tiles have room for more rows: of tiles that lie a power of two apart, the lines of one
  // row of grad_pre would all fall into one set of L1d.
  static constexpr int64_t kTileEnd = 2;

  int64_t begin, height;
  int grad_part;
  GateOfPart gate;
  F* left;      // [operands of kGradientRows, height] in tiles; for AMX [height, kLeftStride]
  F* left_row;  // [height], if rows of grad_pre are no rows of operands
  F *right_hh, *right_ih;  // [panels][operands of rows, kPanel]
  // Sums for W_hh and W_ih (of no size with direct_sums). sum_columns, [column_count][column_size],
  // has the bias and, instead of sum_ih, columns of a W_ih of few features: hidden units are in its
  // lanes, most of which would be empty in such a product.
  C *sum_hh, *sum_ih, *sum_columns;
  bool few_features;
  int64_t column_count, column_size;
  const C** grad_rows;  // [kGradientRows] of each, as the cursor goes through them
  const S **state_rows, **feature_rows;
  char* scratch;
  size_t bytes;

  WeightGradients(const BackwardCall& call, const Range& units, int grad_part, char* scratch)
      : BackwardCall(call),
        begin(units.begin),
        height(units.end - units.begin),
        grad_part(grad_part),
        gate(gate_of(p, grad_part)),
        scratch(scratch) {
    Arena arena{scratch};
    const int64_t rows = divide_up(height, kMR) * kMR;  // of whole tiles
    const int64_t K = operands_in<F>(min_of(p.rows(), kGradientRows));
    const auto take_sums = [&](int64_t size) {
      return arena.take<C>(traits_of(p.cell).grads * size) + grad_part * size;
    };
    left = arena.take<F>(rows * (kTiled<F> ? kLeftStride : K + kTileEnd));
    left_row = arena.take<F>(kKPack<F> > 1 && !kTiled<F> ? height + kLanes<F> : 0);
    right_hh = arena.take<F>(panels_in<F>(p.H) * kPanel<F> * K);
    right_ih = arena.take<F>(panels_in<F>(p.I) * kPanel<F> * K);
    few_features = kNative<S> && p.I <= kLanes<C> / 2;
    column_count = 1 + (few_features && weight_ih(0) ? p.I : 0);
    column_size = divide_up(height, kLanes<C>) * kLanes<C>;
    sum_columns = take_sums((1 + (few_features ? p.I : 0)) * column_size);
    sum_hh = take_sums(plan.direct_sums ? 0 : rows * scratch_stride<C>(p.H));
    sum_ih = take_sums(few_features || plan.direct_sums ? 0 : rows * scratch_stride<C>(p.I));
    grad_rows = arena.take<const C*>(kGradientRows);
    state_rows = arena.take<const S*>(kGradientRows);
    feature_rows = arena.take<const S*>(kGradientRows);
    bytes = arena.used;
  }

  // Adds the next `rows` rows of the cursor to the sums of all parts, kGradientRows at a time: each
  // such sum begins with zero, since a float that sums a million rows has lost what the next one
  // adds. If `begins`, the sums begin with these, even if there are none. grad_pre: their rows, or,
  // if its stride is 0, the whole tensor, [N, D*grads*H].
  void add(RowCursor<S> cursor, int64_t rows, Rows<C> grad_pre, bool begins) const {
    const int d = cursor.item.d, parts = traits_of(p.cell).grads;
    for (; rows > 0 || begins; begins = false) {
      const int64_t n = min_of(kGradientRows, rows);
      for (int64_t i = 0; i < n; ++i, ++cursor.i) {
        while (cursor.t < p.T && cursor.i >= sequences(p, cursor.item, cursor.t))
          ++cursor.t, cursor.i = 0;
        const int64_t row = grad_pre.stride ? 0 : (cursor.row() * p.D + d) * parts * p.H;
        grad_rows[i] = grad_pre[i] + row + begin;
        state_rows[i] = cursor.state();
        feature_rows[i] = cursor.features();
      }
      for (int k = 0; k < parts; ++k)
        WeightGradients(*this, {begin, begin + height}, k, scratch).add(d, n, grad_pre, begins);
      rows -= n;
      grad_pre.first = grad_pre[n];
    }
  }

  // Adds hidden units [h0, h1) of another's sums.
  void add(const WeightGradients& other, int64_t h0, int64_t h1) const {
    if (weight_hh(0)) add(other.sum_hh, sum_hh, h0, h1, p.H);
    if (product_ih()) add(other.sum_ih, sum_ih, h0, h1, p.I);
    for (int64_t column = 0; column < column_count; ++column)
      for (int64_t h = h0; h < h1; ++h) column_sums(column)[h] += other.column_sums(column)[h];
  }
  static void add(const C* from, C* to, int64_t h0, int64_t h1, int64_t columns) {
    const int64_t stride = scratch_stride<C>(columns);
    for (int64_t at = h0 * stride; at < h1 * stride; at += stride)
      for (int64_t j = at; j < at + columns; j += kLanes<C>)
        store(to + j, load(to + j) + load(from + j));
  }

  // Writes hidden units [h0, h1) of the gradients of direction d.
  void write(int d, int64_t h0, int64_t h1) const {
    if (weight_hh(d) && !plan.direct_sums) write_rows(sum_hh, p.H, weight_hh(d), h0, h1);
    if (product_ih() && !plan.direct_sums) write_rows(sum_ih, p.I, weight_ih(d), h0, h1);
    if constexpr (kNative<S>)
      for (int64_t column = 1; column < column_count; ++column)
        for (int64_t h = h0; h < h1; ++h)
          weight_ih(d)[(begin + h) * p.I + column - 1] = column_sums(column)[h];
    for (S* const bias : {of_gate(out.bias_ih[d], gate.ih, 1), of_gate(out.bias_hh[d], gate.hh, 1)})
      if (bias) copy(column_sums(0) + h0, bias + begin + h0, h1 - h0);
  }
  void write_rows(const C* sum, int64_t columns, S* gradient, int64_t h0, int64_t h1) const {
    for (int64_t h = h0; h < h1; ++h)
      copy(sum + h * scratch_stride<C>(columns), gradient + (begin + h) * columns, columns);
  }

 private:
  // Adds n rows to the sums of this part. The parts take their turns in order.
  void add(int d, int64_t n, const Rows<C>& grad_pre, bool begins) const {
    if (begins) __builtin_memset(sum_columns, 0, column_count * column_size * sizeof(C));
    for (int64_t i = 0; i < n && grad_part > 0; ++i) grad_rows[i] += p.H;
    add_columns<4>(0, n);  // so many are summed at once
    const bool lies = grad_pre.stride && kKPack<F> == 1;
    const Tiles tiles =
        lies ? Tiles{reinterpret_cast<const F*>(grad_rows[0]), 1, grad_pre.stride} : pack_left(n);
    if (weight_hh(d)) {
      if (gate.hh == 0) pack_right(state_rows, n, p.H, right_hh);
      add_product(tiles, right_hh, n, p.H, sums_of(sum_hh, weight_hh(d), p.H), begins);
    }
    if (product_ih()) {
      if (grad_part == 0) pack_right(feature_rows, n, p.I, right_ih);
      add_product(tiles, right_ih, n, p.I, sums_of(sum_ih, weight_ih(d), p.I), begins);
    }
  }
  // Where tiles keep their sums, and room for how many rows and columns: whole tiles, or fewer.
  struct Sums {
    Rows<C> at;
    int64_t rows, columns;
    template <int R, int NV>
    RNNEXT_INLINE void finish(const Vec<C> (&sums)[R][NV], int64_t row, int64_t column) const {
      if (row + R <= rows) return store_tile(sums, at[row], at.stride, column, columns);
      C* const to = at[row] + column;
      Vec<C> memory[R][NV];
      copy_block(memory, sums);
      for (int64_t r = 0; r < rows - row; ++r)
        for (int j = 0; j < NV; ++j)
          store_some(to + r * at.stride + j * kLanes<C>, memory[r][j],
                     columns - column - j * kLanes<C>);
    }
  };
  Sums sums_of(C* sum, S* gradient, int64_t columns) const {
    if (plan.direct_sums)
      return {{reinterpret_cast<C*>(gradient) + begin * columns, columns}, height, columns};
    return {{sum, scratch_stride<C>(columns)}, height + kMR, columns + kPanel<C>};
  }

  // The part's rows of a gradient [gates * H, columns]; null: not wanted, or the part has none.
  S* of_gate(void* gradient, int gate, int64_t columns) const {
    return gradient && gate >= 0 ? static_cast<S*>(gradient) + gate * p.H * columns : nullptr;
  }
  S* weight_ih(int d) const { return of_gate(out.weight_ih[d], gate.ih, p.I); }
  S* weight_hh(int d) const { return of_gate(out.weight_hh[d], gate.hh, p.H); }
  bool product_ih() const { return weight_ih(0) && p.I > 0 && !few_features; }
  C* column_sums(int64_t column) const { return sum_columns + column * column_size; }
  // The factor of row n's gradient for this column.
  C multiplier(int64_t column, int64_t n) const {
    if constexpr (kNative<S>)
      if (column > 0) return feature_rows[n] ? feature_rows[n][column - 1] : 0;
    return 1;
  }
  // Adds to columns `first` and up, N at once, then to the rest.
  template <int N>
  void add_columns(int64_t first, int64_t rows) const {
    constexpr int NV = N == 1 ? 4 : 2;
    for (; column_count - first >= N; first += N) {
      int64_t h = 0;
      for (; h + NV * kLanes<C> <= height; h += NV * kLanes<C>) add_columns<N, NV>(first, rows, h);
      for (; h < height; h += kLanes<C>) add_columns<N, 1>(first, rows, h);
    }
    if constexpr (N > 1) add_columns<N - 1>(first, rows);
  }
  template <int N, int NV>
  RNNEXT_NOINLINE void add_columns(int64_t first, int64_t rows, int64_t h) const {
    Vec<C> sums[N][NV];
    for_block<N, NV>([&](int i, int v) { sums[i][v] = Vec<C>{}; });
    for (int64_t n = 0; n < rows; ++n)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const C* const from = grad_rows[n] + h + v * kLanes<C>;
        const Vec<C> grad = NV > 1 ? load(from) : load_some(from, height - h);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i)
          FmaMicroKernel<C>::multiply_add(sums[i][v], multiplier(first + i, n), grad);
      }
    for_block<N, NV>([&](int i, int v) {
      C* const to = column_sums(first + i) + h + v * kLanes<C>;
      store(to, load(to) + sums[i][v]);
    });
  }
  // Left operands. Those of hidden unit h begin at first + h * step and lie `stride` apart.
  struct Tiles {
    const F* first;
    int64_t step, stride;
  };
  // Packs grad_rows [rows, height] into tiles [height / kMR][operands of rows + kTileEnd][kMR].
  Tiles pack_left(int64_t rows) const {
    if constexpr (kTiled<F>) {
      // Hidden units are rows, as the left operands of any product are.
      for (int64_t h = 0; h < divide_up(height, kMR) * kMR; h += kLanes<C>)
        for (int64_t n = 0; n < rows; n += kKAlign<F>) pack_left_part<0>(rows, h, n);
      return {left, kLeftStride, kLeftStride};
    } else {
      const int64_t step = operands_in<F>(rows) + kTileEnd;
      for (int64_t n = 0; n < rows; n += kKPack<F>) {
        const C* row = grad_rows[n];
        const C* next = kKPack<F> > 1 && n + 1 < rows ? grad_rows[n + 1] : nullptr;
        const F* operands = left_row;
        if constexpr (kKPack<F> == 1) {
          operands = row;
        } else {
          for (int64_t h = 0; h < height; h += kLanes<F>)
            store(left_row + h,
                  Operands<F>::across(row + h, next ? next + h : nullptr, height - h));
        }
        F* tile = left + n / kKPack<F> * kMR;
        int64_t h = 0;
        for (; h + kMR <= height; h += kMR, tile += step * kMR)
          __builtin_memcpy(tile, operands + h, kMR * sizeof(F));
        for (int r = 0; h < height && r < kMR; ++r)
          tile[r] = h + r < height ? operands[h + r] : F{};
      }
      return {left, step, kMR};
    }
  }

  static void pack_right(const S** right_rows, int64_t rows, int64_t columns, F* right) {
    pack_rows<F>([right_rows](int64_t n) { return right_rows[n]; }, rows, 0, panels_in<F>(columns),
                 columns, right, operands_in<F>(rows) * kPanel<F>);
  }
  void add_product(const Tiles& tiles, const F* right, int64_t rows, int64_t columns,
                   const Sums& sums, bool begins) const {
    const int64_t K = operands_in<F>(rows);
    if (plan.direct_sums) {
      for (int64_t h = 0; h < height; h += kMR)
        for (int64_t column = 0; column < columns; column += kPanel<C>)
          add_tile(tiles, right + column * K, K, h, column, columns, sums, begins, kPanel<C>);
      return;
    }
    const int64_t ahead = kMR * sums.at.stride;
    for (int64_t column = 0; column < columns; column += kPanel<C>)
      for (int64_t h = 0; h < height; h += kMR)
        add_tile(tiles, right + column * K, K, h, column, columns, sums, begins, ahead);
  }
  // The next tile's sums, `ahead` of these, may be far in memory: they are prefetched meanwhile.
  void add_tile(const Tiles& tiles, const F* panel, int64_t K, int64_t h, int64_t column,
                int64_t columns, const Sums& sums, bool begins, int64_t ahead) const {
    if constexpr (kTiled<F>) {
      add_amx_tiles(tiles.first + h * tiles.step, panel, K, sums.at[h] + column, sums.at.stride,
                    begins);
    } else if (columns - column > kLanes<C>) {
      add_tile<2>(tiles, panel, K, h, column, sums, begins, ahead);
    } else {
      add_tile<1>(tiles, panel, K, h, column, sums, begins, ahead);
    }
  }
  template <int NV>
  RNNEXT_NOINLINE void add_tile(const Tiles& tiles, const F* panel, int64_t K, int64_t h,
                                int64_t column, const Sums& sums, bool begins,
                                int64_t ahead) const {
    typename MK::template Tile<kMR, NV> tile(Extent<kMR, NV>{});
    C* const to = sums.at[h] + column;
    tile.clear();
    if (h + 2 * kMR <= height) Extent<kMR, NV>{}.prefetch(to + ahead, sums.at.stride);
    tile.template add<true>(tiles.first + h * tiles.step, tiles.stride, panel, K);
    if (!begins)
      for_block<kMR, NV>(
          [&](int r, int j) { tile.sums[r][j] += load(to + r * sums.at.stride + j * kLanes<C>); });
    tile.finish(sums, h, column);
  }

  template <int part>
  RNNEXT_NOINLINE void pack_left_part(int64_t rows, int64_t h, int64_t n) const {
    Vec<Pair> x[kLanes<Pair>];
    for (int i = 0; i < kLanes<Pair>; ++i)
      x[i] =
          across<F, part>([&](int64_t row) { return grad_rows[row]; }, rows, n + 2 * i, h, height);
    transpose<Pair>(x);
    for (int i = 0; i < kLanes<Pair>; ++i)
      store(Operands<F>::block(left + (h + i) * kLeftStride, n, part), x[i]);
    if constexpr (part + 1 < kParts<F>) pack_left_part<part + 1>(rows, h, n);
  }
  static RNNEXT_NOINLINE void add_amx_tiles(const F* a, const F* panel, int64_t K, C* to,
                                            int64_t stride, bool begins) {
    typename TileExtent<2, 2>::template Tile<MK> tile(TileExtent<2, 2>{kMR, 2});
    tile.clear();
    tile.add(a, kLeftStride, panel, K);
    if (begins) return tile.store(to, stride);
    alignas(64) C sums[kMR][2 * kLanes<C>];
    tile.store(sums[0], 2 * kLanes<C>);
    for (int r = 0; r < kMR; ++r, to += stride)
      for (int j = 0; j < 2 * kLanes<C>; j += kLanes<C>)
        store(to + j, load(to + j) + load(sums[r] + j));
  }
};

}  // namespace rnnext::RNNEXT_ISA
