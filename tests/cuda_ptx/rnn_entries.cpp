// Entry points by which recurrence.py calls the launchers of csrc/cuda/recurrence/launch.h.
#include "cuda/recurrence/launch.h"

#include <algorithm>

using namespace rnnext;
using namespace rnnext::cuda;

extern "C" {

// 0 where Python's copies of the structs have the right sizes.
int64_t rnn_check_sizes(const int64_t* python) {
  const size_t sizes[] = {sizeof(Timeline),       sizeof(RowSource),         sizeof(Recurrence),
                          sizeof(RecurrenceGrad), sizeof(RecurrenceGradOut), sizeof(DeviceCall),
                          sizeof(Step),           sizeof(Geometry),          sizeof(StepCost)};
  for (size_t size : sizes) {
    if (*python++ != int64_t(size)) return 1;
  }
  return 0;
}

int64_t rnn_run(const DeviceCall* p, const Geometry* g, int64_t compute, int64_t backward) {
  return launch_resident(*p, *g, Compute(compute), backward != 0, nullptr);
}

// The current device as choice.h describes it: capability, SMs, shared memory of a block, clusters
// of 2, 4, 8 and 16 blocks.
int64_t rnn_describe(int64_t* limits) {
  Device device;
  const cudaError_t error = describe(&device);
  limits[0] = device.capability, limits[1] = device.sm_count, limits[2] = device.shared_bytes;
  std::copy(device.clusters, device.clusters + 4, limits + 3);
  return error;
}

int64_t rnn_run_step(const DeviceCall* p, const Step* step, int64_t compute, int64_t backward) {
  return launch_step(*p, *step, Compute(compute), backward != 0, nullptr);
}

int64_t rnn_enter(const DeviceCall* p, void* first, void* anew, int64_t compute) {
  return launch_enter(*p, first, anew, Compute(compute), nullptr);
}

int64_t rnn_previous_state(const DeviceCall* p, const void* steps, const void* hx,
                           const void* reset, void* previous, int64_t compute) {
  return launch_previous_state(*p, {steps, hx, reset}, previous, Compute(compute), nullptr);
}

int64_t rnn_table_rows(const int64_t* index, int64_t count, int64_t table_rows,
                       IndexErrorRecord* error, int64_t* rows) {
  return launch_table_rows({index, true, count, table_rows, error}, rows, nullptr);
}

int64_t rnn_write_constants(int64_t* to, const int64_t* values, int64_t n) {
  return launch_write_constants(to, values, n, nullptr);
}

}  // extern "C"
