// The CPU kernels on teams of std::thread, for ThreadSanitizer, which does not know the thread pool
// of torch: a member that reads what another has not yet written is a race, however the threads
// happen to run. Two callers have a team each. `races ROUNDS`
#include <array>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/runtime/dispatch.h"

namespace rnnext {
extern const KernelTable kGenericTable;
// (Without the sleep of the product: TSan lets a thread that spins for long give way.)
void Count::spin_for(int64_t n) const {
  while (n_.load(std::memory_order_acquire) < n) std::this_thread::yield();
}
}  // namespace rnnext

namespace {

using namespace rnnext;
using Numbers = std::vector<float>;

thread_local std::mt19937 random_bits;  // of a caller, who has a team
int64_t any_of(std::initializer_list<int64_t> values) {
  return values.begin()[random_bits() % values.size()];
}
Numbers numbers(int64_t n) {
  Numbers all(n);
  for (float& x : all) x = static_cast<float>(random_bits() % 1000) / 1000 - 0.5f;
  return all;
}

// run(workspace, worker) on each of a team's threads.
template <class Run>
void on_team(int threads, size_t bytes, const Run& run) {
  char* const workspace = static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64));
  std::vector<Count> counts(1 + threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank)
    team.emplace_back([&, rank] {
      Worker worker(counts.data(), rank, threads, threads);
      run(workspace, worker);
    });
  for (std::thread& each : team) each.join();
  std::free(workspace);
}

// A layer with all that it points to.
struct Layer {
  Recurrence p;
  std::vector<Numbers> memory;
  std::vector<int64_t> lengths;
  std::vector<char> reset;
  PhiloxKeys keys{5};

  float* of(int64_t n) { return memory.emplace_back(numbers(n)).data(); }
  Layer(int64_t T, int64_t B, int64_t I, int64_t H, int D) {
    p.T = T, p.B = B, p.I = I, p.H = H, p.D = D;
    p.reverse[D - 1] = D > 1 || random_bits() % 4 == 0;
    p.form = static_cast<Form>(random_bits() % 4);
    const bool noise = random_bits() % 4 == 0;
    for (int d = 0; d < D; ++d) {
      p.weight_ih[d] = of(H * I), p.weight_hh[d] = of(H * H);
      p.bias_ih[d] = of(H), p.bias_hh[d] = of(H);
      if (noise) p.noise[d] = of(H);
      if (p.form == Form::none) continue;
      float* const alpha = of(H);
      for (int64_t j = 0; j < H; ++j) alpha[j] = 0.5f + 0.4f * alpha[j];
      p.alpha[d] = alpha;
    }
    p.noise_keys = &keys;
    if (random_bits() % 2) p.hx = of(D * B * H);
    for (int64_t b = 0; b < B; ++b) lengths.push_back(any_of({0, 1, T / 2, T, T}));
    if (random_bits() % 3 == 0) p.lengths = lengths.data();
    for (int64_t n = 0; n < T * B; ++n) reset.push_back(random_bits() % 8 == 0);
    if (random_bits() % 3 == 0) {
      p.reset = reinterpret_cast<const bool*>(reset.data());
      p.reset_state = of(D * B * H);
    }
    p.input = {of(T * B * I), B * I, I, nullptr};
    p.output = of(T * B * D * H), p.h_n = of(D * B * H);
    if (p.form != Form::none) p.saved = of(T * B * D * H);
  }
};

void one_layer(const RnnKernels& kernels) {
  Layer layer(any_of({1, 2, 5, 20}), any_of({1, 2, 7, 16, 40}), any_of({1, 5, 40}),
              any_of({8, 33, 130, 400}), static_cast<int>(any_of({1, 2})));
  const Recurrence& p = layer.p;
  const int threads = static_cast<int>(any_of({2, 3, 4}));
  on_team(threads, kernels.forward_workspace(p, threads),
          [&](char* workspace, Worker& worker) { kernels.forward(p, workspace, worker); });
  RecurrenceGradOut out;
  const bool all = random_bits() % 2, of_features = all || random_bits() % 2;
  for (int d = 0; d < p.D; ++d) {
    if (p.multiplies_state()) out.weight_hh[d] = layer.of(p.H * p.H);
    out.bias[d] = layer.of(p.H);
    if (of_features) out.weight_ih[d] = layer.of(p.H * p.I);
    if (p.form != Form::none) out.alpha[d] = layer.of(p.H);
  }
  if (all || random_bits() % 2) out.input = layer.of(p.T * p.B * p.I);
  if (all || random_bits() % 2) out.hx = layer.of(p.D * p.B * p.H);
  if (p.reset) out.reset_state = layer.of(p.D * p.B * p.H);
  const RecurrenceGrad grad{layer.of(p.T * p.B * p.D * p.H), layer.of(p.D * p.B * p.H)};
  on_team(
      threads, kernels.backward_workspace(p, out, threads),
      [&](char* workspace, Worker& worker) { kernels.backward(p, grad, out, workspace, worker); });
}

void stack(const RnnKernels& kernels) {
  const int64_t T = any_of({2, 9, 40}), B = any_of({1, 3, 8}), H = any_of({16, 60});
  const int n = static_cast<int>(any_of({2, 3})), threads = static_cast<int>(any_of({2, 3}));
  std::vector<Layer> layers;
  layers.reserve(n);
  std::vector<Recurrence> calls;
  for (int l = 0; l < n; ++l) {
    layers.emplace_back(T, B, H, H, 1);
    Recurrence& p = layers.back().p;
    p.noise_keys = &layers.back().keys;
    p.noise[0] = nullptr, p.reverse[0] = false, p.reset = nullptr, p.reset_state = nullptr;
    p.lengths = calls.empty() ? p.lengths : calls[0].lengths;
    p.form = Form::none, p.saved = nullptr;
    if (l > 0) p.input.data = calls.back().output;
    calls.push_back(p);
  }
  const size_t bytes = kernels.stack_workspace(calls.data(), n, threads);
  if (bytes == 0) return;
  on_team(std::min(threads, n), bytes, [&](char* workspace, Worker& worker) {
    kernels.stack(calls.data(), n, workspace, worker);
  });
}

}  // namespace

int main(int, char** arguments) {
  const RnnKernels& kernels = *kGenericTable.rnn[0];
  const auto calls = [&](int seed) {
    random_bits.seed(seed);
    for (int round = std::atoi(arguments[1]) / 2; round > 0; --round) {
      one_layer(kernels);
      stack(kernels);
    }
  };
  std::thread other([&] { calls(1); });
  calls(0);
  other.join();
  std::puts("done");
}
