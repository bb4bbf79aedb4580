// csrc/cuda/binding over the stand-in of the runtime. The ops, under the dispatch key PrivateUse1
// so that those of a real CUDA build stay as they are, take tensors of the CPU, which may lie in
// the memory that Python checks kernels' accesses to.
#include <ATen/ATen.h>
#include <ATen/cuda/cub.h>
#include <c10/core/CPUAllocator.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "cuda/binding/call.cpp"

#define CUDA PrivateUse1
#include "cuda/binding/embedding.cpp"
#include "cuda/binding/recurrence.cpp"
#undef CUDA

// Gated cells have no kernels here, and no test calls them: the loop of operations is left out.
namespace rnnext {
RecurrenceOp::Results recurrence_loop(const RecurrenceArguments&, bool) { TORCH_CHECK(false); }
RecurrenceGradients backward_loop_as_kernel(const BackwardInputs&, const RecurrenceArguments&,
                                            const Wanted&) {
  TORCH_CHECK(false);
}
}  // namespace rnnext

namespace {

// Where torch's new tensors lie while this is its allocator.
struct Memory : c10::Allocator {
  void* (*hand_out)(size_t) = nullptr;

  at::DataPtr allocate(size_t bytes) override {
    void* const memory = hand_out(bytes);
    return {memory, memory, [](void*) {}, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

extern "C" {

// null: where they lie without us.
void stand_in_tensors(void* (*hand_out)(size_t)) {
  static c10::Allocator* const before = c10::GetCPUAllocator();
  static Memory memory;
  memory.hand_out = hand_out;
  c10::SetCPUAllocator(hand_out ? &memory : before, 1);
}

// The current device: capability, SMs, shared memory of a block, clusters of 2, 4, 8 and 16 blocks.
int stand_in_describe(int64_t* limits) {
  rnnext::cuda::Device device;
  const cudaError_t error = describe(&device);
  limits[0] = device.capability, limits[1] = device.sm_count, limits[2] = device.shared_bytes;
  std::copy(device.clusters, device.clusters + 4, limits + 3);
  return error;
}

}  // extern "C"
