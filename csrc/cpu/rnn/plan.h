// Who does what of one call: a pure function of its sizes, the kernels' shape and the machine.
// Nothing here knows where anything lies (layout) nor does it (run); no ISA, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/rnn/tuning.h"
#include "recurrence/call.h"

namespace rnnext {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Part i of n of the range [0, total), in multiples of `unit`.
struct Range {
  int64_t begin, end;
};
inline Range part(int64_t total, int64_t i, int64_t n, int64_t unit = 1) {
  const int64_t units = divide_up(total, unit);
  return {min_of(total, units * i / n * unit), min_of(total, units * (i + 1) / n * unit)};
}

// What the plan must know of the kernels of one ISA, storage type and engine.
struct KernelShape {
  int storage_bytes, compute_bytes;  // of a stored value, and of a sum
  int factor_bytes, depth;           // of what the engine multiplies, and values along k in it
  int panel;                         // columns of a panel of packed weights
  int tile_rows;                     // of the engine's largest tile
  int64_t sum_block;                 // values along k that it sums apart
  int grain;                         // values along k that a row of factors has a multiple of
  int row_block;                     // rows of factors are read in multiples of it
  bool tiles;                        // AMX tiles multiply
  bool stored_as_factors;            // rows are stored as the factors that are multiplied

  int64_t factors(int64_t k) const { return divide_up(k, grain) * (grain / depth); }
  int64_t panels(int64_t columns) const { return divide_up(columns, panel); }
  int64_t packed_bytes(int64_t K, int64_t columns) const {
    return panels(columns) * panel * factors(K) * factor_bytes;
  }
  // Of W_ih and W_hh, packed for the forward pass.
  int64_t weight_bytes(int64_t I, int64_t H) const {
    return packed_bytes(I, H) + packed_bytes(H, H);
  }
  // Of a row of scratch: see scratch_stride in gemm/tile.h.
  int64_t sums_bytes(int64_t columns) const { return panels(columns) * panel * compute_bytes + 64; }
  bool native() const { return storage_bytes == compute_bytes; }
};

// Sequences need no synchronisation, so directions and sequences are shared out first. A unit is
// one direction of some of the sequences. Its hidden units are split among several members, who
// wait for each other at every step, only where few rows meet large weights.
struct Plan {
  int64_t batch_parts;       // for each direction
  int64_t hidden_parts;      // members of a unit
  int64_t units;             // D * batch_parts
  int64_t pieces = 1;        // of the state: products take up each when its writer is done
  int64_t panel_group = 1;   // members take multiples of it: pieces are cut between blocks of sums
  double cycles = 0;         // of a step's product with the state, estimated
  int64_t unit_rows = 0;     // the most sequences of a unit
  bool own_weights = false;  // each unit packs its own
  bool sorts = false;        // each unit takes its sequences longest first, and only as they last
  bool joined = false;       // one worker has all directions of a sequence, one after the other

  // The most panels of a member.
  int64_t member_panels(int64_t panels) const {
    return divide_up(divide_up(panels, panel_group), hidden_parts) * panel_group;
  }
};

// Where the state lies that one step writes and the next one reads.
enum class Home {
  scratch,  // in buffers of its own, since the rows hold other numbers, or are written by others
  rows,     // in the rows that are written anyway: of the output, or, backward, of the gradient of
            // the pre-activations
};

struct ForwardPlan : Plan {
  bool one_step = false;  // straight from the weights as they lie: rnn/one_step.h
  bool streams = false;   // the only step: each panel is packed when it is multiplied
  // Pre-activations come first, in one product for a chunk of steps: few rows would read W_ih from
  // far memory at every step.
  bool projects = false;
  int64_t chunk_rows = 0;
  Home state = Home::scratch;
  int64_t held_steps = 0;  // in scratch, and then written to the output at once; 0: each by itself
  bool from_hx = false;    // the only step reads hx where it lies
  bool far = false;        // the output is prefetched for writing
};

struct BackwardPlan : Plan {
  bool own_sums = false;  // each unit sums the gradients of the weights over its own rows
  // and keeps the gradient of their pre-activations for a chunk only: nobody else reads it
  bool own_rows = false;
  // So few rows that tiles take all of them at once, and write the gradients of the weights row by
  // row, which else pass through scratch.
  bool direct_sums = false;
  // The features' gradient: each worker packs all of W_ih for itself, or takes some features of all
  // rows, which are few, and multiplies with W_ih as it lies (unpacked.h); else all pack for all.
  bool own_features = false, streams = false;
  int64_t chunk_rows = 0;
  Home state = Home::scratch;
};

// `stacked`: the layer above waits for chunks, so they are as short as a product allows that is not
// bound by reading the weights.
ForwardPlan plan_forward(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                         int threads, bool stacked = false);
// `asked`: sums of the units' own depend on the number of threads, and a gradient must not depend
// on who came; so it is planned for as many as were asked. (Members of a unit must all be there;
// their sums are those of any number.)
BackwardPlan plan_backward(const Recurrence& p, const RecurrenceGradOut& out,
                           const KernelShape& shape, const Machine& machine, int asked,
                           int threads);
// Whether n layers, each over the one before, are better computed as a wavefront, a layer a thread
// (rnn/stack.h), than one after the other by all threads.
bool plan_wavefront(const Recurrence* layers, int n, const KernelShape& shape,
                    const Machine& machine, int threads);
// Threads, of `most`, for a call of as many matrix products (forward: 1).
int plan_threads(const Recurrence& p, int products, int most);

// Rows of the gradient of the pre-activations, and of that of the features, which stay in cache
// while W_ih passes.
inline int64_t feature_block(const Recurrence& p, const KernelShape& shape) {
  const int64_t row_bytes = max_of(p.D * p.H, p.I) * shape.compute_bytes;
  return max_of(1, kFeatureBlockBytes / (row_bytes * shape.tile_rows)) * shape.tile_rows;
}

inline bool wants_weights(const RecurrenceGradOut& out) {
  return out.weight_hh[0] || out.weight_ih[0] || out.bias[0];
}

// The sequences in n parts: as many in each, or, where they differ in length, about as many steps.
struct Split {
  Range own;     // part i
  int64_t most;  // sequences in any part
};
Split split_sequences(const Timeline& p, int64_t i, int64_t n);

// What one worker does of one unit: a direction, sequences [b0, b0 + size), panels [p0, p1).
struct Unit {
  int d;
  int64_t b0, size, p0, p1;
  int group, members;  // workers group * members and up share the sequences
  bool last;           // its panels are the last
  // Where the unit sorts its sequences, longest first: [size] their numbers, and [T] how many of
  // them have each step. Null: it takes them as they come.
  const int64_t *order = nullptr, *present = nullptr;

  int64_t sequence(int64_t i) const { return order ? order[i] : b0 + i; }
};
// Member `slice` of unit u.
Unit unit_of(const Plan& plan, const Recurrence& p, int64_t panels, int64_t u, int64_t slice);

// The unit with its sequences sorted, into order [size] and present [T].
Unit sorted(const Unit& unit, const Timeline& p, int64_t* order, int64_t* present);

// How many of the unit's sequences have a row at step t, that is to be computed.
inline int64_t sequences(const Timeline& p, const Unit& unit, int64_t t) {
  return unit.present ? unit.present[t] : max_of(0, min_of(unit.size, p.batch(t) - unit.b0));
}
// Steps [t, t + n) of a unit, which have `rows` rows and are worked on while these are in cache.
struct Chunk {
  int64_t t, n, rows;
};
// The steps that follow the first `done`, in ascending or descending time: as many as have `limit`
// rows at most, but one at least.
inline Chunk next_chunk(const Timeline& p, const Unit& unit, int64_t done, bool descending,
                        int64_t limit) {
  Chunk chunk{descending ? p.T - done : done, 0, 0};
  while (done + chunk.n < p.T) {
    const int64_t rows = sequences(p, unit, descending ? chunk.t - 1 : chunk.t + chunk.n);
    if (chunk.n > 0 && chunk.rows + rows > limit) break;
    chunk.rows += rows;
    ++chunk.n;
    chunk.t -= descending;
  }
  return chunk;
}

}  // namespace rnnext
