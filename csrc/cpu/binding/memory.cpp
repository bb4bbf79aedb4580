#include "cpu/binding/memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace rnnext {
namespace {

constexpr size_t kLarge = 256 << 10;
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kKept = 256 << 20;
constexpr size_t kWarm = 64 << 20;  // as much as glibc itself may keep of a heap's end

struct Block {
  void* data;
  size_t size;
  bool lent = false;
};

// Blocks that nobody uses, oldest first. Whoever finds it locked does without: the child of a fork
// may find it so for ever.
class Pool {
 public:
  // The smallest block that fits and wastes little, of these the last to be freed; or null.
  Block take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    auto best = blocks_.end();
    if (lock)
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

  // Gives back all that is kept.
  void clear() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (const Block& block : blocks_) std::free(block.data);
    blocks_.clear();
    kept_ = 0;
  }

 private:
  // All but what was freed last is lent to the system, which takes pages if it runs short and else
  // leaves them as they are. (Telling it stops the other cores for a moment: 10 us for 2 MiB.)
  void lend() {
    size_t newer = blocks_.back().size;
    for (auto block = blocks_.rbegin() + 1; block != blocks_.rend(); ++block) {
      newer += block->size;
      if (newer <= kWarm || block->lent) continue;
#ifdef __linux__
      // Whole pages: the last of a block may hold another's bytes where they are larger than 4 KiB.
      static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      if (reinterpret_cast<uintptr_t>(block->data) % page == 0)
        madvise(block->data, block->size / page * page, MADV_FREE);
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

Block allocate_block(size_t size) {
  size = (size + 4095) / 4096 * 4096;
  if (const Block kept = pool().take(size); kept.data) return kept;
  void* data = nullptr;
  const auto allocate = [&] {
    return posix_memalign(&data, size >= kHugePage ? kHugePage : 4096, size) == 0;
  };
  bool done = allocate();
  if (!done) {  // what is kept may be what is missing
    pool().clear();
    done = allocate();
  }
  TORCH_CHECK(done, "not enough memory: could not allocate ", size, " bytes");
#ifdef __linux__
  if (size >= kHugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
  return {data, size};
}

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  pool().give(*block);
  delete block;
}

struct LargeAllocator final : c10::Allocator {
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
  const size_t size = c10::multiply_integers(shape) * options.dtype().itemsize();
  if (size < kLarge) return at::detail::empty_cpu(shape, options);  // past the dispatcher
  static LargeAllocator allocator;
  return at::detail::empty_generic(shape, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

}  // namespace rnnext
