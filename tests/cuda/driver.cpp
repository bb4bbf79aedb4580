// Runs every kind of kernel of the CUDA half, without torch, under compute-sanitizer and ncu. Each
// tensor is an allocation of its own, so that what lies beside it is out of bounds. Its numbers are
// small in every type; results are NaNs before, and must not be afterwards.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/embedding/kernel.h"
#include "cuda/recurrence/launch.h"

using namespace rnnext;
using namespace rnnext::cuda;

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

class Memory {
 public:
  ~Memory() {
    for (const Tensor& t : all_) cudaFree(t.data);
  }
  // Of so many elements, each byte of which is `byte`.
  void* take(int64_t count, int size, int byte) {
    Tensor t{nullptr, count, size};
    check(cudaMalloc(&t.data, count * size));
    check(cudaMemset(t.data, byte, count * size));
    all_.push_back(t);
    return t.data;
  }
  void* zeros(int64_t count, int size) { return take(count, size, 0); }
  void* numbers(int64_t count, int size) { return take(count, size, 0x3C); }
  void* results(int64_t count, int size) {
    void* const data = take(count, size, 0xFF);
    results_.push_back(all_.back());
    return data;
  }
  void check_results() const {
    for (const Tensor& t : results_) {
      std::vector<unsigned char> bytes(t.count * t.size);
      check(cudaMemcpy(bytes.data(), t.data, bytes.size(), cudaMemcpyDeviceToHost));
      for (int64_t i = 0; i < t.count; ++i) {
        bool left = true;
        for (int k = 0; k < t.size; ++k) left = left && bytes[i * t.size + k] == 0xFF;
        if (left) throw std::runtime_error("a result was not written");
      }
    }
  }

 private:
  struct Tensor {
    void* data;
    int64_t count;
    int size;
  };
  std::vector<Tensor> all_, results_;
};

constexpr const char* kPaths[] = {"step", "block", "cluster", "grid"};
constexpr const char* kComputes[] = {"f32", "f64", "bf16", "f16", "tf32"};

// A pass in two directions; `any`: with a leak, and with a reset before every step.
void recurrence(const Device& device, const char* path, Compute compute, bool backward, bool any,
                int64_t H) {
  const Problem problem{5, 3, H, 2, compute, backward};
  const Geometry g = choose(problem, device, path);
  const int64_t T = problem.T, B = problem.B, D = problem.D, rows = T * B * D * H,
                state = D * B * H;
  const int size = element_size(compute), wide = compute == Compute::f64 ? 8 : 4;
  Memory memory;
  DeviceCall p;
  p.T = T, p.B = B, p.H = H, p.D = int(D), p.reverse[1] = true;
  p.paired = H % 2 == 0, p.source_step = H;
  p.input = {memory.numbers(rows, size), B * D * H, D * H};
  p.matrix_stride = (H * size + 63) / 64 * 64 / size;
  for (int d = 0; d < D; ++d) {
    p.bias_ih[d] = memory.numbers(H, size), p.bias_hh[d] = memory.numbers(H, size);
    p.matrix[d] = memory.numbers(H * p.matrix_stride, size);
  }
  p.hx = memory.numbers(state, size);
  p.flags = static_cast<unsigned*>(memory.zeros(g.flag_count() + 1, 4));
  p.exchange = static_cast<unsigned char*>(memory.zeros(g.exchange_bytes() + 16, 1));
  if (backward) {
    p.output = memory.numbers(rows, size);
    p.grad = {memory.numbers(rows, size), memory.numbers(state, size)};
    p.grad_out.pre = memory.results(rows, size), p.grad_out.hx = memory.results(state, size);
  }
  void* v = memory.numbers(state, size);
  if (any) {
    p.cell = Cell::rate;
    p.alpha[0] = memory.numbers(D * H, size);
    p.reset = static_cast<const bool*>(memory.take(T * B, 1, 1));
    p.marks = static_cast<const int*>(memory.take(T * B, 4, 1));
    p.reset_state = memory.numbers(state, size);
    p.carry = memory.zeros(state, wide);
    (backward ? p.mixed : p.saved) = memory.results(rows, size);
  }
  if (!backward) p.output = memory.results(rows, size), p.h_n = memory.results(state, size);
  if (any) {
    v = memory.results(state, size);
    p.reset_output = memory.results(state, size);
    check(launch_state_kernel(StateKernel::prologue, p, nullptr, v, compute, nullptr));
    p.hx = v;
  }
  if (g.path != Path::step) {
    check(launch_resident(p, g, compute, backward, nullptr));
  } else {
    const void* const product = memory.numbers(state, size);
    for (int64_t n = 0; n < T + backward; ++n) {
      check(launch_step(p, {n, product, v}, compute, backward, nullptr));
    }
  }
  if (backward && any) {
    void *sums = memory.results(state, size), *grad = memory.results(state, size);
    void* const before = memory.results(rows, size);
    check(launch_state_kernel(StateKernel::previous_state, p, p.output, before, compute, nullptr));
    check(launch_state_kernel(StateKernel::reset_sums, p, nullptr, sums, compute, nullptr));
    check(launch_state_kernel(StateKernel::reset_gradient, p, sums, grad, compute, nullptr));
  }
  check(cudaDeviceSynchronize());
  memory.check_results();
}

// Rows of so many columns of float32 from a table of 50, and the gradient of one row.
void embedding(int64_t columns) {
  constexpr int64_t count = 300, rows = 50;
  Memory memory;
  const TableIndices indices{memory.zeros(count, 8), true, count, rows, nullptr};
  void* const gathered = memory.results(count * columns, 4);
  const void* const table = memory.numbers(rows * columns, 4);
  check(launch_embedding_gather({indices, table, columns * 4, columns * 4, gathered}, nullptr));
  auto* const keys = static_cast<int32_t*>(memory.results(count, 4));
  auto* const positions = static_cast<int32_t*>(memory.results(count, 4));
  check(launch_embedding_keys(indices, -1, keys, positions, nullptr));
  const int64_t bytes = embedding_partial_bytes(count, columns, DType::f32);
  check(launch_embedding_reduce({DType::f32, keys, positions, nullptr, count, rows, columns, false,
                                 gathered, memory.results(columns, 4), memory.zeros(bytes, 1)},
                                nullptr));
  check(launch_table_rows(indices, static_cast<int64_t*>(memory.results(count, 8)), nullptr));
  check(cudaDeviceSynchronize());
  memory.check_results();
}

}  // namespace

// Recurrences of H units, then embeddings: those whose name begins with `only`. 0: no error.
extern "C" int run_kernels(int64_t H, const char* only) {
  std::string running;
  const auto begins = [&](const std::string& name) {
    if (name.rfind(only, 0) != 0) return false;
    running = name;
    std::printf("%s\n", name.c_str());
    std::fflush(stdout);
    return true;
  };
  try {
    Device device;
    check(describe(&device));
    for (const std::string path : kPaths) {
      if (device.capability < (path == "cluster" ? 90 : 80) && path != "step") continue;
      for (int number = 0; number < 5 * 2 * 2; ++number) {
        const int compute = number / 4;
        const bool backward = number & 2, any = number & 1;
        if (begins(path + ", " + kComputes[compute] + (backward ? ", backward" : ", forward") +
                   (any ? ", any" : ""))) {
          // (A block of an RTX 4090 holds float64 up to 130 units.)
          recurrence(device, path.c_str(), Compute(compute), backward, any,
                     Compute(compute) == Compute::f64 ? std::min<int64_t>(H, 130) : H);
        }
      }
    }
    for (const int64_t columns : {64, 129}) {
      if (begins("embedding of " + std::to_string(columns))) embedding(columns);
    }
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", running.c_str(), error.what());
    return 1;
  }
  return 0;
}

int main(int count, char** words) { return run_kernels(200, count > 1 ? words[1] : ""); }
