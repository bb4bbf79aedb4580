// Entry points by which the tests reach csrc/cuda/recurrence/choice.h.
#include "cuda/recurrence/choice.h"

#include <cstdio>
#include <stdexcept>

using namespace rnnext::cuda;

extern "C" {

// Whether Python's copies of the structs have the right sizes.
int rnn_same_sizes(int device, int problem, int geometry) {
  return device == sizeof(Device) && problem == sizeof(Problem) && geometry == sizeof(Geometry);
}

// Where choose() throws, `message`, of 256 bytes, holds why. forced: a word or null.
void rnn_choose(const Problem* problem, const Device* device, Geometry* geometry,
                const char* forced, char* message) {
  try {
    *geometry = choose(*problem, *device, forced);
  } catch (const std::invalid_argument& error) {
    std::snprintf(message, 256, "%s", error.what());
  }
}

}  // extern "C"
