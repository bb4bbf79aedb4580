#include "cpu/runtime/memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/safe_numerics.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rnnext {
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kPooled = 4 << 20;  // from here on blocks come from the pool
constexpr size_t kKept = 512 << 20;
constexpr size_t kWarm = 64 << 20;

// glibc returns freed memory to the system beyond a threshold, which starts at 128 KiB and is twice
// the largest mapped block that the process has freed, up to 64 MiB. Below it every tensor of a
// model is faulted in again, page by page, in each training step. So free a block of nearly 32 MiB,
// as if the program had freed a tensor of that size. (This has no effect if MALLOC_TRIM_THRESHOLD_
// or MALLOC_MMAP_THRESHOLD_ turn the adaptation off.)
void adapt_thresholds() {
#ifdef __GLIBC__
  [[maybe_unused]] static const bool once = [] {
    constexpr size_t kMapped = 32 << 20;  // from here on glibc maps and unmaps each block, always
    void* volatile block = std::malloc(kMapped - (64 << 10));  // or the compiler drops both calls
    std::free(block);
    return true;
  }();
#endif
}

struct Block {
  void* data;
  size_t size;
  bool lent = false;
};

// Blocks that are not in use, oldest first. If the pool is locked, it is skipped: in the child of a
// fork it may stay locked for ever.
class Pool {
 public:
  // The smallest block that fits and wastes little, the last freed of several; or null.
  Block take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {nullptr, 0};
    auto best = blocks_.end();
    for (auto b = blocks_.begin(); b != blocks_.end(); ++b)
      if (b->size >= size && b->size <= size + size / 4 &&
          (best == blocks_.end() || b->size <= best->size))
        best = b;
    if (best == blocks_.end()) return {nullptr, 0};
    const Block block{best->data, best->size};
    blocks_.erase(best);
    kept_ -= block.size;
    return block;
  }

  void give(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.size > kKept) return std::free(block.data);
    for (kept_ += block.size; kept_ > kKept; blocks_.erase(blocks_.begin())) {
      kept_ -= blocks_.front().size;
      std::free(blocks_.front().data);
    }
    blocks_.push_back(block);
    lend();
  }

  void clear() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (const Block& block : blocks_) std::free(block.data);
    blocks_.clear();
    kept_ = 0;
  }

 private:
  // Lends all but what was freed last to the system, which takes pages if it runs short and
  // otherwise leaves them as they are. (Telling it stops the other cores for a moment.)
  void lend() {
    size_t newer = blocks_.back().size;
    for (auto block = blocks_.rbegin() + 1; block != blocks_.rend(); ++block) {
      newer += block->size;
      if (newer <= kWarm || block->lent) continue;
#ifdef __linux__
      madvise(block->data, block->size, MADV_FREE);
#endif
      block->lent = true;
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t kept_ = 0;
};

Pool& pool() {
  static auto* pool = new Pool;  // never destroyed: tensors may be freed at exit
  return *pool;
}

Block allocate_block(size_t asked) {
  const size_t size = (asked + kHugePage - 1) / kHugePage * kHugePage;
  if (const Block kept = pool().take(size); kept.data) return kept;
  void* data = nullptr;
  if (posix_memalign(&data, kHugePage, size) != 0) {
    pool().clear();  // frees what the pool keeps
    TORCH_CHECK(posix_memalign(&data, kHugePage, size) == 0,
                "not enough memory: could not allocate ", asked, " bytes");
  }
#ifdef __linux__
  madvise(data, size, MADV_HUGEPAGE);
#endif
  return {data, size};
}

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  pool().give(*block);
  delete block;
}

struct MappedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block(allocate_block(size));
    c10::profiledCPUMemoryReporter().New(block->data, size);
    return {block->data, block, free_block, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

}  // namespace

at::Tensor empty_large(at::IntArrayRef shape, const at::TensorOptions& options) {
  adapt_thresholds();
  uint64_t size = 0;
  if (c10::safe_multiplies_u64(shape, &size) || size * options.dtype().itemsize() < kPooled)
    return at::detail::empty_cpu(shape, options);  // past the dispatcher; raises if it overflows
  static MappedAllocator allocator;
  return at::detail::empty_generic(shape, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

at::Tensor shared(at::Tensor tensor) {
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  static std::mutex mutex;
  static std::unordered_multimap<size_t, Weak> known;
  const std::string_view own(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  const size_t hash = std::hash<std::string_view>{}(own);
  const std::lock_guard lock(mutex);
  for (auto [place, end] = known.equal_range(hash); place != end; ++place) {
    const at::Tensor other(place->second.lock());
    if (other.defined() && other.scalar_type() == tensor.scalar_type() &&
        other.sizes() == tensor.sizes() &&
        std::memcmp(other.const_data_ptr(), own.data(), own.size()) == 0)
      return other;
  }
  std::erase_if(known, [](const auto& each) { return each.second.expired(); });
  known.emplace(hash, Weak(tensor.getIntrusivePtr()));
  return tensor;
}

}  // namespace rnnext
