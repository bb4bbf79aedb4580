// For LD_PRELOAD, what rnnext asks torch's pool for: a call's team runs on threads of its own.
// ThreadSanitizer cannot follow those of the pool, since libgomp is compiled without it.
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// Callers have two, three or four threads, while torch's own loops run on one.
extern "C" int32_t torch_get_num_threads(uint32_t* n) {
  static std::atomic<uint32_t> callers{0};
  thread_local const uint32_t own = 2 + callers++ % 3;
  *n = own;
  return 0;
}

static std::atomic<int> made{0};
extern "C" int teams_made() { return made; }

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t,
                                      void (*task)(int64_t, int64_t, void*), void* context) {
  ++made;
  std::vector<std::thread> team;
  for (int64_t i = begin + 1; i < end; ++i) team.emplace_back(task, i, i + 1, context);
  task(begin, begin + 1, context);
  for (std::thread& member : team) member.join();
  return 0;
}
