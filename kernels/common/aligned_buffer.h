// An owned array whose start is aligned for any vector load (and for huge pages when it is large).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace palimpsest {

// Not thread-safe; movable. Memory comes zeroed from the system and is touched on first use only.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  // Aborts when the system has no memory left: sizes from outside are bounded before they come here.
  explicit AlignedBytes(int64_t size);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  int64_t size() const { return data_ == nullptr ? 0 : size_; }

 private:
  struct Unmap {
    int64_t size;
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Unmap> data_;
  int64_t size_ = 0;
};

// An AlignedBytes seen as an array of T.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t size) : bytes_(size * static_cast<int64_t>(sizeof(T))), size_(size) {}

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
