#include "kernels/cuda/emulator/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) (static_cast<void>(address), static_cast<void>(bytes))
#endif

namespace palimpsest::emulator {
namespace {

constexpr size_t kAlignment = 256;
constexpr uintptr_t kPage = 4096;
// Addresses cost nothing: so many that pieces of different sizes, freed and taken again, find a place.
constexpr size_t kArenaBytes = 8 * kDeviceBytes;

// Pieces of memory by where they begin. All under the mutex.
using Pieces = std::map<uintptr_t, size_t>;

uintptr_t AddressOf(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

// In a piece, or at the end of one, where an array without elements may begin.
bool Contains(const Pieces& pieces, uintptr_t address) {
  const auto after = pieces.upper_bound(address);
  return after != pieces.begin() && address <= std::prev(after)->first + std::prev(after)->second;
}

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

struct Memory {
  std::mutex mutex;
  std::byte* arena = nullptr;
  Pieces holes;  // of the arena
  Pieces on_device, pinned;
  size_t used = 0;
  int opened = 0;

  Memory() {
    void* const mapped = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) Fail("the system has no room for a device's memory");
    arena = static_cast<std::byte*>(mapped);
    madvise(arena, kArenaBytes, MADV_HUGEPAGE);  // opening and closing costs by the page
    holes.emplace(AddressOf(arena), kArenaBytes);
  }

  void Protect(int protection) {
    if (mprotect(arena, kArenaBytes, protection) != 0) Fail("the system does not protect a device's memory");
  }
  void Open() {
    if (opened++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  void Close() {
    if (--opened == 0) Protect(PROT_NONE);
  }
};
Memory& memory() {
  static Memory* const instance = new Memory;  // outlives whatever frees at the end
  return *instance;
}

// A piece and the hole behind it that sanitizers watch.
size_t Room(size_t bytes) { return (bytes + kAlignment) / kAlignment * kAlignment; }

void* TakeHole(Memory& self, size_t bytes) {
  for (auto hole = self.holes.begin(); hole != self.holes.end(); ++hole) {
    const auto [begin, size] = *hole;
    if (size < bytes) continue;
    self.holes.erase(hole);
    if (size > bytes) self.holes.emplace(begin + bytes, size - bytes);
    return reinterpret_cast<void*>(begin);
  }
  return nullptr;
}

void GiveHole(Memory& self, uintptr_t begin, size_t bytes) {
  auto after = self.holes.lower_bound(begin);
  if (after != self.holes.end() && begin + bytes == after->first) {
    bytes += after->second;
    after = self.holes.erase(after);
  }
  if (after != self.holes.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      before->second += bytes;
      return;
    }
  }
  self.holes.emplace(begin, bytes);
}

// Of an address in the upper half, where a process has its heap, its mappings and its stack: whether something is
// there.
bool IsMapped(uintptr_t address) {
  constexpr uintptr_t kLowest = uintptr_t{0x5000} << 32, kEnd = uintptr_t{1} << 47;
  if (address < kLowest || address >= kEnd) return false;
  unsigned char resident = 0;
  return mincore(reinterpret_cast<void*>(address / kPage * kPage), 1, &resident) == 0;
}

}  // namespace

void* AllocateOnDevice(size_t bytes) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  if (bytes > kDeviceBytes - self.used) return nullptr;
  void* const piece = TakeHole(self, Room(bytes));
  if (piece == nullptr) return nullptr;
  self.on_device.emplace(AddressOf(piece), bytes);
  self.used += bytes;
  ASAN_UNPOISON_MEMORY_REGION(piece, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<std::byte*>(piece) + bytes, Room(bytes) - bytes);
  self.Open();
  std::memset(piece, 0xFF, bytes);
  self.Close();
  return piece;
}

bool FreeOnDevice(void* piece) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  const auto found = self.on_device.find(AddressOf(piece));
  if (found == self.on_device.end()) return false;
  const auto [begin, bytes] = *found;
  self.on_device.erase(found);
  self.used -= bytes;
  ASAN_POISON_MEMORY_REGION(piece, bytes);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, end = (begin + bytes) / kPage * kPage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
  GiveHole(self, begin, Room(bytes));
  return true;
}

void* AllocatePinned(size_t bytes) {
  void* const piece = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (piece == nullptr) return nullptr;
  std::memset(piece, 0xFF, bytes);
  Register(piece, bytes);
  return piece;
}

bool FreePinned(void* piece) {
  Memory& self = memory();
  {
    const std::lock_guard<std::mutex> lock(self.mutex);
    if (self.pinned.erase(AddressOf(piece)) == 0) return false;
  }
  std::free(piece);
  return true;
}

bool Register(void* piece, size_t bytes) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  return self.pinned.emplace(AddressOf(piece), bytes).second;
}

size_t FreeDeviceBytes() {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  return kDeviceBytes - self.used;
}

bool IsPinned(const void* address) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  return Contains(self.pinned, AddressOf(address));
}

bool IsOnDevice(const void* address) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  return Contains(self.on_device, AddressOf(address));
}

Opened::Opened() {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  self.Open();
}

Opened::~Opened() {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  self.Close();
}

void RequireWordsOnDevice(const void* parameters, size_t bytes) {
  Memory& self = memory();
  const std::lock_guard<std::mutex> lock(self.mutex);
  const auto arena = AddressOf(self.arena);
  for (size_t offset = 0; offset + sizeof(uintptr_t) <= bytes; offset += sizeof(uintptr_t)) {
    uintptr_t word = 0;
    std::memcpy(&word, static_cast<const std::byte*>(parameters) + offset, sizeof word);
    const bool in_arena = word >= arena && word < arena + kArenaBytes;
#ifdef PALIMPSEST_DEVICE_SEES_HEAP
    if (!in_arena) continue;
#endif
    if (!in_arena && !IsMapped(word)) continue;  // a number
    if (Contains(self.on_device, word) || Contains(self.pinned, word)) continue;
    std::fprintf(stderr, "emulator: a kernel is given the address %p, %s (word %zu of its parameters)\n",
                 reinterpret_cast<void*>(word),
                 in_arena ? "where the device has freed its memory" : "which is the host's and not the device's",
                 offset / sizeof(uintptr_t));
    std::abort();
  }
}

}  // namespace palimpsest::emulator
