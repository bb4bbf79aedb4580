// The kernel table, one for each ISA, and the one place that chooses among them.
#pragma once

#include <cstddef>
#include <string>

#include "cpu/embedding/runs.h"
#include "cpu/rnn/plan.h"
#include "cpu/runtime/team.h"

// Arm's bfloat16 dot products, in a build for every Arm: clang takes no target pragma for them.
#if defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
#define RNNEXT_NEON_BF16
#endif

namespace rnnext {

struct RnnKernels {
  KernelShape shape;
  // Bytes of workspace, 64-byte aligned, that a call needs on the threads that it is planned for.
  size_t (*forward_workspace)(const Recurrence&, const ForwardPlan&, int threads);
  size_t (*backward_workspace)(const Recurrence&, const RecurrenceGradOut&, const BackwardPlan&,
                               int threads);
  // The plan is the one for the worker's team.
  void (*forward)(const Recurrence&, const ForwardPlan&, char* workspace, Worker&);
  void (*backward)(const Recurrence&, const RecurrenceGrad&, const RecurrenceGradOut&,
                   const BackwardPlan&, char* workspace, Worker&);
  // Layers of one direction as a wavefront: a worker takes a layer, some steps behind the one
  // below. The workspace is that of all layers, each planned for one thread.
  void (*stack)(const Recurrence* layers, const ForwardPlan* plans, int n, char* workspace,
                Worker&);
  // Packs one direction's weights for packed_weights: shape.weight_bytes(I, H, gates) bytes.
  void (*pack)(const Recurrence&, char* packed);
};

// Sums runs [first, last) of rows of `grad` (embedding/kernel.h).
using SumRuns = void (*)(const Runs&, int64_t first, int64_t last, const void* grad, int64_t D,
                         bool by_frequency, bool scatter, void* out);

// The noise of n units of a step and direction, a row of `to` each sequence (simd/normal.h).
using Normals = void (*)(const PhiloxKeys&, int64_t t, const SequenceNumbers&, int d, int64_t n,
                         float* to, int64_t stride);
using RandomWords = void (*)(const PhiloxKeys&, int64_t t, const SequenceNumbers&, int64_t n,
                             uint32_t* to);

struct KernelTable {
  const char* name;
  bool (*supported)();
  const KernelTable* below = nullptr;  // provides what is null here
  const RnnKernels* rnn[4] = {};       // by DType
  // float32 whose operands are rounded to bfloat16, or are sums of two; null: not faster.
  const RnnKernels* rnn_medium = nullptr;
  const RnnKernels* rnn_high = nullptr;
  SumRuns sum_runs[4] = {};  // by DType
  Normals normals = nullptr;
  RandomWords random_words = nullptr;

  const RnnKernels& rnn_of(DType dtype) const {
    const RnnKernels* const own = rnn[static_cast<int>(dtype)];
    return own ? *own : below->rnn_of(dtype);
  }
  // The table that has what each build has once: this one, or one below.
  const KernelTable& complete() const { return normals ? *this : below->complete(); }
};

// The table of each cpu/isa/*.cpp; null if a build leaves it out (RNNEXT_ISAS in setup.py).
extern const KernelTable kAmxStandInTable [[gnu::weak]], kGenericTable [[gnu::weak]],
    kAvx2Table [[gnu::weak]], kAvx512Table [[gnu::weak]], kAvx512Bf16Table [[gnu::weak]],
    kAmxTable [[gnu::weak]], kNeonBf16Table [[gnu::weak]];

const KernelTable& kernels();
void set_isa(const std::string& name);  // throws std::invalid_argument
// The instruction sets of this build, or of these the ones that this CPU has; slowest first.
std::vector<std::string> isas(bool supported);

}  // namespace rnnext
