// For LD_PRELOAD: all memory of torch's tensors, results and workspaces too, ends at a page that
// nobody may touch. What is freed is never used again, and nobody may touch it either.
#include <dlfcn.h>
#include <errno.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr size_t kPage = 4096, kPages = size_t{1} << 28;  // addresses, not memory
constexpr size_t kLargest = size_t{1} << 30;              // a larger block is malloc's to refuse

char* reserve(size_t size) {
  return static_cast<char*>(
      mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

char* const area = reserve(kPages * kPage);
std::atomic<size_t> used{0};
// In pages, of the block that begins at each.
uint32_t* const sizes = [] {
  char* const all = reserve(kPages * sizeof(uint32_t));
  mprotect(all, kPages * sizeof(uint32_t), PROT_READ | PROT_WRITE);
  return reinterpret_cast<uint32_t*>(all);
}();

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// torch's allocator is known by the alignment that it asks for.
extern "C" int posix_memalign(void** block, size_t alignment, size_t size) {
  static auto* const other = real<int(void**, size_t, size_t)>("posix_memalign");
  if (alignment != 64 || size == 0 || size > kLargest || area == nullptr)
    return other(block, alignment, size);
  const size_t pages = (size + kPage - 1) / kPage, first = used.fetch_add(pages + 1);
  if (first + pages >= kPages) return ENOMEM;
  mprotect(area + first * kPage, pages * kPage, PROT_READ | PROT_WRITE);
  sizes[first] = pages;
  *block = area + (first + pages) * kPage - size;
  return 0;
}

extern "C" void free(void* block) {
  static auto* const other = real<void(void*)>("free");
  const size_t offset = static_cast<char*>(block) - area;
  if (area == nullptr || offset >= kPages * kPage) return other(block);
  const size_t first = offset / kPage, bytes = sizes[first] * kPage;
  madvise(area + first * kPage, bytes, MADV_DONTNEED);
  mprotect(area + first * kPage, bytes, PROT_NONE);
}
