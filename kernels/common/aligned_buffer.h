// An owned array whose start is aligned for any vector load (and for huge pages when it is large), in the host's memory
// or in a device's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace palimpsest {

class Device;

// Not thread-safe; movable. The host's memory comes zeroed from the system and is touched on first use only; a device's
// holds anything, and data() is the device's address.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  // Throws std::bad_alloc when the system gives no more memory, as a std::vector does: who allocates for a request or a
  // load makes an error of it. With a device, the array is in its memory and must not outlive it; data() is null when
  // the device has no room.
  explicit AlignedBytes(int64_t size, Device* device = nullptr);

  // The address space, and the memory at most, that an array of so many bytes takes on the host.
  static int64_t MappedBytes(int64_t size);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  int64_t size() const { return data_ == nullptr ? 0 : size_; }

 private:
  struct Release {
    int64_t size;
    Device* device;
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Release> data_;
  int64_t size_ = 0;
};

// An AlignedBytes seen as an array of T.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t size, Device* device = nullptr)
      : bytes_(size * static_cast<int64_t>(sizeof(T)), device), size_(size) {}

  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data()); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  std::span<T> span() { return {data(), static_cast<size_t>(size_)}; }
  std::span<const T> span() const { return {data(), static_cast<size_t>(size_)}; }

 private:
  AlignedBytes bytes_;
  int64_t size_ = 0;
};

}  // namespace palimpsest
