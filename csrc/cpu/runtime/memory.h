// Memory for results and workspaces.
#pragma once

#include <ATen/core/Tensor.h>

namespace rnnext {

// at::empty for what may be large. Fresh memory from the system costs a page fault for every 4 KiB,
// which takes longer than writing them. Up to 4 MiB, memory comes from torch's allocator, as for
// all other tensors of a model, and malloc is made to keep what is freed. Larger blocks ask for
// huge pages, and those that were freed last, 512 MiB of them at most, are kept for the next call,
// all but 64 MiB of them marked for the system to take back if it runs short.
at::Tensor empty_large(at::IntArrayRef shape, const at::TensorOptions& options);

// A tensor in use with the values of this one, which is dense, or itself. Neither is written again.
at::Tensor shared(at::Tensor tensor);

}  // namespace rnnext
