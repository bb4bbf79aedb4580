// The arena, its shadow, and the hooks that the compiler calls before every access of a kernel.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <new>
#include <string>

#include "execution.h"

namespace cuda_host {
namespace {

constexpr size_t kArenaBytes = size_t(1) << 32;
constexpr int kGranule = 2;  // the smallest element that is checked for races
constexpr uint32_t kHost = 0xfffffffe, kMany = 0xffffffff, kFlag = 0xfffffffd;

enum State : uint32_t { kUnallocated = 0, kUnwritten, kWritten, kReadOnly };

// What is known about two bytes. Times are those of now(); ids are those of Fiber or the above.
struct Shadow {
  uint32_t state : 2, write_time : 30;
  uint32_t writer;
  uint32_t read_time;
  uint32_t reader;  // kMany: several threads that were not ordered with each other
};

unsigned char* arena = nullptr;
Shadow* shadow_base = nullptr;
size_t used = 0;
std::map<uintptr_t, std::pair<size_t, std::string>> names;
std::map<uintptr_t, size_t> asynchronous_only;  // begin and size

void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

bool in_arena(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - arena) < kArenaBytes;
}
Shadow* shadow(const void* p) {
  return shadow_base + (static_cast<const unsigned char*>(p) - arena) / kGranule;
}
Shadow* shadow_end(const void* p, size_t bytes) {
  return shadow(static_cast<const unsigned char*>(p) + bytes + kGranule - 1);
}

void set_state(void* p, size_t bytes, State state, uint32_t writer) {
  for (Shadow *s = shadow(p), *end = shadow_end(p, bytes); s != end; ++s) {
    *s = Shadow{state, 1, writer, 1, kHost};
  }
}

// Whether what thread `id` did at `time` lies before what the running thread does now. Where
// several readers take part the answer errs towards yes. `to_overwrite`: it is enough to know that
// it is done.
bool ordered(uint32_t id, uint32_t time, bool to_overwrite = false) {
  Fiber* me = current();
  if (id == me->id || id == kHost || id == kFlag || time < launch_start()) return true;
  if (id >= kFirstBarrierId && id < kFlag) return to_overwrite || acquired(id, time);
  Fiber* other = id == kMany ? me : live_fiber(id);
  if (other == nullptr) return false;  // of a block that is over
  if (other->block == me->block) {
    if (me->block->last_barrier > time) return true;
    if (me->last_named_barrier > time && other->last_named_barrier > time) return true;
    if (other->warp == me->warp && me->last_warp_barrier > time) return true;
  }
  if (id != kMany && acquired(other, time, to_overwrite)) return true;
  if (id == kMany && uses_flags()) return true;
  // A cluster barrier orders what came before the other's arrival with what follows my wait.
  if (other->block->cluster != me->block->cluster || me->phase == 0) return false;
  return (id == kMany ? me->last_cluster_barrier : other->arrived[(me->phase - 1) & 1]) > time;
}

[[noreturn]] void fail_access(const char* what, const void* p, size_t bytes) {
  char where[160];
  describe_address(p, where, sizeof where);
  fail("%s: %zu bytes at %s", what, bytes, where);
}

[[noreturn]] void fail_race(const char* mine, const char* theirs, uint32_t id, const void* p,
                            size_t bytes) {
  char where[160], who[64] = "several threads";
  describe_address(p, where, sizeof where);
  if (id != kMany) {
    if (Fiber* other = live_fiber(id)) {
      std::snprintf(who, sizeof who, "block (%u,%u,%u) thread (%u,%u,%u)", other->block->index.x,
                    other->block->index.y, other->block->index.z, other->thread_index.x,
                    other->thread_index.y, other->thread_index.z);
    } else {
      std::snprintf(who, sizeof who, "thread %u of the grid", id - 1);
    }
  }
  fail("race: this %s of %zu bytes at %s is not ordered with the %s by %s", mine, bytes, where,
       theirs, who);
}

}  // namespace

void poison(void* p, size_t bytes) { std::memset(p, 0xff, bytes); }

unsigned char* allocate(size_t bytes, size_t alignment) {
  if (arena == nullptr) {
    shadow_base = static_cast<Shadow*>(reserve(kArenaBytes / kGranule * sizeof(Shadow)));
    arena = static_cast<unsigned char*>(reserve(kArenaBytes));
  }
  // A gap that nobody may touch, then an address that is aligned no better than asked for.
  used = (used + 256 + 2 * alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
  if (used + bytes > kArenaBytes - 4096) throw std::bad_alloc();
  unsigned char* p = arena + used;
  used += (bytes + kGranule - 1) / kGranule * kGranule;
  poison(p, bytes);
  mark_unwritten(p, bytes);
  return p;
}

void mark_unwritten(void* p, size_t bytes) { set_state(p, bytes, kUnwritten, kHost); }
void mark_unallocated(void* p, size_t bytes) { set_state(p, bytes, kUnallocated, kHost); }

void describe_address(const void* p, char* out, size_t size) {
  auto at = names.upper_bound(reinterpret_cast<uintptr_t>(p));
  if (at == names.begin()) {
    std::snprintf(out, size, "%p", p);
    return;
  }
  --at;
  std::snprintf(out, size, "%s + %zu (of %zu bytes)", at->second.second.c_str(),
                size_t(reinterpret_cast<uintptr_t>(p) - at->first), at->second.first);
}

size_t arena_used() { return used; }
void arena_release(size_t mark) {
  names.erase(names.lower_bound(reinterpret_cast<uintptr_t>(arena + mark)), names.end());
  mark_unallocated(arena + mark, used - mark);
  used = mark;
}

void name_memory(const void* p, size_t bytes, const char* name) {
  names[reinterpret_cast<uintptr_t>(p)] = {bytes, name};
}

void on_read(const void* p, size_t bytes) {
  Fiber* me = current();
  if (me == nullptr || !in_arena(p)) return;
  uint32_t time = now();
  for (Shadow *s = shadow(p), *end = shadow_end(p, bytes); s < end; ++s) {
    if (s->state == kReadOnly) return;  // whole buffers are
    if (s->state == kUnallocated) fail_access("read out of bounds", p, bytes);
    if (s->state == kUnwritten) fail_access("read of memory that nothing wrote", p, bytes);
    if (bytes < kGranule || (s->reader == me->id && s->read_time == time)) continue;
    if (s->writer != me->id && !ordered(s->writer, s->write_time)) {
      fail_race("read", "write", s->writer, p, bytes);
    }
    s->reader = s->reader == me->id || ordered(s->reader, s->read_time) ? me->id : kMany;
    s->read_time = time;
  }
}

void on_write(void* p, size_t bytes) {
  Fiber* me = current();
  if (me == nullptr || !in_arena(p)) return;
  uint32_t time = now();
  for (Shadow *s = shadow(p), *end = shadow_end(p, bytes); s < end; ++s) {
    if (s->state == kUnallocated) fail_access("write out of bounds", p, bytes);
    if (s->state == kReadOnly) fail_access("write to a constant buffer", p, bytes);
    s->state = kWritten;
    if (bytes < kGranule) continue;
    if (s->writer != me->id && !ordered(s->writer, s->write_time, true)) {
      fail_race("write", "write", s->writer, p, bytes);
    }
    if (s->reader != me->id && !ordered(s->reader, s->read_time, true)) {
      fail_race("write", "read", s->reader, p, bytes);
    }
    s->writer = me->id;
    s->write_time = time;
  }
}

void on_plain_read(const void* p, size_t bytes) {
  if (!asynchronous_only.empty() && current() != nullptr) {
    auto at = asynchronous_only.upper_bound(reinterpret_cast<uintptr_t>(p));
    if (at != asynchronous_only.begin() &&
        reinterpret_cast<uintptr_t>(p) < std::prev(at)->first + std::prev(at)->second) {
      fail_access("a thread waits for memory that asynchronous copies should bring", p, bytes);
    }
  }
  on_read(p, bytes);
}

void on_async_start(void* p, size_t bytes) {
  on_write(p, bytes);
  poison(p, bytes);
  mark_unwritten(p, bytes);
}

void on_async_end(void* p, size_t bytes, uint32_t id) {
  for (Shadow *s = shadow(p), *end = shadow_end(p, bytes); s < end; ++s) {
    *s = Shadow{kWritten, now(), id, 1, kHost};
  }
}

void on_flag(const void* p, bool write, size_t bytes) {
  if (!in_arena(p)) return;
  for (Shadow *s = shadow(p), *end = shadow_end(p, bytes); s < end; ++s) {
    if (s->state == kUnallocated) fail_access("flag out of bounds", p, bytes);
    if (s->state == kUnwritten && !write)
      fail_access("read of a flag that nothing wrote", p, bytes);
    if (s->state == kReadOnly && write) fail_access("write to a constant buffer", p, bytes);
    if (write) s->state = kWritten;
    s->writer = s->reader = kFlag;
  }
}

}  // namespace cuda_host

// What Python calls (host.py).
extern "C" {

void* cuda_host_allocate(size_t bytes, size_t alignment, const char* name) {
  void* p = cuda_host::allocate(bytes, alignment);
  cuda_host::name_memory(p, bytes, name);
  return p;
}

void cuda_host_mark_written(void* p, size_t bytes, int read_only) {
  using namespace cuda_host;
  set_state(p, bytes, read_only ? kReadOnly : kWritten, kHost);
}

void cuda_host_asynchronous_only(void* p, size_t bytes) {
  cuda_host::asynchronous_only[reinterpret_cast<uintptr_t>(p)] = bytes;
}

void cuda_host_free_all() {
  using namespace cuda_host;
  asynchronous_only.clear();
  if (arena == nullptr) return;
  madvise(arena, used, MADV_DONTNEED);
  madvise(shadow_base, (used / kGranule + 1) * sizeof(Shadow), MADV_DONTNEED);
  used = 0;
  names.clear();
}

// The hooks of -fsanitize=thread.
#define ACCESS(bytes)                                                                \
  void __tsan_read##bytes(void* p) { cuda_host::on_plain_read(p, bytes); }           \
  void __tsan_write##bytes(void* p) { cuda_host::on_write(p, bytes); }               \
  void __tsan_unaligned_read##bytes(void* p) { cuda_host::on_plain_read(p, bytes); } \
  void __tsan_unaligned_write##bytes(void* p) { cuda_host::on_write(p, bytes); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS
void __tsan_read_range(void* p, size_t bytes) { cuda_host::on_plain_read(p, bytes); }
void __tsan_write_range(void* p, size_t bytes) { cuda_host::on_write(p, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// Of the guards of static variables, on the host.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return *p; }

// Those of -fsanitize=undefined; each report begins with the place in the source.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
#define UNDEFINED(name, what)                                    \
  void __ubsan_handle_##name(SourceLocation* at, void*, void*) { \
    cuda_host::fail("%s at %s:%u", what, at->file, at->line);    \
  }
UNDEFINED(type_mismatch_v1, "misaligned or null pointer")
UNDEFINED(out_of_bounds, "array index out of bounds")
UNDEFINED(shift_out_of_bounds, "shift by more than the width")
UNDEFINED(divrem_overflow, "division by zero")
#undef UNDEFINED
}
