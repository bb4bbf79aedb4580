// The division of one call's work: a pure function of its sizes, the kernels' shape and the
// machine. Nothing here knows where anything lies (that is the layout) or computes it (that is the
// run), and nothing depends on an ISA or on torch.
#pragma once

#include <vector>

#include "cpu/rnn/tuning.h"
#include "recurrence/call.h"

namespace rnnext {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Share i of n of the range [0, total), in multiples of `step`.
struct Range {
  int64_t begin, end;
};
inline Range share_of(int64_t total, int64_t i, int64_t n, int64_t step = 1) {
  const int64_t steps = divide_up(total, step);
  return {min_of(total, steps * i / n * step), min_of(total, steps * (i + 1) / n * step)};
}

// The facts that the plan needs about the kernels of one ISA, storage type and micro-kernel.
struct KernelShape {
  int storage_bytes, compute_bytes;  // of a stored value, and of a sum
  int operand_bytes;                 // of an operand, which the micro-kernel multiplies
  int k_pack;                        // values along k in one operand
  int panel;                         // columns of a panel of packed weights
  int mr;                            // rows of the micro-kernel's largest tile
  int k_align;                       // a row of operands has a multiple of so many values along k
  int row_block;                     // the micro-kernel reads rows of operands in multiples of this
  bool tiles;                        // whether AMX tiles multiply
  bool stored_as_operands;           // whether a stored row is a row of operands as it is

  int64_t operands(int64_t k) const { return divide_up(k, k_align) * (k_align / k_pack); }
  int64_t panels(int64_t columns) const { return divide_up(columns, panel); }
  int64_t packed_bytes(int64_t K, int64_t columns) const {
    return panels(columns) * panel * operands(K) * operand_bytes;
  }
  // Bytes of W_ih and W_hh together, packed for the forward pass.
  int64_t weight_bytes(int64_t I, int64_t H, int gates) const {
    return packed_bytes(I, gates * H) + packed_bytes(H, gates * H);
  }
  // Bytes of a row of scratch: see scratch_stride in gemm/tile.h.
  int64_t sums_bytes(int64_t columns) const { return panels(columns) * panel * compute_bytes + 64; }
  bool native() const { return storage_bytes == compute_bytes; }
  // Whether there are kernels for Weights::unpacked. (Tiles multiply a single step of float32 from
  // more than kOneStepRows sequences on: TileUse.)
  constexpr bool unpacks() const { return !tiles || stored_as_operands; }
};

// Which packed weights a pass multiplies with.
enum class Weights {
  shared,    // those that all threads pack for all groups, one copy for each direction
  own,       // those that each group packs for itself
  given,     // Recurrence::packed_weights
  streamed,  // one step's: a panel is packed, or read as it lies, just before it is multiplied
  unpacked,  // none: one step of few sequences reads weights as they lie (rnn/one_step.h)
};
constexpr const char* kWeightsNames[] = {"shared", "own", "given", "streamed", "unpacked"};

// Sequences do not depend on each other, so directions and sequences are shared out first: a group
// has one direction of some of the sequences. Its hidden units are shared among several members,
// who wait for each other at every step, only where few rows meet large weights.
struct Plan {
  int64_t batch_parts;     // for each direction
  int64_t hidden_parts;    // members of a group, a work item each
  int64_t groups;          // D * batch_parts
  int64_t row_block = 1;   // the micro-kernel's: larger groups take multiples of it
  double cycles = 0;       // estimated, of a step: its product with the state, waiting, packing / T
  int64_t group_rows = 0;  // the most sequences that a group takes through all steps at once
  Weights weights = Weights::shared;  // of W_hh alone in the backward pass
  bool sorts = false;  // each group takes its longest sequences first, and leaves padding out
  // Tiles of four rows and more fetch the next panel: weights exceed L2 and Machine::fetch_bytes.
  bool fetches = false;
  double pair_bytes = 0;     // Machine::pair_bytes
  bool joined = false;       // one worker has all directions of a sequence, one after the other
  bool past_caches = false;  // what gates write for a later pass goes past the caches
  bool waits = true;         // threads wait for each other

  // How many copies of packed weights there are.
  int64_t copies(int directions) const {
    return weights == Weights::own ? groups : weights == Weights::shared ? directions : 0;
  }
  // The most blocks of hidden units of a member, of all blocks.
  int64_t member_blocks(int64_t all) const { return divide_up(all, hidden_parts); }
};

// Where the state, or grad_pre, lies: one step writes it, and the next one reads it.
enum class Home {
  scratch,  // in buffers of its own: the rows hold other numbers, or others write in or beside them
  rows,     // in the rows that are written anyway: of the output, or, backward, of the gradient of
            // the pre-activations
};
constexpr const char* kHomeNames[] = {"scratch", "rows"};

struct ForwardPlan : Plan {
  // W_ih x comes first, in one product for a chunk of steps: the rows of one would read W_ih
  // from far memory at every step, or leave AMX tiles empty. (Measured.)
  bool projects = false;
  int64_t chunk_rows = 0;  // of such a chunk, at most
  Home state_home = Home::scratch;
  bool from_hx = false;  // the only step multiplies hx where it lies
  bool far = false;      // the output, and what gates save, is prefetched for writing
};

// When the gradient of the features is computed, and from which W_ih.
enum class FeatureGradient {
  // By each group with each step, from a copy of its own. grad_pre is then kept for a chunk of
  // steps only, since no other thread reads it.
  by_step,
  // After all steps, from all rows. own: each worker packs W_ih for itself. shared: all workers
  // pack it once. streamed: each takes some features of the rows, which are few, and multiplies
  // with W_ih as stream() of rnn/unpacked.h does.
  own,
  shared,
  streamed,
};
constexpr const char* kFeatureGradientNames[] = {"by_step", "own", "shared", "streamed"};

struct BackwardPlan : Plan {
  bool own_sums = false;  // each group sums the gradients of the weights over its own rows
  // There are so few rows that tiles take all of them at once, and write the gradients of the
  // weights where they are returned. Else these pass through scratch.
  bool direct_sums = false;
  FeatureGradient features = FeatureGradient::shared;
  int64_t chunk_rows = 0;
  Home grad_pre_home = Home::scratch;

  bool by_step() const { return features == FeatureGradient::by_step; }
};

// What all parts of a backward pass refer to.
struct BackwardCall {
  const Recurrence& p;
  const RecurrenceGradOut& out;
  const BackwardPlan& plan;
};

// `stacked`: the layer above waits for whole chunks, so they are as short as possible while reading
// the weights does not take longer than the product.
ForwardPlan plan_forward(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                         int threads, bool stacked = false);
// `asked`: where groups sum gradients over their own rows, the result depends on their number. It
// must not depend on how many threads came, so the groups are those of as many threads as were
// asked for. (The members of a group, whose number does not change a sum, must all have come.)
BackwardPlan plan_backward(const Recurrence& p, const RecurrenceGradOut& out,
                           const KernelShape& shape, const Machine& machine, int asked,
                           int threads);
// Whether a backward pass, since its groups do not sort, should run over a copy without padding.
bool plan_unpadded(const Recurrence& p, const RecurrenceGradOut& out, const KernelShape& shape,
                   const Machine& machine, int threads);
// The plans of layers, each over the one before, as a wavefront, a layer a thread (rnn/forward.h);
// empty if all threads together are estimated to be faster, one layer after the other.
std::vector<ForwardPlan> plan_wavefront(const std::vector<Recurrence>& layers,
                                        const KernelShape& shape, const Machine& machine,
                                        int threads);
// Whether kernels of this shape, for float32 at a lower precision, are faster than the highest's.
// (On a machine of which no tiles are known, they are for longer calls.)
bool plan_lower_precision(const Recurrence& p, const KernelShape& shape, const Machine& machine);
// How many threads, at most `most`, a call should have whose work is so many times that of the
// forward products of one such layer: kBackwardProducts for a backward pass, a stack's layers.
constexpr int kBackwardProducts = 3;
int plan_threads(const Recurrence& p, int products, int most);
// For how many of these threads the plan of a forward call has work; the others are not called.
int busy_threads(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                 int threads);

// Rows of the gradients of pre-activations and features that stay in cache while W_ih is read once.
inline int64_t feature_block(const Recurrence& p, const KernelShape& shape) {
  const int64_t row_bytes = max_of(p.D * traits_of(p.cell).grads * p.H, p.I) * shape.compute_bytes;
  return max_of(1, kFeatureBlockBytes / (row_bytes * shape.mr)) * shape.mr;
}

inline bool wants_weights(const RecurrenceGradOut& out) {
  return out.weight_hh[0] || out.weight_ih[0] || out.bias_ih[0] || out.bias_hh[0];
}

// The sequences split into n parts of equal numbers of sequences, in whole blocks of rows where a
// part has more than one, or, where lengths differ, of about equal numbers of steps.
struct Split {
  Range own;     // part i
  int64_t most;  // sequences in any part
};
Split split_sequences(const Timeline& p, int64_t i, int64_t n, int64_t row_block);

// What a member of a group takes through all steps: a direction, sequences [b0, b0 + size), and
// blocks [u0, u1) of hidden units, each of which fills a panel of a matrix with H columns.
struct WorkItem {
  int d;
  int64_t b0, size, u0, u1;
  int group, members;  // several members: workers group * members and up share the sequences
  bool last;           // whether its hidden units are the last
  bool begins = true;  // whether its sequences are the first that the group takes
  // If the group sorts its sequences, longest first: their numbers [size]; how many have step [T].
  const int64_t *order = nullptr, *present = nullptr;

  RNNEXT_BOTH int64_t sequence(int64_t i) const { return order ? order[i] : b0 + i; }
};
// The work item of a group's member, where all hidden units fill so many blocks.
WorkItem work_item(const Plan& plan, const Recurrence& p, int64_t blocks, int64_t group,
                   int64_t member);

// The work item with its sequences sorted: fills order [size] and present [T].
WorkItem sorted(const WorkItem& item, const Timeline& p, int64_t* order, int64_t* present);

// How many of the work item's sequences are computed at step t.
RNNEXT_BOTH inline int64_t sequences(const Timeline& p, const WorkItem& item, int64_t t) {
  return item.present ? item.present[t] : max_of(0, min_of(item.size, p.batch(t) - item.b0));
}
// Steps [t, t + n) of a work item, whose `rows` rows stay in cache while it works on them.
struct Chunk {
  int64_t t, n, rows;
};
// The steps after the first `done`, ascending or descending: at least one, at most `limit` rows.
inline Chunk next_chunk(const Timeline& p, const WorkItem& item, int64_t done, bool descending,
                        int64_t limit) {
  Chunk chunk{descending ? p.T - done : done, 0, 0};
  while (done + chunk.n < p.T) {
    const int64_t rows = sequences(p, item, descending ? chunk.t - 1 : chunk.t + chunk.n);
    if (chunk.n > 0 && chunk.rows + rows > limit) break;
    chunk.rows += rows;
    ++chunk.n;
    chunk.t -= descending;
  }
  return chunk;
}

}  // namespace rnnext
