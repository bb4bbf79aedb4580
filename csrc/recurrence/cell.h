// The cells, in one list: what a step makes of the pre-activations and the state before. C++ code
// that must know each of them is a template specialised for each, or a switch without a default, so
// that it does not compile if a cell is missing.
#pragma once

#include <string_view>

namespace rnnext {

// With s' the state before, o' the output before, p = W_hh o' + W_ih x + biases the
// pre-activations, a = alpha and f the nonlinearity:
//   elman    s = f(p), the output
//   rate     s = (1 - a) s' + a f(p), the output
//   voltage  s = (1 - a) s' + a p, and the output is f(s)
//   blend    s = f((1 - a) s' + a p), the output
//   gru      r, z = sigmoid(p_r, p_z), n = tanh(n_x + r n_h), s = (1 - z) n + z s', the output; n_x
//            and n_h are the parts of p_n that come from the input and from the state
//   lstm     i, f, o = sigmoid(p_i, p_f, p_o), g = tanh(p_g), c = f c' + i g, and the output is
//            h = o tanh(c); the state is h and c
enum class Cell { elman, rate, voltage, blend, gru, lstm };

struct CellTraits {
  std::string_view name;
  int gates;          // pre-activations of a hidden unit: weights and biases have gates * H rows
  int grads;          // the parts of their gradient, each of H
  int states;         // of [B,H] each, which a step hands to the next
  int saved;          // values of a unit that the backward pass may read besides the output
  bool leaky;         // it mixes its state with the new value by alpha: kFormNames has these cells
  bool keeps_beside;  // voltage's s, an LSTM's c; of other cells the output is the whole state
  bool always_saves;  // the gradient of the pre-activations needs more than the output
};
constexpr CellTraits kCells[] = {
    {"elman", 1, 1, 1, 0, false, false, false},
    {"rate", 1, 1, 1, 1, true, false, true},     // saved: f(p)
    {"voltage", 1, 1, 1, 1, true, true, false},  // p - s'
    {"blend", 1, 1, 1, 1, true, false, false},   // p - s'
    {"gru", 3, 4, 1, 4, false, false, true},     // r, z, n_h, n
    {"lstm", 4, 4, 2, 5, false, true, true},     // i, f, g, o, f c'
};
constexpr const CellTraits& traits_of(Cell cell) { return kCells[static_cast<int>(cell)]; }

constexpr bool is_gated(Cell cell) { return traits_of(cell).gates > 1; }
constexpr bool is_leaky(Cell cell) { return traits_of(cell).leaky; }
constexpr const char* kFormNames[] = {"rate", "voltage", "blend"};

}  // namespace rnnext
