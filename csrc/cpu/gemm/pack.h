// Weights as the micro-kernels read them: panels of [K, kPanel] operands.
#pragma once

#include "cpu/gemm/tile.h"

namespace rnnext::RNNEXT_ISA {

// Of vectors i and i + apart: every W numbers of both in turn, U at a time, their first halves to
// the first vector and their second halves to the other.
template <class C, int U, int W, int... L>
RNNEXT_INLINE void interleave(Vec<C> (&x)[kLanes<C>], int apart, std::integer_sequence<int, L...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<C>; ++i) {
    if (i & apart) continue;
    const Vec<C> a = x[i], b = x[i + apart];
    constexpr auto from = [](int lane) {
      return lane / W * W + lane % W / (2 * U) * U + lane % U + lane / U % 2 * kLanes<C>;
    };
    x[i] = __builtin_shufflevector(a, b, from(L)...);
    x[i + apart] = __builtin_shufflevector(a, b, (from(L) + W / 2)...);
  }
}
// Transposes a block, a row in each vector. `halves`, with E numbers in 128 bits: vector i has the
// lower halves of rows i and i + E, vector i + E the upper ones; then come the rows after these.
#if RNNEXT_VECTOR_BYTES == 64 && !defined(RNNEXT_AVX512)
// There are no registers of this size, so numbers are moved one by one.
template <class C>
RNNEXT_NOINLINE void transpose(Vec<C> (&x)[kLanes<C>]) {
  Vec<C> rows[kLanes<C>];
  __builtin_memcpy(rows, x, sizeof rows);
  for (int i = 0; i < kLanes<C>; ++i)
    for (int j = 0; j < kLanes<C>; ++j) x[i][j] = rows[j][i];
}
#else
template <class C, bool halves = false>
RNNEXT_INLINE void transpose(Vec<C> (&x)[kLanes<C>]) {
  constexpr int E = 16 / sizeof(C);  // within 128 bits shuffles are the cheapest
  constexpr std::make_integer_sequence<int, kLanes<C>> lanes;
#ifdef RNNEXT_AVX512
  if constexpr (!halves) interleave<C, 2 * E, 4 * E>(x, E, lanes);
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    const __m512 a = (__m512)x[i], b = (__m512)x[i + 2 * E];
    const __m512 c = (__m512)x[i + E], d = (__m512)x[i + 3 * E];
    x[i] = (Vec<C>)_mm512_shuffle_f32x4(a, b, 0x88);
    x[i + E] = (Vec<C>)_mm512_shuffle_f32x4(a, b, 0xdd);
    x[i + 2 * E] = (Vec<C>)_mm512_shuffle_f32x4(c, d, 0x88);
    x[i + 3 * E] = (Vec<C>)_mm512_shuffle_f32x4(c, d, 0xdd);
  }
#else
  if constexpr (kLanes<C> > E) interleave<C, E, 2 * E>(x, E, lanes);
#endif
  if constexpr (E == 4) interleave<C, 1, 4>(x, 2, lanes);
  interleave<C, 1, E>(x, 1, lanes);
}
#endif

// Loads a block of a stored matrix [.., stride], at most `rows` rows and n values of each, and
// transposes it: x[k] has the operands at k, a row in each lane; the rest is zero. Of tile
// operands, one part; part 1 is the low one.
template <class F, int part = 0, class S>
RNNEXT_INLINE void load_block(Vec<F> (&x)[kLanes<F>], const S* from, int64_t rows, int64_t stride,
                              int64_t n) {
  constexpr int kSteps = kLanes<F> * kKPack<F>;
  if (rows >= kLanes<F> && n >= kSteps) {
#ifdef RNNEXT_AVX512
    // Putting halves of rows together as they are loaded saves a quarter of the shuffles.
    if constexpr (kStoredAsOperands<S, F> && part == 0) {
      constexpr int E = 16 / sizeof(F);
      const auto half = [](const S* at) { return _mm256_loadu_si256((const __m256i_u*)at); };
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<F>; ++i) {
        const S* const low = from + (i / 4 + i % 4 / 2 * 2 * E) * stride + i % 2 * kSteps / 2;
        const __m512i first = _mm512_castsi256_si512(half(low));
        x[i / 4 + i % 4 * E] = (Vec<F>)_mm512_inserti64x4(first, half(low + E * stride), 1);
      }
      return transpose<F, true>(x);
    }
#endif
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<F>; ++i, from += stride)
      x[i] = Operands<F>::template along<part>(from, kSteps);
  } else {
    for (int i = 0; i < kLanes<F>; ++i, from += stride)
      x[i] = i < rows ? Operands<F>::template along<part>(from, n) : Vec<F>{};
  }
  transpose<F>(x);
}

// Operands at k of a matrix [K, columns], a column in each lane from `column` on; row(k) is where
// its row k begins, or null: zeros. Of tile operands, one part.
template <class F, int part = 0, class RowAt>
RNNEXT_INLINE auto across(const RowAt& row, int64_t K, int64_t k, int64_t column, int64_t columns) {
  const auto from = [&](int64_t k) {
    const auto* const first = k < K ? row(k) : nullptr;
    return first ? first + column : nullptr;
  };
  const auto* const next = kKPack<F> > 1 ? from(k + 1) : nullptr;
  return Operands<Lane<F>>::template across<part>(from(k), next, columns - column);
}

// Packs such a matrix's panels [q, end), [operands of K, kPanel] each, `apart` from each other;
// columns past it are 0. Of four panels at once, whose part of a row is some lines on end.
template <class F, int part = 0, class RowAt>
RNNEXT_NOINLINE void pack_rows(RowAt row, int64_t K, int64_t q, int64_t end, int64_t columns, F* to,
                               int64_t apart) {
  constexpr int64_t kBlock = kKAlign<F> / kKPack<F> * kPanel<F>;
  for (int64_t first = q; first < end; first += 4)
    for (int64_t k = 0; k < K; k += kKAlign<F>)
      for (int64_t p = first; p < end && p < first + 4; ++p) {
        F* const at = to + (p - q) * apart + k / kKPack<F> * kPanel<F>;
        Lane<F>* const block = reinterpret_cast<Lane<F>*>(at) + part * kBlock;
        for (int64_t i = 0; i < kBlock; i += kLanes<F>)
          store(block + i, across<F, part>(row, K, k + i / kPanel<F> * kKPack<F>,
                                           p * kPanel<F> + i % kPanel<F>, columns));
      }
  if constexpr (part + 1 < kParts<F>) pack_rows<F, part + 1>(row, K, q, end, columns, to, apart);
}

// How many panels are packed and multiplied at once, if only one product reads them.
template <class F>
constexpr int64_t kStreamed = kTiled<F> ? 2 : 1;

// A matrix that is not transposed is packed in blocks of so many values of k.
constexpr int64_t kBlockRows = 64;

// How many hidden units a gate's part of a row of operands has room for.
template <class F>
constexpr int64_t gate_width(int64_t H) {
  return (H + kKAlign<F> - 1) / kKAlign<F> * kKAlign<F>;
}

// A stored matrix that is packed as panels of [K, columns]: weight, [columns, K] if transposed.
//
// The weight of a gated cell has gates * H stored rows. Transposed, `columns` is H, and a panel of
// hidden units is followed by that of the next gate (GateColumns has the order). Else a row of K =
// gates * gate_width operands has the gates one after the other, beginning with first_gate.
template <class S, class F>
struct Matrix {
  const S* weight;
  int64_t K, columns;
  bool transposed;
  int gates = 1;
  int64_t H = 0;  // of a gated cell's weight that is not transposed
  int first_gate = 0;

  int64_t panels() const {
    return transposed ? GateColumns<F>{columns, gates}.panels() : panels_in<F>(columns);
  }
  int64_t panel_size() const { return operands_in<F>(K) * kPanel<F>; }
  int64_t packed_size() const { return panels() * panel_size(); }

  // The stored row of row k of a matrix that is not transposed; null: zeros.
  const S* row(int64_t k) const {
    if (gates == 1) return weight + k * columns;
    int gate = first_gate;
    for (const int64_t width = K / gates; k >= width; k -= width) ++gate;
    return k < H ? weight + (gate % gates * H + k) * columns : nullptr;
  }
  // The k that has the first stored row, if gates are not padded.
  int64_t wraps_at() const { return K / gates * (gates - first_gate); }

  // Packs panels [q, end) to their places in `packed`; columns past the matrix are 0. Returns
  // whether all values are finite (of a matrix that is not transposed, always true).
  bool pack(F* packed, int64_t q, int64_t end) const {
    bool finite = true;
    if (transposed) {
      for (int64_t p = q; p < end; ++p) finite = pack_panel(p, packed + p * panel_size()) && finite;
    } else {
      F* const to = packed + q * panel_size();
      for (int64_t k = 0; k < K; k += kBlockRows)
        pack_block(k, K - k < kBlockRows ? K - k : kBlockRows, q, end,
                   to + k / kKPack<F> * kPanel<F>, panel_size());
    }
    return finite;
  }
  // The same to dst, panel q first; returns where panel 0 would be.
  const F* pack_panels(int64_t q, int64_t end, F* dst) const {
    pack(dst - q * panel_size(), q, end);
    return dst - q * panel_size();
  }
  // Packs n values of k, at most kBlockRows, from `begin` on, of panels [q, end) of a matrix that
  // is not transposed: the rows of one panel may be pages apart. `to` is where those of panel q go,
  // the next panel's are `apart` from them.
  void pack_block(int64_t begin, int64_t n, int64_t q, int64_t end, F* to, int64_t apart) const {
    const S* rows[kBlockRows];
    for (int64_t k = 0; k < n; ++k) rows[k] = row(begin + k);
    pack_rows<F>([&](int64_t k) { return rows[k]; }, n, q, end, columns, to, apart);
  }

 private:
  // Packs panel p of a transposed matrix; returns whether all values are finite.
  bool pack_panel(int64_t p, F* dst) const {
    bool finite = true;
    for (int j = 0; j < 2; ++j) {
      const auto rows = GateColumns<F>{columns, gates}.vector(2 * p + j);
      Lane<F>* const to = reinterpret_cast<Lane<F>*>(dst) + j * kLanes<F>;
      finite = pack_vector<0>(rows, to) && finite;
      if constexpr (kParts<F> > 1) pack_vector<1>(rows, to + kLanes<F> * kPanel<F>);
    }
    return finite;
  }
  // Packs a vector of columns, of tile operands one part.
  template <int part>
  RNNEXT_NOINLINE bool pack_vector(const typename GateColumns<F>::VectorRows& rows,
                                   Lane<F>* dst) const {
    constexpr int N = kLanes<F>, kPack = kKPack<Lane<F>>, parts = kParts<F> > 1 ? kParts<F> : 1;
    Finite<Lane<F>> finite;
    for (int64_t k = 0; k < K; k += N * kPack, dst += N * parts * kPanel<F>) {
      Vec<Lane<F>> x[N];
      if (rows.mixed) {
        for (int i = 0; i < N; ++i)
          x[i] = Operands<Lane<F>>::template along<part>(weight + rows.row[i] * K + k, K - k);
        transpose<Lane<F>>(x);
      } else {
        load_block<Lane<F>, part>(x, weight + rows.first * K + k, rows.count, K, K - k);
      }
      for (int i = 0; i < N && (kTiled<F> || k + i * kPack < K); ++i) {
        store(dst + i * kPanel<F>, x[i]);
        finite.see(x[i]);
      }
    }
    return finite.all();
  }
};

}  // namespace rnnext::RNNEXT_ISA
