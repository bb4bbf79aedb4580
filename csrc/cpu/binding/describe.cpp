#include "cpu/binding/recurrence.h"
#include "cpu/binding/unpadded.h"

namespace rnnext {
namespace {

template <class Enum>
std::string name_of(Enum value, const char* const* names) {
  return names[static_cast<int>(value)];
}

Description fields_of(const Plan& plan) {
  return {{"batch_parts", plan.batch_parts},
          {"hidden_parts", plan.hidden_parts},
          {"groups", plan.groups},
          {"group_rows", plan.group_rows},
          {"weights", name_of(plan.weights, kWeightsNames)},
          {"joined", plan.joined},
          {"fetches", plan.fetches},
          {"past_caches", plan.past_caches},
          {"waits", plan.waits},
          {"cycles", plan.cycles}};
}

}  // namespace

Description describe_plan(const Recurrence& p, int layer_count, DType dtype, int most_threads,
                          bool train, const Machine& machine) {
  const RnnKernels& kernel = kernels_for(dtype, p, machine);
  const KernelShape& shape = kernel.shape;
  Description about;
  about["isa"] = std::string(kernels().name);
  about["machine"] = std::string(machine.name);
  about["origin"] = std::string(machine.origin);
  for (const MachineNumber& number : kMachineNumbers) about[number.name] = machine.*number.at;
  if (dtype == DType::f32)
    about["precision"] = std::string(&kernel == kernels().rnn_high     ? "high"
                                     : &kernel == kernels().rnn_medium ? "medium"
                                                                       : "highest");
  about["mr"] = int64_t{shape.mr};
  about["panel"] = int64_t{shape.panel};
  about["k_pack"] = int64_t{shape.k_pack};
  about["amx"] = shape.tiles;
  about["weight_bytes"] = shape.weight_bytes(p.I, p.H, p.gates());
  about["wavefront"] = false;
  if (train) {
    RecurrenceGradOut out;
    static int wanted;  // the plan asks only whether there is a place for a gradient
    for (int d = 0; d < p.D; ++d) out.weight_ih[d] = out.weight_hh[d] = out.bias_ih[d] = &wanted;
    out.input = &wanted;
    if (p.hx) out.hx = &wanted;
    const int threads = plan_threads(p, kBackwardProducts, most_threads);
    if (plan_unpadded(p, out, shape, machine, threads)) {
      const Unpadded unpadded(p);
      about = describe_plan(unpadded.planned(p), 1, dtype, most_threads, train, machine);
      about["unpadded"] = true;
      return about;
    }
    const BackwardPlan plan = plan_backward(p, out, shape, machine, threads, threads);
    about["unpadded"] = false;
    about["threads"] = int64_t{threads};
    about.merge(fields_of(plan));
    about.merge(Description{{"own_sums", plan.own_sums},
                            {"direct_sums", plan.direct_sums},
                            {"features", name_of(plan.features, kFeatureGradientNames)},
                            {"chunk_rows", plan.chunk_rows},
                            {"grad_pre_home", name_of(plan.grad_pre_home, kHomeNames)}});
    return about;
  }
  std::vector<Recurrence> layers(layer_count, p);
  for (int l = 1; l < layer_count; ++l) layers[l].I = p.H * p.D;
  const int team = plan_threads(layers.back(), p.D == 1 ? layer_count : 1, most_threads);
  const bool wavefront = !plan_wavefront(layers, shape, machine, team).empty();
  const int threads =  // of each layer
      wavefront ? 1 : busy_threads(p, shape, machine, plan_threads(p, 1, most_threads));
  about["wavefront"] = wavefront;
  about["threads"] = wavefront ? min_of(team, layer_count) : threads;
  const ForwardPlan plan = plan_forward(p, shape, machine, threads, wavefront);
  about.merge(fields_of(plan));
  about.merge(Description{{"projects", plan.projects},
                          {"chunk_rows", plan.chunk_rows},
                          {"state_home", name_of(plan.state_home, kHomeNames)},
                          {"from_hx", plan.from_hx},
                          {"far", plan.far}});
  return about;
}

}  // namespace rnnext
