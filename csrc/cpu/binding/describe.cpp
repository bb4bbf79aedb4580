#include "cpu/binding/describe.h"

#include "cpu/binding/padding.h"
#include "cpu/binding/recurrence.h"

namespace rnnext {
namespace {

void add(Description& to, const Plan& plan) {
  to["batch_parts"] = plan.batch_parts;
  to["hidden_parts"] = plan.hidden_parts;
  to["units"] = plan.units;
  to["pieces"] = plan.pieces;
  to["unit_rows"] = plan.unit_rows;
  to["own_weights"] = plan.own_weights;
  to["joined"] = plan.joined;
  to["cycles"] = plan.cycles;
}

std::string name_of(Home home) { return home == Home::rows ? "rows" : "scratch"; }

}  // namespace

Description describe_plan(Recurrence p, int layer_count, DType dtype, int most_threads, bool train,
                          const Machine& machine) {
  const KernelShape& shape = kernels_for(dtype).shape;
  Description about;
  about["isa"] = std::string(kernels().name);
  about["machine"] = std::string(machine.name);
  about["origin"] = std::string(machine.origin);
  for (const MachineNumber& number : kMachineNumbers) about[number.name] = machine.*number.at;
  about["tile_rows"] = int64_t{shape.tile_rows};
  about["panel"] = int64_t{shape.panel};
  about["depth"] = int64_t{shape.depth};
  about["amx"] = shape.tiles;
  about["weight_bytes"] = shape.weight_bytes(p.I, p.H);
  about["wavefront"] = false;
  if (train) {
    RecurrenceGradOut out;
    static int wanted;  // the plan asks no more than whether there is a place for a gradient
    for (int d = 0; d < p.D; ++d) out.weight_ih[d] = out.weight_hh[d] = out.bias[d] = &wanted;
    out.input = &wanted;
    if (p.hx) out.hx = &wanted;
    int threads = plan_threads(p, 3, most_threads);
    const std::optional<Unpadded> unpadded = Unpadded::of(p, out, shape, machine, threads);
    about["unpadded"] = unpadded.has_value();
    if (unpadded) {
      p = unpadded->planned(p);
      threads = plan_threads(p, 3, most_threads);
    }
    const BackwardPlan plan = plan_backward(p, out, shape, machine, threads, threads);
    about["threads"] = int64_t{threads};
    add(about, plan);
    about["own_sums"] = plan.own_sums;
    about["own_rows"] = plan.own_rows;
    about["direct_sums"] = plan.direct_sums;
    about["streams"] = plan.streams;
    about["chunk_rows"] = plan.chunk_rows;
    about["state"] = name_of(plan.state);
    return about;
  }
  std::vector<Recurrence> layers(layer_count, p);
  for (int l = 1; l < layer_count; ++l) layers[l].I = p.H * p.D;
  int threads = plan_threads(layers.back(), p.D == 1 ? layer_count : 1, most_threads);
  if (layer_count > 1 && p.D == 1 &&
      plan_wavefront(layers.data(), layer_count, shape, machine, threads)) {
    about["wavefront"] = true;
    about["threads"] = int64_t{threads < layer_count ? threads : layer_count};
    threads = 1;
  } else {
    threads = busy_threads(p, shape, machine, plan_threads(p, 1, most_threads));
    about["threads"] = int64_t{threads};
  }
  const bool wavefront = std::get<bool>(about["wavefront"]);
  const ForwardPlan plan = plan_forward(p, shape, machine, threads, wavefront);
  add(about, plan);
  about["one_step"] = plan.one_step;
  about["streams"] = plan.streams;
  about["projects"] = plan.projects;
  about["chunk_rows"] = plan.chunk_rows;
  about["state"] = name_of(plan.state);
  about["held_steps"] = plan.held_steps;
  about["from_hx"] = plan.from_hx;
  about["far"] = plan.far;
  return about;
}

}  // namespace rnnext
