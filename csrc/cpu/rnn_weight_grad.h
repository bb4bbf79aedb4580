// The gradients of W_hh, W_ih and the biases: sums over all rows of the gradient of the
// pre-activations times the state, or the features, that the row started from. Each worker owns
// some rows of the weights.
#pragma once

namespace rnnext::RNNEXT_ISA {

// Where the rows of the right factor lie, one after another: the features, or the state that each
// step started from. A null row is zero.
template <class S>
struct RightRows {
  const Recurrence& p;
  int d;
  bool states;
  int64_t t = 0, b = 0;

  const S* next() {
    while (b == p.batch(t)) ++t, b = 0;
    const int64_t sequence = b++;
    if (t >= p.length(sequence)) return nullptr;
    if (!states) {
      const S* input = static_cast<const S*>(p.input);
      if (p.step_row) return input + (p.first_row(t) + sequence) * p.input_stride_b;
      return input + t * p.input_stride_t + sequence * p.input_stride_b;
    }
    if (p.first_step(d, sequence, t))
      return p.h0 ? static_cast<const S*>(p.h0) + (d * p.B + sequence) * p.H : nullptr;
    const int64_t before = p.reverse[d] ? t + 1 : t - 1;
    return static_cast<const S*>(p.output) + (p.first_row(before) + sequence) * p.D * p.H + d * p.H;
  }
};

template <class S, class F>
struct WeightGradients {  // one worker's share
  using C = Compute<S>;
  static constexpr int64_t kChunkRows = 256;

  const Recurrence& p;
  const RecurrenceGrad& g;
  const RecurrenceGradOut& out;
  int64_t begin, height;  // of this worker's rows of the weights
  F* left;                // [factors of kChunkRows, height] in tiles
  F* line;                // [height], where grad_pre is no row of factors
  F* right;               // [factors of kChunkRows, kPanel]
  C *sum_hh, *sum_ih, *sum_bias;
  const S** right_rows;  // [kChunkRows]
  size_t bytes;

  WeightGradients(const Recurrence& p, const RecurrenceGrad& g, const RecurrenceGradOut& out,
                  int rank, int size, char* scratch)
      : p(p), g(g), out(out) {
    const Range share = part(p.H, rank, size, kTileRows);
    begin = share.begin;
    height = share.end - share.begin;
    const int64_t most = divide_up(divide_up(p.H, kTileRows), size) * kTileRows;
    Arena arena{scratch};
    left = arena.take<F>(factors_in<F>(kChunkRows) * most);
    line = arena.take<F>(kDepth<F> > 1 ? most + kLanes<F> : 0);
    right = arena.take<F>(factors_in<F>(kChunkRows) * kPanel<F>);
    sum_hh = arena.take<C>(most * scratch_stride<C>(p.H));
    sum_ih = arena.take<C>(p.I > 0 ? most * scratch_stride<C>(p.I) : 0);
    sum_bias = arena.take<C>(most);
    right_rows = arena.take<const S*>(kChunkRows);
    bytes = arena.used;
  }

  // Sums in chunks of a fixed size and order, so they do not depend on the number of threads.
  void run() const {
    if (height == 0 || !(out.weight_hh[0] || out.bias[0])) return;
    for (int d = 0; d < p.D; ++d) {
      clear(sum_hh, height * scratch_stride<C>(p.H));
      clear(sum_ih, p.I > 0 ? height * scratch_stride<C>(p.I) : 0);
      clear(sum_bias, height);
      RightRows<S> states{p, d, true}, features{p, d, false};
      for (int64_t n = 0; n < p.rows(); n += kChunkRows) {
        const int64_t rows = min_of(kChunkRows, p.rows() - n);
        pack_left(static_cast<const C*>(g.grad_pre) + n * p.D * p.H + d * p.H + begin, rows);
        if (out.weight_hh[d]) add_product(states, rows, p.H, sum_hh);
        if (out.weight_ih[d] && p.I > 0) add_product(features, rows, p.I, sum_ih);
      }
      if (out.weight_hh[d]) write_rows(sum_hh, p.H, out.weight_hh[d]);
      if (out.weight_ih[d] && p.I > 0) write_rows(sum_ih, p.I, out.weight_ih[d]);
      if (out.bias[d])
        for (int64_t h = 0; h < height; h += kLanes<C>)
          store_some(static_cast<S*>(out.bias[d]) + begin + h, load_some(sum_bias + h, height - h),
                     height - h);
    }
  }
  static void clear(C* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) values[i] = 0;
  }

  // Rows of grad_pre [rows, height] into tiles [height / kTileRows][factors of rows][kTileRows].
  void pack_left(const C* from, int64_t rows) const {
    const int64_t width = p.D * p.H, tile_size = factors_in<F>(rows) * kTileRows;
    for (int64_t n = 0; n < rows; n += kDepth<F>, from += kDepth<F> * width) {
      const bool pair = kDepth<F> > 1 && n + 1 < rows;
      const F* factors = line;
      if constexpr (kDepth<F> == 1) {
        factors = from;
      } else {
        for (int64_t h = 0; h < height; h += kLanes<F>)
          store(line + h,
                Factors<F>::across(from + h, pair ? from + width + h : nullptr, height - h));
      }
      F* tile = left + n / kDepth<F> * kTileRows;
      int64_t h = 0;
      for (; h + kTileRows <= height; h += kTileRows, tile += tile_size)
        __builtin_memcpy(tile, factors + h, kTileRows * sizeof(F));
      for (int r = 0; h < height && r < kTileRows; ++r)
        tile[r] = h + r < height ? factors[h + r] : F{};
      add_to_bias(from);
      if (pair) add_to_bias(from + width);
    }
  }
  void add_to_bias(const C* from) const {
    int64_t h = 0;
    for (; h + kLanes<C> <= height; h += kLanes<C>)
      store(sum_bias + h, load(sum_bias + h) + load(from + h));
    for (; h < height; ++h) sum_bias[h] += from[h];
  }

  void add_product(RightRows<S>& source, int64_t rows, int64_t columns, C* sum) const {
    for (int64_t n = 0; n < rows; ++n) right_rows[n] = source.next();
    int64_t column = 0;
    for (; columns - column > kLanes<C>; column += kPanel<C>)
      add_panel<2>(rows, column, columns, sum);
    if (column < columns) add_panel<1>(rows, column, columns, sum);
  }
  // NV vectors of columns from `column` on.
  template <int NV>
  void add_panel(int64_t rows, int64_t column, int64_t columns, C* sum) const {
    for (int64_t n = 0; n < rows; n += kDepth<F>) {
      const S* row = right_rows[n];
      const S* next = n + 1 < rows ? right_rows[n + 1] : nullptr;
      for (int64_t v = 0; v < NV; ++v) {
        const int64_t j = column + v * kLanes<F>;
        store(right + n / kDepth<F> * kPanel<F> + v * kLanes<F>,
              Factors<F>::across(row ? row + j : nullptr, next ? next + j : nullptr, columns - j));
      }
    }
    const int64_t K = factors_in<F>(rows), stride = scratch_stride<C>(columns);
    for (int64_t h = 0; h < height; h += kTileRows) {
      Vec<C> acc[kTileRows][NV];
      const int tile_rows = static_cast<int>(min_of(kTileRows, height - h));
      C* to = sum + h * stride + column;
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < NV; ++v)
          acc[r][v] = r < tile_rows ? load(to + r * stride + v * kLanes<C>) : Vec<C>{};
      accumulate<true, F, kTileRows, NV>(acc, left + h * K, 0, right, K);
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < NV && r < tile_rows; ++v)
          store(to + r * stride + v * kLanes<C>, acc[r][v]);
    }
  }

  // Rows of scratch into this worker's rows of a gradient [H, columns].
  void write_rows(const C* from, int64_t columns, void* gradient) const {
    S* to = static_cast<S*>(gradient) + begin * columns;
    for (int64_t h = 0; h < height; ++h, from += scratch_stride<C>(columns), to += columns)
      for (int64_t j = 0; j < columns; j += kLanes<C>)
        store_some(to + j, load_some(from + j, columns - j), columns - j);
  }
};

}  // namespace rnnext::RNNEXT_ISA
