// The driver: which thread does what, and in which form. README.md has the derivation.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fast_weight/fast_weight_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cstddef>

#include "hwy/highway.h"
#include "kernels/common/device.h"
#include "kernels/fast_weight/fast_weight_head.h"
#include "kernels/fast_weight/fast_weight_scan-inl.h"
#include "kernels/fast_weight/fast_weight_step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace palimpsest {
namespace HWY_NAMESPACE {
namespace {

template <UpdateRule kRule, typename T>
void Chunks(const HeadRows& head, float* scratch) {
  for (int64_t row = 0; row < head.rows; row += kChunk) {
    const HeadRows rest = head.From(row);
    const int64_t n = std::min<int64_t>(kChunk, rest.rows);
    if (n == 1) {
      Step<kRule, T>(rest, 0, head.value_dim, scratch);
    } else {
      Scan<kRule, T>(rest, n, scratch);
    }
  }
}

int64_t ScratchFloats(int32_t key_dim) { return std::max(ScanScratch::Floats(key_dim), StepScratchFloats(key_dim)); }

template <UpdateRule kRule>
FastWeightKernels KernelsOf(DType dtype) {
  if (dtype == DType::kBF16) return {&Step<kRule, BF16>, &Chunks<kRule, BF16>, &ScratchFloats};
  return {&Step<kRule, float>, &Chunks<kRule, float>, &ScratchFloats};
}

FastWeightKernels Kernels(UpdateRule rule, DType dtype) {
  switch (rule) {
    case UpdateRule::kSum:
      return KernelsOf<UpdateRule::kSum>(dtype);
    case UpdateRule::kDelta:
      return KernelsOf<UpdateRule::kDelta>(dtype);
    case UpdateRule::kGatedDelta:
      return KernelsOf<UpdateRule::kGatedDelta>(dtype);
    case UpdateRule::kChannelGatedDelta:
      return KernelsOf<UpdateRule::kChannelGatedDelta>(dtype);
    case UpdateRule::kLowRank:
      return KernelsOf<UpdateRule::kLowRank>(dtype);
    case UpdateRule::kChannelGatedSum:
      return KernelsOf<UpdateRule::kChannelGatedSum>(dtype);
  }
  return {};
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace palimpsest
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/check.h"
#include "kernels/common/aligned_buffer.h"

namespace palimpsest {
namespace {

HWY_EXPORT(Kernels);

// Elements of state below which it does not pay to wake another thread.
constexpr int64_t kMinStatePerThread = 32 << 10;
// Rows of the state are split among threads at whole cache lines of `out`.
constexpr int64_t kRowGrain = 16;
// A chunk's row costs this part of a step, whose time goes into reading and writing the state.
constexpr int64_t kChunkRowsPerStep = 4;

float* Scratch(int64_t floats) {
  thread_local AlignedArray<float> scratch;
  if (scratch.size() < floats) scratch = AlignedArray<float>(floats);
  return scratch.data();
}

HeadRows HeadOf(const FastWeightParams& params, int32_t sequence, int32_t value_head) {
  const auto [heads, value_heads, K, V] = params.shape;
  const int64_t row = params.rows.row_begin[sequence];
  const int64_t key_head = int64_t{value_head} * heads / value_heads;
  HeadRows head;
  head.rule = params.rule;
  head.key_dim = K;
  head.value_dim = V;
  head.rows = params.rows.length(sequence);
  head.sub_steps = params.sub_steps;
  head.q = params.q + row * params.ldq + key_head * K;
  head.ldq = params.ldq;
  head.k = params.k + row * params.ldk + key_head * K;
  head.ldk = params.ldk;
  head.next_k = int64_t{heads} * K;
  head.v = params.v + row * params.ldv + int64_t{value_head} * V;
  head.ldv = params.ldv;
  head.next_v = int64_t{value_heads} * V;
  const int64_t gate = row * value_heads + value_head;
  if (Corrects(params.rule)) head.beta = params.beta + row * params.sub_steps * value_heads + value_head;
  head.ldbeta = int64_t{params.sub_steps} * value_heads;
  head.next_beta = value_heads;
  if (DecaysHeads(params.rule)) head.log_decay = params.log_decay + gate;
  if (DecaysChannels(params.rule)) head.log_decay = params.log_decay + gate * K;
  if (params.rule == UpdateRule::kLowRank) {
    head.remove = params.remove + gate * K;
    head.insert = params.insert + gate * K;
  }
  head.ldgate = value_heads;
  head.ldchannels = int64_t{value_heads} * K;
  head.out = params.out + row * params.ldout + int64_t{value_head} * V;
  head.ldout = params.ldout;
  head.state =
      params.state.At<std::byte>(params.rows.slot[sequence]) + int64_t{value_head} * V * K * SizeOf(params.state.dtype);
  return head;
}

// Cost of one head of a sequence, in rows of the state stepped.
int64_t CostOf(const FastWeightParams& params, int32_t sequence) {
  const int64_t rows = params.rows.length(sequence);
  const int64_t steps = rows <= 1 ? rows : (rows * params.sub_steps + kChunkRowsPerStep - 1) / kChunkRowsPerStep;
  return steps * params.shape.value_dim;
}

}  // namespace

void FlushReplay(const ExecContext& ctx, const FlushReplayParams& params) {
  PALIMPSEST_CHECK(ctx.device != nullptr);
  ctx.device->Run(params);
}

void AdvanceReplay(const ExecContext& ctx, const AdvanceReplayParams& params) {
  PALIMPSEST_CHECK(ctx.device != nullptr);
  ctx.device->Run(params);
}

void FastWeight(const ExecContext& ctx, const FastWeightParams& params) {
  if (ctx.device != nullptr) return ctx.device->Run(params);
  PALIMPSEST_CHECK(params.replay.interval == 1);
  PALIMPSEST_CHECK(params.sub_steps == 1 || (params.sub_steps > 1 && HasSubSteps(params.rule)));
  PALIMPSEST_CHECK(params.state.dtype == DType::kF32 || params.state.dtype == DType::kBF16);
  const int32_t value_heads = params.shape.value_heads;
  const int64_t K = params.shape.key_dim;
  const int64_t V = params.shape.value_dim;
  PALIMPSEST_CHECK(params.shape.heads >= 1 && value_heads % params.shape.heads == 0 && K >= 1 && V >= 1);
  const FastWeightKernels kernels = HWY_DYNAMIC_DISPATCH(Kernels)(params.rule, params.state.dtype);

  // All heads of all sequences lie on a line, as long as they cost, and each thread takes its share of the line. The
  // rows of a state are independent, so a step may be cut anywhere; chunks, which share work between rows, are not cut
  // and belong to the thread that has their middle.
  int64_t total = 0;
  for (int32_t s = 0; s < params.rows.num_sequences; ++s) total += CostOf(params, s) * value_heads;
  const int64_t parts = std::clamp<int64_t>(total * K / kMinStatePerThread, 1, ctx.pool->size());
  const auto run_part = [&](int64_t part) {
    const int64_t part_begin = total * part / parts;
    const int64_t part_end = total * (part + 1) / parts;
    float* const scratch = Scratch(kernels.scratch_floats(params.shape.key_dim));
    int64_t begin = 0;
    for (int32_t s = 0; s < params.rows.num_sequences; ++s) {
      const int64_t cost = CostOf(params, s);
      for (int32_t h = 0; h < value_heads; ++h, begin += cost) {
        if (params.rows.length(s) == 1) {
          const auto row_at = [begin, V](int64_t point) {
            return point >= begin + V ? V : std::max<int64_t>(point - begin, 0) / kRowGrain * kRowGrain;
          };
          const int64_t v_begin = row_at(part_begin);
          const int64_t v_end = row_at(part_end);
          if (v_begin < v_end) kernels.step(HeadOf(params, s, h), v_begin, v_end, scratch);
        } else if (cost > 0) {
          const int64_t middle = begin + cost / 2;
          if (middle < part_begin || middle >= part_end) continue;
          kernels.chunks(HeadOf(params, s, h), scratch);
        }
      }
    }
  };
  if (parts == 1) return run_part(0);
  ctx.pool->Run([&](int part) {
    if (part < parts) run_part(part);
  });
}

}  // namespace palimpsest
#endif  // HWY_ONCE
