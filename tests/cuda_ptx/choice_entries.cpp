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
  const int64_t sizes[] = {sizeof(Device), sizeof(Problem), sizeof(Geometry)};
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

}  // extern "C"
