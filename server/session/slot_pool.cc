#include "server/session/slot_pool.h"

#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/round_up.h"

namespace palimpsest {
namespace {

constexpr int64_t kAlignment = 64;  // of a state piece: a cache line, and any vector load

}  // namespace

SlotCopy& SlotCopy::operator=(SlotCopy&& other) noexcept {
  std::swap(staging_, other.staging_);
  std::swap(device_, other.device_);
  std::swap(to_, other.to_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SlotCopy::~SlotCopy() { static_cast<void>(Finish()); }

absl::Status SlotCopy::Finish() {
  SlotStaging* const staging = std::exchange(staging_, nullptr);
  if (staging == nullptr) return absl::OkStatus();
  staging->slot = -1;
  absl::Status arrived = device_->Await(*staging->copy);
  if (arrived.ok()) std::memcpy(to_, staging->memory, static_cast<size_t>(bytes_));
  return arrived;
}

SlotPool::SlotPool(int32_t slots, int64_t state_bytes, Device* device)
    : device_(device),
      stride_(RoundUp(state_bytes, kAlignment)),
      memory_(slots * stride_, device),
      generation_(static_cast<size_t>(slots), 0),
      stagings_(device == nullptr ? 0 : kStagings) {
  if (stride_ > 0 && memory_.data() == nullptr) return;
  // Lowest index on top, so that a lightly loaded server keeps to few pages.
  for (int32_t i = slots - 1; i >= 0; --i) free_.push_back(i);
}

SlotPool::~SlotPool() {
  for (const SlotStaging& staging : stagings_) {
    PALIMPSEST_CHECK(staging.slot < 0);
    if (staging.memory != nullptr) device_->FreePinned(staging.memory);
  }
}

int64_t SlotPool::StagingBytes(int64_t state_bytes) { return kStagings * state_bytes; }

SlotHandle SlotPool::Acquire(const State* initial) {
  if (free_.empty()) return {};
  const int32_t index = free_.back();
  free_.pop_back();
  for (const SlotStaging& staging : stagings_) {
    if (staging.slot == index) device_->StreamAwaits(*staging.copy);
  }
  Fill(memory_.data() + index * stride_, initial);
  return {.index = index, .generation = ++generation_[index]};
}

void SlotPool::Fill(std::byte* slot, const State* initial) {
  std::vector<ByteRange> ranges;
  if (initial != nullptr) {
    ranges = initial->format.positioned.empty() ? std::vector<ByteRange>{{0, initial->data.size()}}
                                                : initial->format.UsedRanges(initial->head.processed());
  }
  const std::byte* from = initial == nullptr ? nullptr : initial->data.data();
  int64_t filled = 0;
  const auto fill_with_zeros = [&](int64_t end) {
    PALIMPSEST_CHECK(end >= filled && end <= stride_);
    if (device_ != nullptr) {
      device_->FillWithZeros(slot + filled, end - filled);
    } else {
      std::memset(slot + filled, 0, static_cast<size_t>(end - filled));
    }
  };
  for (const auto& [offset, bytes] : ranges) {
    if (bytes == 0) continue;
    fill_with_zeros(offset);
    PALIMPSEST_CHECK(offset + bytes <= stride_);
    if (device_ != nullptr) {
      device_->CopyToDevice(slot + offset, from, bytes);
    } else {
      std::memcpy(slot + offset, from, static_cast<size_t>(bytes));
    }
    from += bytes;
    filled = offset + bytes;
  }
  fill_with_zeros(stride_);
}

void SlotPool::Release(SlotHandle handle) {
  Data(handle);  // checks the handle
  ++generation_[handle.index];
  free_.push_back(handle.index);
}

absl::Status SlotPool::CopyOut(SlotHandle handle, std::span<const ByteRange> ranges, std::byte* to) {
  const std::byte* const slot = Data(handle);
  for (const auto& [offset, bytes] : ranges) {
    PALIMPSEST_CHECK(offset + bytes <= stride_);
    if (device_ != nullptr) {
      device_->CopyToHost(to, slot + offset, bytes);
    } else if (bytes > 0) {
      std::memcpy(to, slot + offset, static_cast<size_t>(bytes));
    }
    to += bytes;
  }
  return device_ == nullptr ? absl::OkStatus() : device_->Synchronize();
}

absl::StatusOr<SlotCopy> SlotPool::BeginCopyOut(SlotHandle handle, std::span<const ByteRange> ranges, std::byte* to) {
  SlotStaging* const staging = ranges.size() == 1 ? FindStaging() : nullptr;
  SlotCopy copy;
  if (staging == nullptr) {
    absl::Status status = CopyOut(handle, ranges, to);
    if (!status.ok()) return status;
    return copy;
  }
  const auto& [offset, bytes] = ranges.front();
  PALIMPSEST_CHECK(offset + bytes <= stride_);
  device_->CopyToHostAside(*staging->copy, staging->memory, Data(handle) + offset, bytes);
  staging->slot = handle.index;
  copy.staging_ = staging;
  copy.device_ = device_;
  copy.to_ = to;
  copy.bytes_ = bytes;
  return copy;
}

SlotStaging* SlotPool::FindStaging() {
  for (SlotStaging& staging : stagings_) {
    if (staging.slot >= 0) continue;
    if (staging.memory == nullptr) staging.memory = device_->AllocatePinned(stride_);
    if (staging.copy == nullptr) staging.copy = device_->MakeSideCopy();
    return staging.memory != nullptr && staging.copy != nullptr ? &staging : nullptr;
  }
  return nullptr;
}

std::byte* SlotPool::Data(SlotHandle handle) {
  PALIMPSEST_CHECK(handle.index >= 0 && handle.index < size());
  PALIMPSEST_CHECK(handle.generation % 2 == 1 && handle.generation == generation_[handle.index]);
  return memory_.data() + handle.index * stride_;
}

}  // namespace palimpsest
