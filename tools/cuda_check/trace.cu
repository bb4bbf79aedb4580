// The resident kernels with a clock in them. The group and the engine are wrapped, so the kernels
// stay as they are: thread 0 of block 0 notes the SM's clock, of 32 bits, at seven places of a step
// in shared memory behind the kernel's own, and copies the last steps out at the end.
#include "cuda/recurrence/cell.cuh"
#include "cuda/recurrence/kernel.cuh"

namespace rnnext::cuda {
namespace {

constexpr int kSteps = 64;
enum Place { receive, received, product, produced, publish, finish, finished, kPlaces };
constexpr size_t kBytes = kSteps * kPlaces * sizeof(unsigned);

#ifdef __CUDACC__
__device__ __forceinline__ unsigned ticks() {
  unsigned now;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(now)::"memory");
  return now;
}
#else
unsigned ticks() {  // in a rehearsal on the host
  static unsigned count = 0;
  return ++count;
}
#endif

class Notes {
 public:
  Notes() = default;
  __device__ explicit Notes(unsigned char* memory) : at_(reinterpret_cast<unsigned*>(memory)) {}
  __device__ void note(Place place) {
    if (threadIdx.x == 0) at_[place] = ticks();
  }
  // Goes on to the next step.
  __device__ void next() {
    step_ = (step_ + 1) % kSteps;
    at_ += step_ ? int(kPlaces) : -(kSteps - 1) * int(kPlaces);
  }

 private:
  unsigned* at_ = nullptr;
  int step_ = 0;
};

template <class Group>
class Traced : public Group {
 public:
  __device__ Traced(const DeviceCall& p, const Geometry& g, int group, int rank,
                    unsigned char* shared)
      : Group(p, g, group, rank, shared), notes_(shared + g.shared_bytes) {}
  template <class... Arguments>
  __device__ void receive(Arguments... arguments) {
    notes_.note(Place::receive);
    Group::receive(arguments...);
    notes_.note(Place::received);
  }
  template <class... Arguments>
  __device__ void publish(const Arguments&... arguments) {
    if (first_) notes_.note(Place::publish);
    first_ = false;
    Group::publish(arguments...);
  }
  template <class... Arguments>
  __device__ void finish(Arguments... arguments) {
    notes_.note(Place::finish);
    Group::finish(arguments...);
    notes_.note(Place::finished);
    notes_.next();
    first_ = true;
  }

 private:
  Notes notes_;
  bool first_ = true;  // of the words of a step
};

template <class Engine>
class TracedEngine : public Engine {
 public:
  __device__ void load(const void* matrix, int64_t stride, int first_unit, int units,
                       const Geometry& g, unsigned char* shared) {
    notes_ = Notes(shared + g.shared_bytes);
    Engine::load(matrix, stride, first_unit, units, g, shared);
  }
  template <class... Arguments>
  __device__ void product(const Arguments&... arguments) {
    notes_.note(Place::product);
    Engine::product(arguments...);
    notes_.note(Place::produced);
    notes_.next();
  }

 private:
  Notes notes_;
};

template <class Engine, class Pass, class Group>
__global__ void __launch_bounds__(kThreads, 1)
    trace_kernel(const DeviceCall p, const Geometry g, unsigned* to) {
  if constexpr (kArchitecture >= Group::kArchitecture) {
    unsigned* notes = reinterpret_cast<unsigned*>(shared_memory() + g.shared_bytes);
    for (int i = threadIdx.x; i < kSteps * kPlaces; i += kThreads) notes[i] = 0;
    __syncthreads();
    Resident<TracedEngine<Engine>, Pass, Traced<Group>>(p, g, shared_memory()).run();
    __syncthreads();
    if (blockIdx.x > 0) return;
    for (int i = threadIdx.x; i < kSteps * kPlaces; i += kThreads) to[i] = notes[i];
  }
}

template <class Engine, class Pass>
cudaError_t run(const DeviceCall& p, const Geometry& g, unsigned* to) {
  LaunchShape shape;
  shape.grid = dim3(g.groups * g.blocks);
  shape.block = dim3(kThreads);
  shape.shared_bytes = g.shared_bytes + kBytes;
  shape.cluster = g.path == Path::cluster ? g.blocks : 1;
  shape.cooperative = g.path == Path::grid;
  const bool tagged = g.exchange == Exchange::tagged;
  switch (g.path) {
    case Path::block:
      return launch(trace_kernel<Engine, Pass, BlockGroup>, shape, nullptr, p, g, to);
    case Path::cluster:
      if (tagged) {
        return launch(trace_kernel<Engine, Pass, AsyncClusterGroup>, shape, nullptr, p, g, to);
      }
      return launch(trace_kernel<Engine, Pass, ClusterGroup>, shape, nullptr, p, g, to);
    case Path::grid:
      if (tagged) {
        return launch(trace_kernel<Engine, Pass, TaggedGridGroup>, shape, nullptr, p, g, to);
      }
      return launch(trace_kernel<Engine, Pass, GridGroup>, shape, nullptr, p, g, to);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace rnnext::cuda

using namespace rnnext::cuda;

// Of a forward pass of tanh in bfloat16 or float32; `to`: [kSteps, kPlaces] in device memory.
extern "C" int64_t trace_run(const DeviceCall* p, const Geometry* g, int64_t compute,
                             unsigned* to) {
  using Tanh = Fixed<rnnext::Nonlinearity::tanh>;
  switch (Compute(compute)) {
    case Compute::bf16:
      return run<MatrixEngine<__nv_bfloat16, __nv_bfloat16>, Forward<__nv_bfloat16, Tanh>>(*p, *g,
                                                                                           to);
    case Compute::f32:
      return run<ScalarEngine<float>, Forward<float, Tanh>>(*p, *g, to);
    default:
      return cudaErrorInvalidValue;
  }
}
