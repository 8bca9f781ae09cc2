#include "kernels/sampling/sampling_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/round_up.h"
#include "kernels/sampling/philox.h"

namespace palimpsest::cuda {
namespace {

float ScaleOf(float temperature) {
  if (temperature == 0.0f) return 0.0f;
  return static_cast<float>(std::min(1.0 / double{temperature}, double{std::numeric_limits<float>::max()}));
}

template <typename T>
void Put(const std::vector<T>& values, std::byte* to) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
}

template <typename T>
int64_t BytesOf(int64_t count) {
  return RoundUp(count * int64_t{sizeof(T)}, 16);
}

// Which phases a row needs beside the first and the last.
uint32_t PhasesOf(const SampleTask& task) {
  const auto bit = [](SamplePhase phase) { return uint32_t{1} << static_cast<int>(phase); };
  const bool draws = task.draws != 0 && task.scale != 0.0f, top_k = task.top_k > 0, top_p = task.top_p < 1.0f;
  uint32_t phases = 0;
  if (draws || task.want_logprob != 0 || task.top_end > task.top_begin) phases |= bit(SamplePhase::kSum);
  if (draws && (top_k || top_p)) phases |= bit(SamplePhase::kCount) | bit(SamplePhase::kListFirst);
  if (draws && top_k && top_p) phases |= bit(SamplePhase::kListSecond);
  return phases;
}

}  // namespace

bool DeviceSampler::Pack(std::span<const SampleRow> rows, int32_t vocabulary) {
  std::vector<SampleBias> biases;
  std::vector<int32_t> recent;
  tasks_.clear();
  int32_t tops = 0;
  int64_t adjusted = 0;
  uint32_t phases = 0;
  for (const SampleRow& row : rows) {
    SampleTask task{};
    task.logits = row.logits;
    task.draws = row.settings == nullptr ? 0 : 1;
    task.token = row.settings == nullptr ? row.target : -1;
    task.want_logprob = row.want_logprob || row.settings == nullptr ? 1 : 0;
    task.bias_begin = static_cast<int32_t>(biases.size());
    task.recent_begin = static_cast<int32_t>(recent.size());
    if (row.settings != nullptr) {
      const SamplingSettings& s = *row.settings;
      task.uniform = UniformBits(s.seed, row.position);
      for (const auto& [id, bias] : s.logit_bias) biases.push_back({id, bias});
      if (s.penalises()) recent.insert(recent.end(), row.recent.begin(), row.recent.end());
      task.repetition_penalty = s.repetition_penalty;
      task.presence_penalty = s.presence_penalty;
      task.frequency_penalty = s.frequency_penalty;
      task.scale = ScaleOf(s.temperature);
      task.top_p = s.top_p;
      task.min_p = s.min_p;
      task.top_k = s.top_k > 0 && s.top_k < vocabulary ? s.top_k : 0;
    }
    task.bias_end = static_cast<int32_t>(biases.size());
    task.recent_end = static_cast<int32_t>(recent.size());
    task.top_begin = tops;
    tops += std::clamp(row.top_logprobs, 0, vocabulary);
    task.top_end = tops;
    if (task.bias_end > task.bias_begin || task.recent_end > task.recent_begin) adjusted += vocabulary;
    phases |= PhasesOf(task);
    tasks_.push_back(task);
  }
  if (adjusted_.size() < adjusted) {
    adjusted_ = {};
    adjusted_ = AlignedArray<float>(adjusted, &device_);
    if (adjusted_.data() == nullptr) return false;
  }
  float* next = adjusted_.data();
  for (SampleTask& task : tasks_) {
    if (task.bias_end == task.bias_begin && task.recent_end == task.recent_begin) continue;
    task.adjusted = next;
    next += vocabulary;
  }
  const int64_t bias_at = BytesOf<SampleTask>(std::ssize(tasks_));
  const int64_t recent_at = bias_at + BytesOf<SampleBias>(std::ssize(biases));
  answers_at_ = recent_at + BytesOf<int32_t>(std::ssize(recent));
  tops_at_ = answers_at_ + BytesOf<SampleAnswer>(std::ssize(rows));
  bytes_ = tops_at_ + BytesOf<TokenLogprobValue>(tops);
  if (memory_.size() < bytes_) {
    memory_ = {};
    memory_ = AlignedBytes(2 * bytes_, &device_);
    pinned_ = AllocatePinned(device_, 2 * bytes_);
    if (memory_.data() == nullptr || pinned_ == nullptr) {
      memory_ = {};
      return false;
    }
    device_.FillWithZeros(memory_.data(), memory_.size());  // gaps between arrays are copied, too
  }
  const auto count = static_cast<int32_t>(rows.size());
  const int32_t parts = SamplePartsOf(count, vocabulary);
  if (scratch_.size() < SampleScratchBytes(count, parts)) {
    scratch_ = {};
    scratch_ = AlignedBytes(SampleScratchBytes(count, parts), &device_);
    if (scratch_.data() == nullptr) return false;
  }
  Put(tasks_, pinned_.get());
  Put(biases, pinned_.get() + bias_at);
  Put(recent, pinned_.get() + recent_at);
  device_.CopyToDevice(memory_.data(), pinned_.get(), answers_at_);
  launch_ = {.tasks = reinterpret_cast<const SampleTask*>(memory_.data()),
             .biases = reinterpret_cast<const SampleBias*>(memory_.data() + bias_at),
             .recent = reinterpret_cast<const int32_t*>(memory_.data() + recent_at),
             .answers = reinterpret_cast<SampleAnswer*>(memory_.data() + answers_at_),
             .tops = reinterpret_cast<TokenLogprobValue*>(memory_.data() + tops_at_),
             .rows = count,
             .vocabulary = vocabulary,
             .parts = parts,
             .phases = phases,
             .scratch = scratch_.data()};
  return true;
}

void DeviceSampler::CopyAnswers() {
  device_.CopyToHost(pinned_.get() + answers_at_, launch_.answers, bytes_ - answers_at_);
}

void DeviceSampler::Unpack(std::span<SampleRow> rows) const {
  const auto* const answers = reinterpret_cast<const SampleAnswer*>(pinned_.get() + answers_at_);
  const auto* const tops = reinterpret_cast<const TokenLogprobValue*>(pinned_.get() + tops_at_);
  for (size_t r = 0; r < rows.size(); ++r) {
    const SampleAnswer& answer = answers[r];
    SampleRow& row = rows[r];
    row.top.clear();
    row.finite = answer.finite != 0;
    if (!row.finite) continue;
    row.token = answer.token;
    if (tasks_[r].want_logprob != 0 && row.token >= 0) row.logprob = answer.logprob;
    row.top.assign(tops + tasks_[r].top_begin, tops + tasks_[r].top_end);
  }
}

}  // namespace palimpsest::cuda
