// Host execution of CUDA kernels: what include/*.h and the two sources beside this file share.
//
// Every CUDA thread is a fiber; one fiber runs at a time and hands over only inside the functions
// below. Which one runs next is random from a seed: either evenly (even seeds), or by random
// priorities that let some blocks and warps run as far ahead as the barriers allow (odd seeds), so
// that code which lacks a barrier meets an order that breaks it.
//
// Memory that the kernels may touch lies in one arena with a shadow record for every two bytes:
// never allocated, never written, or who read and wrote it last and when. The kernels are compiled
// with -fsanitize=thread, whose hooks (one call before every access) memory.cpp defines itself, and
// with -fsanitize=alignment,bounds,..., whose reports it turns into errors as well. An access out
// of bounds, of memory that nothing wrote, misaligned, or unordered with another thread's access to
// the same bytes ends the launch with an error that says which thread did what.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_host {

struct Index {
  unsigned x, y, z;
};
struct Cluster;

constexpr int kNamedBarriers = 16;

struct Block {
  Index index, dimensions, grid;
  unsigned rank;  // within its cluster
  unsigned char* shared;
  size_t shared_bytes;
  Cluster* cluster;
  int alive;
  uint32_t last_barrier;  // when the last barrier of all threads completed
};

struct Fiber {
  Index thread_index;
  Block* block;
  uint32_t id;     // its number in the grid, from 1
  int warp, lane;  // within the block
  uint32_t last_named_barrier, last_warp_barrier;
  uint32_t arrived[2];            // when it arrived at the cluster barriers of even and odd phase
  unsigned phase;                 // cluster barriers it has waited for
  uint32_t last_cluster_barrier;  // when all had arrived at the last of these
  bool at_cluster_barrier;
  void* stack;  // where it goes on
  const char* waits_at;
  uint64_t priority;
};

Fiber* current();  // null outside a launch
inline int lane() { return current()->lane; }

// Ends the launch: it returns cudaErrorLaunchFailure and last_error() holds the message, with the
// running thread's coordinates.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
const char* last_error();

void yield();        // let any other thread go first; for spins
void maybe_yield();  // the same, once in a while

void block_barrier(int id, int threads);  // threads 0: all of the block
void cluster_arrive();
void cluster_wait();
unsigned cluster_size();
void* peer_shared(void* mine, unsigned rank);

enum class MmaFormat { f16, bf16, tf32 };
void warp_sync(unsigned mask);
unsigned warp_ballot(unsigned mask, bool predicate);
uint64_t warp_shuffle(unsigned mask, uint64_t value, int source_lane);
void warp_mma(MmaFormat format, float* d, const uint32_t* a, const uint32_t* b);

void copy_async(void* shared, const void* global, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);

// mbarriers and the stores that complete on them. Stores land later, in random order.
void barrier_init(uint64_t* barrier, int arrivals);
void barrier_arrive(uint64_t* barrier, int expected_bytes);
void barrier_wait(uint64_t* barrier, bool odd);
void store_async(void* to, const void* words, uint64_t* barrier);

// Accesses that order nothing. Stores to different places are seen in random order.
void load_relaxed(void* x, const void* p, int bytes);
void store_relaxed(void* p, const void* x, int bytes);

void deliver_some();  // of the stores on their way
void deliver_all();
void block_is_over(const Block* block);

unsigned load_acquire(const unsigned* flag);
void store_release(unsigned* flag, unsigned value);
unsigned compare_and_swap(unsigned* p, unsigned expected, unsigned desired);

// Between the two sources.
uint32_t now();                  // counts the events that order accesses
uint32_t launch_start();         // accesses before it are ordered with all of the launch
Fiber* live_fiber(uint32_t id);  // null once its block is over
uint64_t random_bits();
void poison(void* p, size_t bytes);  // 0xff: NaN in every format, -1 in integers
unsigned char* allocate(size_t bytes, size_t alignment);  // poisoned
void name_memory(const void* p, size_t bytes, const char* name);
size_t arena_used();
void arena_release(size_t mark);  // frees what was allocated since arena_used() was `mark`
void mark_unwritten(void* p, size_t bytes);
void mark_unallocated(void* p, size_t bytes);
void on_read(const void* p, size_t bytes);
void on_plain_read(const void* p, size_t bytes);  // also not of what only copies may read
void on_write(void* p, size_t bytes);
// Whether the running thread has acquired what `other`, of another block, did at `time`; or, for
// what it may overwrite, at least knows that it is done.
bool acquired(const Fiber* other, uint32_t time, bool or_known);
bool acquired(uint32_t barrier_id, uint32_t time);
bool uses_flags();
void on_flag(const void* p, bool write, size_t bytes = 4);  // ordered by its own rules
// A store of 16 bytes that has left, and that has landed as the work of barrier `id`.
void on_async_start(void* p, size_t bytes);
void on_async_end(void* p, size_t bytes, uint32_t id);
constexpr uint32_t kFirstBarrierId = 0xf0000000;
void describe_address(const void* p, char* out, size_t size);

}  // namespace cuda_host
