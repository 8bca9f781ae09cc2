// operator new and delete of the programs that test ops on a device. They hand arrays of the heap to the ops, so the
// whole heap is one array, which is shown to the device before the first test. (Not managed memory: ops then would be
// tested with pages on the move, and some machines have none.)
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/test_heap.h"

namespace palimpsest {
namespace {

constexpr size_t kHeapBytes = size_t{512} << 20;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "the heap of %zu MiB that the device sees: %s\n", kHeapBytes >> 20, what);
  std::abort();
}

std::byte* HeapMemory() {
  static std::byte* const memory = [] {
    void* const mapped = mmap(nullptr, kHeapBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) Fail("the system has no room for it");
    return static_cast<std::byte*>(mapped);
  }();
  return memory;
}

TestHeap& Heap() {
  // Never destroyed: memory is freed until the very end.
  alignas(TestHeap) static std::byte place[sizeof(TestHeap)];
  static TestHeap* const heap = new (place) TestHeap(HeapMemory(), kHeapBytes);
  return *heap;
}

void* Take(size_t bytes, size_t alignment) {
  void* const memory = Heap().Allocate(bytes, alignment);
  if (memory == nullptr) Fail("a test wants more");
  return memory;
}

class ShowHeap : public testing::Environment {
  void SetUp() override {
    const cudaError_t error = cudaHostRegister(HeapMemory(), kHeapBytes, cudaHostRegisterMapped);
    if (error != cudaSuccess) Fail(cudaGetErrorString(error));
    void* address = nullptr;
    if (cudaHostGetDevicePointer(&address, HeapMemory(), 0) != cudaSuccess || address != HeapMemory()) {
      Fail("it has another address there");
    }
  }
};
[[maybe_unused]] testing::Environment* const show_heap = testing::AddGlobalTestEnvironment(new ShowHeap);

}  // namespace
}  // namespace palimpsest

void* operator new(size_t bytes) { return palimpsest::Take(bytes, 0); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return palimpsest::Take(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { palimpsest::Heap().Free(memory); }
void operator delete(void* memory, size_t) noexcept { palimpsest::Heap().Free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { palimpsest::Heap().Free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { palimpsest::Heap().Free(memory); }
