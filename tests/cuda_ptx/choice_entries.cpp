// Entry points by which the tests reach csrc/cuda/recurrence/choice.h.
#include "cuda/recurrence/choice.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <stdexcept>

using namespace rnnext::cuda;

extern "C" {

// 0 where Python's copies of the structs have the right sizes.
int64_t rnn_check_sizes(const int64_t* python) {
  const int64_t sizes[] = {sizeof(Device), sizeof(Problem), sizeof(Geometry), sizeof(StepCost)};
  return std::equal(std::begin(sizes), std::end(sizes), python) ? 0 : 1;
}

// Where choose() throws, `message`, of 256 bytes, holds why. forced: a word or null.
int64_t rnn_choose(const Problem* problem, const Device* device, const char* forced,
                   Geometry* geometry, char* message) {
  message[0] = 0;
  try {
    *geometry = choose(*problem, *device, forced);
  } catch (const std::invalid_argument& error) {
    std::snprintf(message, 256, "%s", error.what());
  }
  return 0;
}

// All geometries that choose() compares, at most `space` of them; costs: a StepCost of each.
int64_t rnn_candidates(const Problem* problem, const Device* device, Geometry* geometries,
                       StepCost* costs, int64_t space, int64_t* count) {
  *count = 0;
  for (const Geometry& g : candidates(*problem, *device)) {
    if (*count == space) break;
    geometries[*count] = g;
    costs[(*count)++] = step_cost(*problem, *device, g);
  }
  return 0;
}

// How often a memory of choices chooses, asked for T from 1 to `steps`.
int64_t rnn_choices_made(const Problem* problem, const Device* device, int64_t steps,
                         int64_t* made) {
  Choices choices;
  Problem p = *problem;
  for (p.T = 1; p.T <= steps; ++p.T) choices.find(p, 0, *device, nullptr);
  *made = choices.made();
  return 0;
}

int64_t rnn_capacity(int64_t path, int64_t compute, int64_t backward, int64_t D,
                     const Device* device, int64_t* result) {
  *result = capacity(Path(path), Compute(compute), backward != 0, int(D), *device);
  return 0;
}

}  // extern "C"
