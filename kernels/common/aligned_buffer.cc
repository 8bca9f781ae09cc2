#include "kernels/common/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "base/check.h"
#include "base/round_up.h"
#include "kernels/common/device.h"

namespace palimpsest {
namespace {

// Reading weights touches every page once per token: with 4 KiB pages the page walks cost a tenth of the bandwidth.
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kPage = 4096;

std::byte* Map(int64_t size) {
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

}  // namespace

AlignedBytes::AlignedBytes(int64_t size, Device* device) : size_(size) {
  PALIMPSEST_CHECK(size >= 0);
  if (size == 0) return;
  if (device != nullptr) {
    data_ = std::unique_ptr<std::byte, Release>(device->Allocate(size), Release{size, device});
    return;
  }
  const int64_t mapped = MappedBytes(size);
  std::byte* data = nullptr;
  if (mapped < kHugePage) {
    data = Map(mapped);
  } else {
    // Map one huge page more than needed, then give back what lies before and after the aligned part.
    std::byte* const memory = Map(mapped + kHugePage);
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const int64_t before = RoundUp(address, kHugePage) - address;
    data = memory + before;
    if (before > 0) munmap(memory, before);
    if (before < kHugePage) munmap(data + mapped, kHugePage - before);
    madvise(data, mapped, MADV_HUGEPAGE);  // advice: where it is refused, small pages do
  }
  data_ = std::unique_ptr<std::byte, Release>(data, Release{mapped, nullptr});
}

int64_t AlignedBytes::MappedBytes(int64_t size) {
  const int64_t pages = RoundUp(size, kPage);
  return pages < kHugePage ? pages : RoundUp(size, kHugePage);
}

void AlignedBytes::Release::operator()(std::byte* data) const {
  if (device != nullptr) {
    device->Free(data);
  } else {
    munmap(data, size);
  }
}

}  // namespace palimpsest
