#include "server/session/slot_pool.h"

#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/round_up.h"

namespace palimpsest {
namespace {

constexpr int64_t kAlignment = 64;  // of a state piece: a cache line, and any vector load

// The ranges of `to` from what lies one after the other, and zeros before and between them.
void Scatter(std::span<const ByteRange> ranges, const std::byte* from, std::byte* to) {
  int64_t filled = 0;
  for (const auto& [offset, bytes] : ranges) {
    std::memset(to + filled, 0, static_cast<size_t>(offset - filled));
    if (bytes > 0) std::memcpy(to + offset, from, static_cast<size_t>(bytes));
    from += bytes;
    filled = offset + bytes;
  }
}

}  // namespace

SlotCopy& SlotCopy::operator=(SlotCopy&& other) noexcept {
  std::swap(staging_, other.staging_);
  std::swap(device_, other.device_);
  std::swap(to_, other.to_);
  std::swap(ranges_, other.ranges_);
  return *this;
}

SlotCopy::~SlotCopy() { static_cast<void>(Finish()); }

absl::Status SlotCopy::Finish() {
  SlotStaging* const staging = std::exchange(staging_, nullptr);
  if (staging == nullptr) return absl::OkStatus();
  staging->slot = -1;
  absl::Status arrived = device_->Await(*staging->copy);
  for (const auto& [offset, bytes] : ranges_) {
    if (arrived.ok()) std::memcpy(to_, staging->memory + offset, static_cast<size_t>(bytes));
    to_ += bytes;
  }
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
  return Acquire(free_.back(), initial);
}

SlotHandle SlotPool::Acquire(int32_t index, const State* initial) {
  PALIMPSEST_CHECK(std::erase(free_, index) == 1);
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
  const int64_t end = ranges.empty() ? 0 : ranges.back().offset + ranges.back().bytes;
  PALIMPSEST_CHECK(end <= stride_);
  if (device_ == nullptr) {
    if (end > 0) Scatter(ranges, initial->data.data(), slot);
    std::memset(slot + end, 0, static_cast<size_t>(stride_ - end));
    return;
  }
  // In one copy: each takes a device longer than some bytes do.
  if (ranges.size() == 1 && ranges.front().offset == 0) {
    if (end > 0) device_->CopyToDevice(slot, initial->data.data(), end);
  } else if (end > 0) {
    AlignedBytes whole(end);
    Scatter(ranges, initial->data.data(), whole.data());
    device_->CopyToDevice(slot, whole.data(), end);
  }
  device_->FillWithZeros(slot + end, stride_ - end);
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
  SlotStaging* const staging = ranges.empty() ? nullptr : FindStaging();
  SlotCopy copy;
  if (staging == nullptr) {
    absl::Status status = CopyOut(handle, ranges, to);
    if (!status.ok()) return status;
    return copy;
  }
  // All at once: a copy takes a device longer than some bytes do.
  const int64_t end = ranges.back().offset + ranges.back().bytes;
  PALIMPSEST_CHECK(end <= stride_);
  device_->CopyToHostAside(*staging->copy, staging->memory, Data(handle), end);
  staging->slot = handle.index;
  copy.staging_ = staging;
  copy.device_ = device_;
  copy.to_ = to;
  copy.ranges_.assign(ranges.begin(), ranges.end());
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
