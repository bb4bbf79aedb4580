#include "cpu/binding/describe.h"

#include <stdexcept>

#include "cpu/binding/padding.h"
#include "cpu/binding/recurrence.h"

namespace rnnext {
namespace {

// What a call has that gives or wants a tensor; the plan asks no more than whether.
int something;

Recurrence call_of(const Question& q) {
  for (const int64_t size : {q.T, q.B, q.H, q.D, q.layers, static_cast<int64_t>(q.threads)})
    if (size < 1)
      throw std::invalid_argument("sizes must be positive, got " + std::to_string(size));
  if (q.I < 0) throw std::invalid_argument("I must not be negative, got " + std::to_string(q.I));
  if (!q.lengths.empty() && static_cast<int64_t>(q.lengths.size()) != q.B)
    throw std::invalid_argument("lengths must hold B = " + std::to_string(q.B) + " numbers, got " +
                                std::to_string(q.lengths.size()));
  for (const int64_t length : q.lengths)
    if (length < 0 || length > q.T)
      throw std::invalid_argument("lengths must be in 0.." + std::to_string(q.T) + ", got " +
                                  std::to_string(length));
  Recurrence p;
  p.T = q.T, p.B = q.B, p.I = q.I, p.H = q.H;
  p.D = static_cast<int>(q.D);
  if (q.hx) p.hx = &something;
  if (!q.lengths.empty()) p.lengths = q.lengths.data();
  return p;
}

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

const char* name_of(Home home) {
  switch (home) {
    case Home::scratch:
      return "scratch";
    case Home::rows:
      return "rows";
  }
  __builtin_unreachable();
}

}  // namespace

Description describe_plan(const Question& q, const Machine& machine) {
  Recurrence p = call_of(q);
  const KernelShape& shape = kernels_for(q.dtype).shape;
  Description about;
  about["isa"] = std::string(kernels().name);
  about["machine"] = std::string(machine.name);
  about["origin"] = std::string(machine.origin);
  for (const MachineNumber& number : kMachineNumbers) about[number.name] = machine.*number.at;
  about["tile_rows"] = int64_t{shape.tile_rows};
  about["panel"] = int64_t{shape.panel};
  about["depth"] = int64_t{shape.depth};
  about["amx"] = shape.tiles;
  about["weight_bytes"] = shape.packed_bytes(p.I, p.H) + shape.packed_bytes(p.H, p.H);
  about["wavefront"] = false;
  if (q.train) {
    RecurrenceGradOut out;
    for (int d = 0; d < p.D; ++d) out.weight_ih[d] = out.weight_hh[d] = out.bias[d] = &something;
    out.input = &something;
    if (q.hx) out.hx = &something;
    int threads = plan_threads(p, 3, q.threads);
    const std::optional<Packing> packing = Packing::of(p, out, shape, machine, threads);
    about["packed"] = packing.has_value();
    if (packing) {
      p = packing->planned(p);
      threads = plan_threads(p, 3, q.threads);
    }
    const BackwardPlan plan = plan_backward(p, out, shape, machine, threads, threads);
    about["threads"] = int64_t{threads};
    add(about, plan);
    about["own_sums"] = plan.own_sums;
    about["own_rows"] = plan.own_rows;
    about["direct_sums"] = plan.direct_sums;
    about["streams"] = plan.streams;
    about["chunk_rows"] = plan.chunk_rows;
    about["state"] = std::string(name_of(plan.state));
    return about;
  }
  std::vector<Recurrence> layers(q.layers, p);
  for (int64_t l = 1; l < q.layers; ++l) layers[l].I = p.H * p.D;
  const int n = static_cast<int>(q.layers);
  int threads = plan_threads(layers.back(), p.D == 1 ? n : 1, q.threads);
  if (n > 1 && p.D == 1 && plan_wavefront(layers.data(), n, shape, machine, threads)) {
    about["wavefront"] = true;
    about["threads"] = int64_t{threads < n ? threads : n};
    threads = 1;
  } else {
    threads = busy_threads(p, shape, machine, plan_threads(p, 1, q.threads));
    about["threads"] = int64_t{threads};
  }
  const bool wavefront = std::get<bool>(about["wavefront"]);
  const ForwardPlan plan = plan_forward(p, shape, machine, threads, wavefront);
  add(about, plan);
  about["one_step"] = plan.one_step;
  about["streams"] = plan.streams;
  about["projects"] = plan.projects;
  about["chunk_rows"] = plan.chunk_rows;
  about["state"] = std::string(name_of(plan.state));
  about["held_steps"] = plan.held_steps;
  about["from_hx"] = plan.from_hx;
  about["far"] = plan.far;
  return about;
}

}  // namespace rnnext
