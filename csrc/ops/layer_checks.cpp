// The composite ops' checks, whose errors name the shapes that the caller gave.
#include <optional>

#include "ops/check.h"
#include "ops/layers.h"

namespace rnnext {

// Checks the states. (Those of an LSTM are pairs. B is not known for packed sequences.)
static void check_states(const RnnArguments& a, const Sequences& sequences,
                         std::optional<c10::SymInt> B) {
  const size_t each = traits_of(parse_cell(a.cell)).states;
  check_count(a.hx, "hx", each);
  check_count(a.reset_state, "reset_state", each);
  const Tensor& like = a.weights[1];
  if (!like.defined() || like.dim() != 2) return;  // the op refuses it
  const c10::SymInt H = like.sym_size(1);
  const int64_t states = a.num_layers * directions_of(a);
  const auto fits = [&](const Tensor& t, bool batched) {
    const c10::SymIntArrayRef got = t.sym_sizes();
    return got.size() == (batched ? 3 : 2) && got[0] == states && got.back() == H &&
           (!batched || !B || got[1] == *B);
  };
  const auto shape = [&](bool batched) {
    return c10::str("[", states, !batched ? "" : B ? c10::str(", ", *B) : ", B", ", ", H, "]");
  };
  const bool batched = !sequences.unbatched;
  const auto place = [&](size_t s) { return each > 1 ? c10::str("[", s, "]") : ""; };
  for (size_t s = 0; s < a.hx.size(); ++s)
    TORCH_CHECK(fits(a.hx[s], batched), "hx", place(s), " must have shape ", shape(batched),
                ", got ", a.hx[s].sym_sizes());
  for (size_t s = 0; s < a.reset_state.size(); ++s) {
    const Tensor& start = a.reset_state[s];
    TORCH_CHECK_VALUE(fits(start, false) || (batched && fits(start, true)), "reset_state", place(s),
                      " must have shape ", shape(false), batched ? " or " + shape(true) : "",
                      ", got ", start.sym_sizes());
  }
}

Sequences check_layers(const RnnArguments& a) {
  const int64_t D = directions_of(a), per_direction = a.has_biases ? 4 : 2;
  const auto n = static_cast<int64_t>(a.weights.size());  // bounds num_layers before the product
  TORCH_CHECK(a.num_layers > 0 && a.num_layers <= n && n == a.num_layers * D * per_direction,
              "weights must hold ", per_direction, " tensors for each of ", a.num_layers,
              " layers and ", D, " directions, got ", n);
  TORCH_CHECK(a.dropout >= 0 && a.dropout <= 1, "dropout must be between 0 and 1, got ", a.dropout);
  for (const auto& [name, list] : {std::pair("alpha", a.alpha), std::pair("noise", a.noise)})
    TORCH_CHECK(list.empty() || static_cast<int64_t>(list.size()) == a.num_layers * D, name,
                " must hold a tensor for each of ", a.num_layers, " layers and ", D,
                " directions, or none, got ", list.size());
  if (given(a.noise_keys)) {
    TORCH_CHECK(
        !a.noise.empty() && a.noise_keys->dim() == 1 && a.noise_keys->sym_size(0) == a.num_layers,
        "noise_keys must be one for each of ", a.num_layers, " layers that have noise");
    TORCH_CHECK(!a.input.is_cuda(),
                "noise of a generator is drawn on the CPU, and the input is on ", a.input.device());
  }
  const bool packed = given(a.batch_sizes), table = given(a.index);
  const Tensor& rows = table ? *a.index : a.input;
  const int64_t dims = rows.dim() + table;  // as if the rows were features
  TORCH_CHECK(dims == 2 || (dims == 3 && !packed), table ? "index" : "input", " must have ",
              2 - table, " or ", 3 - table, " dimensions (", 2 - table, " if packed), got ",
              rows.dim());
  const Sequences sequences{dims == 2 && !packed, a.batch_first && !packed};
  TORCH_CHECK_VALUE(!(given(a.lengths) && (sequences.unbatched || packed)),
                    "lengths needs a 3-D input: one sequence or a packed input has its own");
  if (given(a.reset)) {
    TORCH_CHECK_VALUE(!packed, "reset must not be given with a packed input");
    const c10::SymIntArrayRef steps = rows.sym_sizes().slice(0, dims - 1);
    TORCH_CHECK_VALUE(a.reset->sym_sizes() == steps, "reset must have shape ", steps, ", got ",
                      a.reset->sym_sizes());
  }
  TORCH_CHECK(rows.sym_size(sequences.batch_first && !sequences.unbatched) > 0,
              "Expected sequence length to be larger than 0 in RNN");
  std::optional<c10::SymInt> B;
  if (!packed && !sequences.unbatched) B = rows.sym_size(sequences.batch_first ? 0 : 1);
  check_states(a, sequences, B);
  TORCH_CHECK(!table || a.noise.empty(), "noise must not be given with an index: it is not shared");
  return sequences;
}

}  // namespace rnnext
