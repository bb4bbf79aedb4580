// Entry points by which the tests reach csrc/cuda/recurrence/choice.h.
#include "cuda/recurrence/choice.h"

#include <cstdio>
#include <stdexcept>

using namespace rnnext::cuda;

namespace {

Device device_of(const int64_t* x) {
  Device d;
  d.capability = int(x[0]);
  d.sm_count = int(x[1]);
  d.shared_bytes = int(x[2]);
  for (int i = 0; i < 4; ++i) d.clusters[i] = int(x[3 + i]);
  return d;
}

Problem problem_of(const int64_t* x) {
  Problem p;
  p.T = x[0], p.B = x[1], p.H = x[2], p.D = int(x[3]);
  p.compute = Compute(x[4]), p.backward = x[5] != 0, p.exchange = Exchange(x[6]);
  return p;
}

}  // namespace

extern "C" {

// problem: T, B, H, D, compute, backward, exchange. device: capability, SMs, shared bytes, clusters
// of 2, 4, 8, 16. forced: a word or null. Where choose() throws, `message` holds why.
int64_t rnn_choose(const int64_t* problem, const int64_t* device, const char* forced,
                   Geometry* geometry, char* message, int64_t message_bytes) {
  message[0] = 0;
  try {
    *geometry = choose(problem_of(problem), device_of(device), forced);
  } catch (const std::invalid_argument& error) {
    std::snprintf(message, size_t(message_bytes), "%s", error.what());
  }
  return 0;
}

// All geometries that choose() compares, at most `space` of them; costs: a StepCost of each.
int64_t rnn_candidates(const int64_t* problem, const int64_t* device, Geometry* geometries,
                       StepCost* costs, int64_t space, int64_t* count) {
  const Problem p = problem_of(problem);
  const Device d = device_of(device);
  *count = 0;
  for (const Geometry& g : candidates(p, d)) {
    if (*count == space) break;
    geometries[*count] = g;
    costs[(*count)++] = step_cost(p, d, g);
  }
  return 0;
}

// How often a memory of choices chooses, asked for T from 1 to `steps`.
int64_t rnn_choices_made(const int64_t* problem, const int64_t* device, int64_t steps,
                         int64_t* made) {
  Choices choices;
  Problem p = problem_of(problem);
  for (p.T = 1; p.T <= steps; ++p.T) choices.find(p, 0, device_of(device), nullptr);
  *made = choices.made();
  return 0;
}

int64_t rnn_capacity(int64_t path, int64_t compute, int64_t backward, int64_t D,
                     const int64_t* device, int64_t* result) {
  *result = capacity(Path(path), Compute(compute), backward != 0, int(D), device_of(device));
  return 0;
}

}  // extern "C"
