// How a kernel reports an index out of range without stopping the context: it writes one record in
// host memory that the device sees, and goes on as if the row were absent. The host reads the
// record at its next call on that device, without waiting for the device.
#pragma once

#include <cstdint>

namespace rnnext::cuda {

struct IndexErrorRecord {
  unsigned claimed;  // by the first thread that found an error
  unsigned ready;    // set last
  int64_t position;  // in the flattened indices
  int64_t value;
  int64_t bound;  // 0 <= index < bound was expected
};

}  // namespace rnnext::cuda
