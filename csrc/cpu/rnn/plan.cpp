#include "cpu/rnn/plan.h"

#include <algorithm>
#include <numeric>

namespace rnnext {
namespace {

// Steps of all sequences: rows that are not padding.
int64_t steps_of(const Timeline& p) {
  if (!p.ragged() || p.step_row) return p.rows();
  return std::accumulate(p.lengths, p.lengths + p.B, int64_t{0});
}

// Estimated cycles for multiplying `rows` rows by packed weights of so many bytes.
double multiply_cycles(const KernelShape& shape, const Machine& machine, int64_t rows,
                       double bytes) {
  if (!shape.tiles || machine.tiles == 0)
    return static_cast<double>(rows) * bytes /
           (shape.k_pack > 1 ? machine.pairs : machine.multiply);
  const auto whole = static_cast<double>(divide_up(rows, shape.row_block) * shape.row_block);
  // At "high" a float32 is two bfloat16, and a product three of theirs.
  return whole * bytes * (shape.operand_bytes > 4 ? 1.5 : 1) / machine.tiles;
}

// Whether panels of so many bytes of weights are fetched ahead.
bool fetches(int64_t bytes, const KernelShape& shape, const Machine& machine) {
  return !shape.tiles && shape.k_pack == 1 && static_cast<double>(bytes) >= machine.fetch_bytes;
}

// Estimated cycles for one step's product, `rows` sequences by `columns` of K operands each. It is
// bound by the multiply-adds or by reading the weights; `gated`: fetching them costs a little more.
double step_cycles(const KernelShape& shape, const Machine& machine, int64_t rows, int64_t columns,
                   int64_t K, bool gated) {
  const int64_t size = columns * K * shape.operand_bytes;
  const auto bytes = static_cast<double>(size);
  const double rate = bytes < machine.l1d_bytes  ? machine.l1d_rate
                      : bytes < machine.l2_bytes ? machine.l2_rate
                                                 : machine.far_rate;
  const auto tiles = static_cast<double>(divide_up(rows, shape.mr));
  // The first tile of rows reads the panels from where they lie, or fetches them; others from L1d.
  const double multiply = multiply_cycles(shape, machine, rows, bytes), read = bytes / rate;
  if (!fetches(size, shape, machine))
    return std::max(multiply, read + (tiles - 1) * bytes / machine.l1d_rate);
  const double cycles = std::max(multiply, read);
  return gated ? cycles + machine.fetch * read * read / cycles : cycles;
}

// Estimated cycles for packing so many operands.
double pack_cycles(const KernelShape& shape, int64_t operands) {
  return static_cast<double>(operands) * shape.operand_bytes / kPackRate;
}

// Shares out the sequences, and the hidden units if that is estimated to be faster. `joined`: one
// worker has all directions of a sequence. `packing`: cycles a step for each column of a product
// whose weights a worker packs.
Plan share_out(const Recurrence& p, const KernelShape& shape, const Machine& machine, int threads,
               bool joined, double packing) {
  const int64_t K = shape.operands(p.H), panels = shape.panels(p.H), gates = p.gates();
  Plan best{};
  best.joined = joined;
  best.batch_parts = min_of(threads % p.D == 0 && !joined ? threads / p.D : threads, p.B);
  best.hidden_parts = 1;
  const auto cycles = [&](int64_t rows, int64_t columns) {
    return step_cycles(shape, machine, rows, gates * columns, K, gates > 1) +
           packing * static_cast<double>(gates * columns);
  };
  best.cycles = cycles(divide_up(p.B, best.batch_parts), p.H) *
                static_cast<double>(divide_up(p.D * best.batch_parts, threads));
  const int64_t workers = joined ? 1 : threads / p.D;
  for (int64_t hidden = 2; hidden <= min_of(workers, panels); ++hidden) {
    const int64_t batch = min_of(workers / hidden, p.B);
    const int64_t rows = divide_up(p.B, batch);
    Plan plan{};
    plan.batch_parts = batch;
    plan.hidden_parts = hidden;
    const int64_t columns = plan.member_blocks(panels) * shape.panel;
    const double lines = static_cast<double>(rows * (p.H - columns)) * shape.operand_bytes / 64;
    // (In a single step no member waits, but each reads lines that the others wrote.)
    plan.cycles = cycles(rows, columns) + (p.T > 1 ? machine.wait : 0) + machine.line * lines;
    if (plan.cycles < best.cycles) best = plan;
  }
  best.groups = p.D * best.batch_parts;
  best.pair_bytes = machine.pair_bytes;
  best.row_block = shape.row_block;
  best.group_rows = split_sequences(p, 0, best.batch_parts, best.row_block).most;
  const int64_t turns = divide_up(best.group_rows, kGroupRows * 4 / shape.operand_bytes);
  if (turns > 1 && best.hidden_parts == 1)
    best.group_rows = divide_up(best.group_rows, turns * shape.mr) * shape.mr;
  return best;
}

// Estimated cycles for a step of one layer. If both weights do not stay in L2 together, each chunk
// reads W_ih from far memory, for which a single tile of rows waits.
double layer_cycles(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                    const ForwardPlan& plan) {
  const int64_t columns = p.gates() * p.H / plan.hidden_parts;
  const auto bytes = static_cast<double>(columns * shape.operands(p.I) * shape.operand_bytes);
  const auto hh_bytes = static_cast<double>(columns * shape.operands(p.H) * shape.operand_bytes);
  const bool waits = bytes + hh_bytes > machine.l2_bytes && plan.chunk_rows <= shape.mr;
  const double chunks = static_cast<double>(plan.group_rows) / static_cast<double>(plan.chunk_rows);
  return plan.cycles + multiply_cycles(shape, machine, plan.group_rows, bytes) +
         (waits ? bytes / machine.far_rate * chunks : 0);
}

}  // namespace

ForwardPlan plan_forward(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                         int threads, bool stacked) {
  ForwardPlan plan{};
  const bool gated = is_gated(p.cell);
  if (shape.unpacks() && p.T == 1 && p.B <= kOneStepRows && p.plain() && !is_leaky(p.cell) &&
      !p.noise[0] && !p.packed_weights) {
    plan.weights = Weights::unpacked;
    plan.waits = false;
    return plan;  // the hidden units are shared out evenly, and that is all
  }
  const int64_t packed =
      p.packed_weights ? 0 : shape.operands(p.I) + (p.multiplies_state() ? shape.operands(p.H) : 0);
  static_cast<Plan&>(plan) = share_out(p, shape, machine, threads, false,
                                       pack_cycles(shape, packed) / static_cast<double>(p.T));
  const int64_t weights = shape.weight_bytes(p.I, p.H, p.gates());
  const bool small = weights <= static_cast<int64_t>(kOwnWeightBytes);
  plan.weights = p.packed_weights                 ? Weights::given
                 : p.T == 1                       ? Weights::streamed
                 : small || plan.batch_parts == 1 ? Weights::own
                                                  : Weights::shared;
  plan.sorts = p.ragged() && !p.step_row;
  const int64_t own_bytes = weights / plan.hidden_parts;  // a member's
  plan.fetches = plan.weights != Weights::streamed && fetches(own_bytes, shape, machine);
  const int64_t columns = plan.member_blocks(shape.panels(p.H)) * shape.panel * p.gates();
  const int64_t features =
      (shape.panels(p.I) * shape.panel / shape.k_pack + 64 / shape.operand_bytes) *
      shape.operand_bytes;
  const int64_t chunk_row = max_of(shape.sums_bytes(columns), features);
  // Whether weights take longer to read than to multiply, and W_ih is much of them: then the rows
  // of some steps share it. (Measured on a Xeon: with I = H / 2 they gain nothing.)
  const int64_t far_rows = kFarSteps * plan.group_rows;
  const bool slow = plan.fetches && !stacked && plan.group_rows > shape.mr && 3 * p.I >= 2 * p.H &&
                    static_cast<double>(own_bytes) >= kFarL2 * machine.l2_bytes &&
                    static_cast<double>(plan.group_rows) * machine.far_rate <= machine.multiply &&
                    far_rows * chunk_row <= kFarChunkBytes;
  // (The rows of some steps together fill AMX tiles.)
  const bool half = 2 * plan.group_rows <= shape.row_block && (gated || p.I > shape.k_align);
  const bool ahead = shape.tiles ? half : slow || (!small && plan.group_rows <= shape.mr);
  plan.projects = p.I == 0 || (p.T > 1 && (ahead || plan.group_rows < kFewRows));
  const int64_t width = p.D * p.H * shape.storage_bytes;
  const bool whole_blocks = p.H % shape.k_align == 0 && p.B % shape.row_block == 0 &&
                            p.B >= plan.batch_parts * shape.row_block;
  if (shape.stored_as_operands && (shape.tiles ? whole_blocks : p.H % shape.k_pack == 0) &&
      p.plain()) {
    if (plan.hidden_parts == 1 && width < kSameSetBytes) plan.state_home = Home::rows;
    plan.from_hx = p.hx && p.T == 1 && !is_leaky(p.cell);
  }
  plan.waits = p.T > 1 || (plan.hidden_parts > 1 && !plan.from_hx && p.multiplies_state());
  const int64_t row_bytes = p.H * shape.storage_bytes;
  if (plan.state_home == Home::rows && shape.k_pack == 1 && plan.batch_parts > 1 &&
      row_bytes >= 64 && plan.group_rows * row_bytes <= kNarrowBytes && p.T >= kNarrowFrom)
    plan.state_home = Home::scratch;
  const int64_t fit = stacked ? kFewRows : slow ? far_rows : kForwardChunkBytes / chunk_row;
  plan.chunk_rows =
      plan.projects ? max_of(plan.group_rows, min_of(fit, p.T * p.B)) : plan.group_rows;
  const int64_t saved = gated && p.saved ? p.rows() * width * traits_of(p.cell).saved : 0;
  plan.far = (plan.state_home == Home::rows || shape.native()) && !plan.sorts &&
             p.rows() * width + saved >= kFarBytes;
  plan.past_caches = !plan.sorts && saved >= kPastCachesBytes;
  return plan;
}

BackwardPlan plan_backward(const Recurrence& p, const RecurrenceGradOut& out,
                           const KernelShape& shape, const Machine& machine, int asked,
                           int threads) {
  const int64_t K = p.gates() * p.H;  // of both products
  const int64_t grads = traits_of(p.cell).grads;
  const int64_t weights = shape.packed_bytes(K, p.I) + shape.packed_bytes(K, p.H);
  const bool small = weights <= static_cast<int64_t>(kOwnWeightBytes);
  const bool joined = p.D > 1 && p.I > 0 && small && shape.native() &&
                      p.B >= int64_t{asked} * shape.mr && p.rows() >= p.H;
  // (A single step reads W_hh as it lies, which takes as long as packing.)
  const double packing = p.T > 1 || out.hx || out.reset_state
                             ? pack_cycles(shape, shape.operands(p.H)) / static_cast<double>(p.T)
                             : 0;
  BackwardPlan plan{share_out(p, shape, machine, asked, joined, packing)};
  const bool shares = plan.hidden_parts > 1;
  plan.fetches = fetches(weights / plan.hidden_parts, shape, machine);
  if (shares && threads < asked) {
    // Groups then have fewer members, but are as many, since each sums the gradient of alpha.
    plan.hidden_parts = max_of(1, threads / plan.groups);
  }
  if (shares && out.alpha[0]) plan.pair_bytes = 0;  // a tile's rows would depend on the members
  plan.weights = p.T == 1                         ? Weights::streamed
                 : small || plan.batch_parts == 1 ? Weights::own
                                                  : Weights::shared;
  const bool own = small && !shares;
  // Few rows travel faster from one core to another than sums over them.
  plan.own_sums = own && wants_weights(out) && (plan.batch_parts == 1 || p.rows() >= p.H);
  // (Rows of grad_pre that are no operands are converted, in scratch of feature_block rows.)
  const int64_t few = max_of(feature_block(p, shape), shape.k_pack > 1 ? 0 : kStreamedRows);
  const bool streams = shape.native() && p.rows() <= few && shape.panels(p.I) >= threads;
  const bool by_step = own && (p.T > 1 || !streams) && (p.D == 1 || joined) && p.I > 0 &&
                       plan.own_sums == wants_weights(out);
  plan.features = by_step   ? FeatureGradient::by_step
                  : streams ? FeatureGradient::streamed
                  : small   ? FeatureGradient::own
                            : FeatureGradient::shared;
  plan.sorts = by_step && p.ragged() && !p.step_row;
  if (shape.k_pack == 1 && p.plain() && plan.hidden_parts == 1 &&
      (by_step || p.D * grads * p.H * shape.compute_bytes < kSameSetBytes))
    plan.grad_pre_home = Home::rows;
  plan.past_caches = is_gated(p.cell) && plan.grad_pre_home == Home::scratch && !plan.own_sums &&
                     !by_step &&
                     p.rows() * p.D * grads * p.H * shape.compute_bytes >= kPastCachesBytes;
  const int64_t fit = min_of(kBackwardChunkBytes / shape.sums_bytes(grads * p.H), kGradientRows);
  plan.chunk_rows = max_of(plan.group_rows, min_of(fit, p.rows()));
  plan.direct_sums = shape.native() && !shape.tiles && p.rows() <= kDirectSumRows &&
                     (!plan.own_sums || (plan.batch_parts == 1 && p.rows() <= plan.chunk_rows));
  return plan;
}

std::vector<ForwardPlan> plan_wavefront(const std::vector<Recurrence>& layers,
                                        const KernelShape& shape, const Machine& machine,
                                        int threads) {
  std::vector<ForwardPlan> plans;
  const auto n = static_cast<int>(layers.size());
  if (n == 1 || threads == 1 || layers[0].T == 1 || layers[0].D > 1) return plans;
  double in_turn = 0, slowest = 0;
  int64_t chunk_steps = 1;
  for (const Recurrence& p : layers) {
    const ForwardPlan& alone = plans.emplace_back(plan_forward(p, shape, machine, 1, true));
    if (alone.group_rows < p.B) return {};  // it does not take all sequences at once
    slowest = std::max(slowest, layer_cycles(p, shape, machine, alone));
    in_turn += layer_cycles(p, shape, machine, plan_forward(p, shape, machine, threads));
    chunk_steps = max_of(chunk_steps, divide_up(alone.chunk_rows, p.B));
  }
  const int64_t T = layers[0].T, team = min_of(n, threads);
  const auto steps = static_cast<double>(divide_up(n, team) * T + (team - 1) * chunk_steps);
  if (steps * slowest >= static_cast<double>(T) * in_turn) plans.clear();
  return plans;
}

bool plan_lower_precision(const Recurrence& p, const KernelShape& shape, const Machine& machine) {
  if (!shape.tiles) return true;
  const TileUse& use = shape.operand_bytes > 4 ? kHighTiles : kMediumTiles;
  const int64_t columns = p.gates() * p.H;
  if (p.T == 1 && (p.B < use.step_rows || p.H < kTileStepUnits)) return false;
  if (machine.tiles == 0) return true;
  return columns * p.H >= kTileWeights && p.B >= use.rows && p.B * columns >= use.columns &&
         (p.packed_weights || steps_of(p) * columns >= use.all_columns);
}

int plan_threads(const Recurrence& p, int products, int most) {
  const int64_t K = p.I + (p.multiplies_state() ? p.H : 0);
  const double work = static_cast<double>(steps_of(p)) * p.D * p.gates() * p.H * K * products;
  const double share = p.T > 1 || products > 1 ? kThreadWork
                       : p.packed_weights      ? kThreadWorkPackedStep
                                               : kThreadWorkOneStep;
  return static_cast<int>(std::clamp(work / share, 1.0, static_cast<double>(most)));
}

int busy_threads(const Recurrence& p, const KernelShape& shape, const Machine& machine,
                 int threads) {
  if (threads == 1) return 1;
  const ForwardPlan plan = plan_forward(p, shape, machine, threads);
  if (plan.weights == Weights::unpacked) return threads;
  return static_cast<int>(min_of(threads, plan.groups * plan.hidden_parts));
}

Split split_sequences(const Timeline& p, int64_t i, int64_t n, int64_t row_block) {
  if (!p.lengths) {
    const int64_t block = divide_up(p.B, n) > row_block ? row_block : 1;
    const int64_t blocks = divide_up(p.B, block);
    const auto cut = [&](int64_t k) {  // at the nearest block
      return min_of(p.B, (2 * blocks * k + n) / (2 * n) * block);
    };
    return {{cut(i), cut(i + 1)}, min_of(p.B, divide_up(blocks, n) * block)};
  }
  const int64_t steps = steps_of(p);
  int64_t before = 0;
  Split split{{0, 0}, 0};
  for (int64_t k = 0, end = 0; k < n; ++k) {
    const int64_t begin = end;
    // A part ends where it is nearest to its share, the last one with the last sequence.
    while (end < p.B && (k + 1 == n || (2 * before + p.lengths[end]) * n <= 2 * steps * (k + 1)))
      before += p.lengths[end++];
    if (k == i) split.own = {begin, end};
    split.most = max_of(split.most, end - begin);
  }
  return split;
}

bool plan_unpadded(const Recurrence& p, const RecurrenceGradOut& out, const KernelShape& shape,
                   const Machine& machine, int threads) {
  if (!p.ragged() || p.step_row || p.reset ||
      plan_backward(p, out, shape, machine, threads, threads).sorts)
    return false;
  const int64_t steps = steps_of(p);
  const double spared = static_cast<double>(p.T * p.B - steps) * p.D * p.gates() * p.H *
                        static_cast<double>(p.H + p.I) * kBackwardProducts;
  return steps > 0 && steps <= kUnpadShare * static_cast<double>(p.T * p.B) && spared >= kUnpadWork;
}

WorkItem work_item(const Plan& plan, const Recurrence& p, int64_t blocks, int64_t group,
                   int64_t member) {
  const int64_t n = plan.batch_parts;
  const Range b = split_sequences(p, group % n, n, plan.row_block).own;
  const Range u = share_of(blocks, member, plan.hidden_parts);
  return {.d = static_cast<int>(group / n),
          .b0 = b.begin,
          .size = b.end - b.begin,
          .u0 = u.begin,
          .u1 = u.end,
          .group = static_cast<int>(group),
          .members = static_cast<int>(plan.hidden_parts),
          .last = u.end == blocks};
}

WorkItem sorted(const WorkItem& item, const Timeline& p, int64_t* order, int64_t* present) {
  std::iota(order, order + item.size, item.b0);
  std::sort(order, order + item.size, [&](int64_t b, int64_t c) {
    return p.lengths[b] != p.lengths[c] ? p.lengths[b] > p.lengths[c] : b < c;
  });
  int64_t n = item.size;
  for (int64_t t = 0; t < p.T; ++t) {
    while (n > 0 && p.lengths[order[n - 1]] <= t) --n;
    present[t] = n;
  }
  WorkItem result = item;
  result.order = order, result.present = present;
  return result;
}

}  // namespace rnnext
