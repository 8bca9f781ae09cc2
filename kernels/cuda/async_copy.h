// Copies from global to shared memory that a thread starts and later waits for, group by group (PTX ISA, "cp.async").
// They hold no registers while they are under way, and the compiler cannot move them to where their values are used.
//
// A thread's copies are there for itself once it has waited for them, for others after a barrier that follows.
#pragma once

#include "kernels/cuda/cuda.h"

#ifdef PALIMPSEST_CUDA_EMULATED
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <vector>
#endif

namespace palimpsest::cuda {

#ifdef PALIMPSEST_CUDA_EMULATED

namespace emulated {

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

// The copies that a thread has not waited for, the oldest group first; the last group is still open. They are done when
// they are waited for, and until then their place is NaN: reading too early shows.
inline std::deque<std::vector<Copy>>& Groups() {
  static thread_local std::unordered_map<const void*, std::deque<std::vector<Copy>>> of_threads;
  auto& groups = of_threads[emulator::place];
  if (groups.empty()) groups.emplace_back();
  return groups;
}

inline void StartCopy(void* to, const void* from, size_t bytes, bool there) {
  // A device would refuse it.
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) {
    std::fprintf(stderr, "emulator: a copy of %zu bytes from %p to %p\n", bytes, from, to);
    std::abort();
  }
  std::memset(to, 0xFF, bytes);
  Groups().back().push_back({to, there ? from : nullptr, bytes});
}

}  // namespace emulated

inline void CopyAsync16(void* to, const void* from, bool there) { emulated::StartCopy(to, from, 16, there); }
inline void CopyAsync4(void* to, const void* from, bool there) { emulated::StartCopy(to, from, 4, there); }
inline void CommitCopies() { emulated::Groups().emplace_back(); }

template <int kPending>
inline void WaitForCopies() {
  auto& groups = emulated::Groups();
  for (; groups.size() > kPending + 1; groups.pop_front()) {
    for (const emulated::Copy& copy : groups.front()) {
      if (copy.from != nullptr) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }
}

#else

// Copies 16 bytes, past the first-level cache; or writes zeros, if they are not there. Both addresses are multiples
// of 16.
__device__ __forceinline__ void CopyAsync16(void* to, const void* from, bool there) {
  asm volatile(
      "{\n"
      ".reg .pred ignore;\n"
      "setp.eq.s32 ignore, %2, 0;\n"
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, ignore;\n"
      "}" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(static_cast<int>(there)));
}

// The same, of 4 bytes.
__device__ __forceinline__ void CopyAsync4(void* to, const void* from, bool there) {
  asm volatile(
      "{\n"
      ".reg .pred ignore;\n"
      "setp.eq.s32 ignore, %2, 0;\n"
      "cp.async.ca.shared.global [%0], [%1], 4, ignore;\n"
      "}" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(static_cast<int>(there)));
}

// The copies since the last call become a group, which may be empty.
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than the latest kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace palimpsest::cuda
