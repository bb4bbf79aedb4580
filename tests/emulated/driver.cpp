// The CPU kernels of an ISA without torch, on one thread: reads calls from a file, writes what they
// give. `driver ISA calls results`
//
// A call is nine int64 (T, B, I, H, D, dtype, nonlinearity, cell, and a bit for each direction that
// is reversed), then its arrays in the order of `run`, each behind its number of bytes. After the
// dtypes come float32 at "medium" and at "high". Results follow each other without those numbers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/isa/dispatch.h"

namespace rnnext {
#ifdef __aarch64__
extern const KernelTable kGenericTable, kNeonBf16Table;
constexpr const KernelTable* kTables[] = {&kGenericTable, &kNeonBf16Table};
#else
extern const KernelTable kAmxTable;
constexpr const KernelTable* kTables[] = {&kAmxTable};
// Below AMX, for what tiles do not multiply: no call of that kind comes here.
extern const KernelTable kAvx512Bf16Table;
const KernelTable kAvx512Bf16Table = {"", [] { return true; }, nullptr, {}, nullptr, nullptr, {}};
#endif
void Count::spin_for(int64_t) const { std::abort(); }  // one thread waits for nobody
}  // namespace rnnext

namespace {

using rnnext::Recurrence;
using Array = std::vector<char>;

struct Files {
  std::FILE *in, *out;

  bool read(void* to, size_t bytes) { return std::fread(to, 1, bytes, in) == bytes; }
  Array read() {
    int64_t bytes;
    if (!read(&bytes, sizeof bytes)) std::abort();
    Array array(bytes);
    if (!read(array.data(), bytes)) std::abort();
    return array;
  }
  void write(const Array& array) {
    if (std::fwrite(array.data(), 1, array.size(), out) != array.size()) std::abort();
  }
};

template <class Run>
void with_workspace(size_t bytes, const Run& run) {
  char* workspace = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64));
  rnnext::Count counts[2];
  rnnext::Worker worker(counts, 0, 1);
  run(workspace, worker);
  std::free(workspace);
}

void run(const rnnext::KernelTable& table, Files& files, const int64_t (&sizes)[9]) {
  const auto [T, B, I, H, D, dtype, nonlinearity, cell, reverse] = sizes;
  Recurrence p;
  p.T = T, p.B = B, p.I = I, p.H = H;
  p.D = static_cast<int>(D);
  p.nonlinearity = static_cast<rnnext::Nonlinearity>(nonlinearity);
  p.cell = static_cast<rnnext::Cell>(cell);
  const Array input = files.read(), hx = files.read(), lengths = files.read();
  std::vector<Array> weights;
  for (int d = 0; d < D; ++d) {
    p.reverse[d] = reverse >> d & 1;
    for (int i = 0; i < 4; ++i) weights.push_back(files.read());
    p.weight_ih[d] = weights[4 * d].data(), p.weight_hh[d] = weights[4 * d + 1].data();
    p.bias_ih[d] = weights[4 * d + 2].data(), p.bias_hh[d] = weights[4 * d + 3].data();
  }
  if (!lengths.empty()) p.lengths = reinterpret_cast<const int64_t*>(lengths.data());
  if (!hx.empty()) p.hx = hx.data();
  p.input = {input.data(), B * I, I, nullptr};
  const Array grad_output = files.read(), grad_h_n = files.read();

  Array output(grad_output.size()), h_n(grad_h_n.size());
  Array saved(output.size() * rnnext::traits_of(p.cell).saved);
  p.output = output.data(), p.h_n = h_n.data(), p.saved = saved.data();
  const rnnext::RnnKernels& kernels = dtype == 5   ? *table.rnn_high
                                      : dtype == 4 ? *table.rnn_medium
                                                   : *table.rnn[dtype];
  const rnnext::Machine& machine = rnnext::this_machine();
  const auto forward = rnnext::plan_forward(p, kernels.shape, machine, 1);
  with_workspace(kernels.forward_workspace(p, forward, 1),
                 [&](char* workspace, rnnext::Worker& worker) {
                   kernels.forward(p, forward, workspace, worker);
                 });

  rnnext::RecurrenceGradOut out;
  Array grad_input(input.size()), grad_hx(grad_h_n.size());
  std::vector<Array> grads;
  for (const Array& weight : weights) grads.emplace_back(weight.size());
  out.input = grad_input.data(), out.hx = grad_hx.data();
  for (int d = 0; d < D; ++d) {
    out.weight_ih[d] = grads[4 * d].data(), out.weight_hh[d] = grads[4 * d + 1].data();
    out.bias_ih[d] = grads[4 * d + 2].data(), out.bias_hh[d] = grads[4 * d + 3].data();
  }
  const rnnext::RecurrenceGrad grad{grad_output.data(), grad_h_n.data()};
  const auto backward = rnnext::plan_backward(p, out, kernels.shape, machine, 1, 1);
  with_workspace(kernels.backward_workspace(p, out, backward, 1),
                 [&](char* workspace, rnnext::Worker& worker) {
                   kernels.backward(p, grad, out, backward, workspace, worker);
                 });
  for (const Array* array : {&output, &h_n, &grad_input, &grad_hx}) files.write(*array);
  for (const Array& array : grads) files.write(array);
}

}  // namespace

int main(int, char** arguments) {
  const rnnext::KernelTable* table = nullptr;
  for (const rnnext::KernelTable* known : rnnext::kTables)
    if (std::strcmp(known->name, arguments[1]) == 0) table = known;
  if (!table) return 1;
  // Where the CPU has tiles, this is the request for them; elsewhere they are emulated.
  if (!table->supported() && std::strcmp(table->name, "amx") != 0) return 1;
  Files files{std::fopen(arguments[2], "rb"), std::fopen(arguments[3], "wb")};
  if (!files.in || !files.out) return 1;
  for (int64_t sizes[9]; files.read(sizes, sizeof sizes);) run(*table, files, sizes);
  return std::fclose(files.out);
}
