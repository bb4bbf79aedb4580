// Indices into a table on the device, and how kernels report one that is out of range. Neither
// torch's headers nor CUDA's.
#pragma once

#include <cstdint>

namespace rnnext::cuda {

// How a kernel reports an index out of range without stopping the context: it writes one record in
// host memory that the device sees, and goes on as if the row were absent. The host reads the
// record at its next call on that device, without waiting for the device.
struct IndexErrorRecord {
  unsigned claimed;  // by the first thread that found an error
  unsigned ready;    // set last
  int64_t position;  // in the flattened indices
  int64_t value;
  int64_t bound;  // 0 <= index < bound was expected
};

struct TableIndices {
  const void* data;  // [count] int64 or int32
  bool is_int64;
  int64_t count;
  int64_t rows;             // V: valid are 0 <= index < rows
  IndexErrorRecord* error;  // or null: not reported
};

}  // namespace rnnext::cuda
