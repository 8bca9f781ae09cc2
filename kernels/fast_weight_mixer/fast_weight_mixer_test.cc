#include "kernels/fast_weight_mixer/fast_weight_mixer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

constexpr FastWeightShape kBaseShape = {.heads = 2, .value_heads = 2, .key_dim = 32, .value_dim = 32};
const UpdateRule kSum = UpdateRule::kSum, kDelta = UpdateRule::kDelta, kGated = UpdateRule::kGatedDelta;

// Each row changes one thing from the base, or few.
struct Case {
  const char* name;
  UpdateRule rule = kGated;
  FastWeightShape shape = kBaseShape;
  int32_t conv_width = 4;  // 0: none
  bool conv_bias = false;
  bool linear_keys = false;  // the convolution activates v alone
  FeatureMapKind map = FeatureMapKind::kIdentity;
  KeyNorm norm = KeyNorm::kL2;
  float query_scale = 0.25f;
  bool map_values = false;
  bool learned_beta = true;
  float beta_scale = 1.0f;
  bool output_norm = true;
  GateActivation gate = GateActivation::kSilu;
  DType stored = DType::kF32;
  bool fused = true;
  friend void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }
};

constexpr FastWeightShape Shape(int32_t heads, int32_t value_heads, int32_t K, int32_t V) {
  return {.heads = heads, .value_heads = value_heads, .key_dim = K, .value_dim = V};
}

const Case kCases[] = {
    {.name = "base"},
    {.name = "delta", .rule = kDelta},
    {.name = "sum", .rule = kSum},
    {.name = "k16_v16", .shape = Shape(3, 3, 16, 16)},
    {.name = "k16_v5", .shape = Shape(1, 1, 16, 5)},
    {.name = "k64_v64", .shape = Shape(2, 2, 64, 64)},
    {.name = "k64_v40", .rule = kDelta, .shape = Shape(2, 2, 64, 40)},
    {.name = "k128_v128", .rule = kDelta, .shape = Shape(1, 1, 128, 128)},
    {.name = "k128_v130", .shape = Shape(2, 2, 128, 130)},
    {.name = "k256_v256", .shape = Shape(1, 1, 256, 256)},
    {.name = "k256_v200", .rule = kDelta, .shape = Shape(2, 2, 256, 200), .conv_width = 11},
    {.name = "k256_v200_plain", .shape = Shape(1, 1, 256, 200), .conv_width = 0, .output_norm = false},
    {.name = "k256_v1", .shape = Shape(2, 2, 256, 1)},
    {.name = "k16_v1024", .shape = Shape(1, 1, 16, 1024)},
    {.name = "keys_shared_by_two", .shape = Shape(2, 4, 32, 48)},
    {.name = "keys_shared_by_three", .shape = Shape(2, 6, 64, 18)},
    {.name = "keys_shared_by_many", .shape = Shape(1, 40, 128, 24)},
    {.name = "no_convolution", .conv_width = 0},
    {.name = "no_convolution_values_mapped", .conv_width = 0, .map = FeatureMapKind::kSilu, .map_values = true},
    {.name = "convolution_of_1", .conv_width = 1},
    {.name = "convolution_of_2", .conv_width = 2, .conv_bias = true},
    {.name = "convolution_of_11", .conv_width = 11, .conv_bias = true},
    {.name = "convolution_with_bias", .conv_bias = true},
    {.name = "convolution_linear_in_part", .linear_keys = true},
    {.name = "elu_sum", .linear_keys = true, .map = FeatureMapKind::kElu1, .norm = KeyNorm::kSum},
    {.name = "identity_l1", .linear_keys = true, .map = FeatureMapKind::kIdentity, .norm = KeyNorm::kL1},
    {.name = "relu_sum", .linear_keys = true, .map = FeatureMapKind::kRelu, .norm = KeyNorm::kSum},
    {.name = "relu_shifted_sum", .linear_keys = true, .map = FeatureMapKind::kRelu, .norm = KeyNorm::kShiftedSum},
    {.name = "relu_l2", .linear_keys = true, .map = FeatureMapKind::kRelu},
    {.name = "silu_unnormalised",
     .rule = kSum,
     .linear_keys = true,
     .map = FeatureMapKind::kSilu,
     .norm = KeyNorm::kNone},
    {.name = "beta_is_constant", .learned_beta = false},
    {.name = "beta_to_2", .beta_scale = 2.0f},
    {.name = "no_output_norm", .output_norm = false},
    {.name = "output_norm_without_gate", .gate = GateActivation::kNone},
    {.name = "output_norm_sigmoid", .gate = GateActivation::kSigmoid},
    {.name = "k24", .shape = Shape(2, 2, 24, 32), .fused = false},
    {.name = "bf16", .stored = DType::kBF16},
    {.name = "bf16_delta_k128_v130", .rule = kDelta, .shape = Shape(1, 2, 128, 130), .stored = DType::kBF16},
    {.name = "bf16_sum_k256", .rule = kSum, .shape = Shape(1, 1, 256, 64), .stored = DType::kBF16},
};

int64_t Padded(int64_t floats) { return (floats + 15) / 16 * 16; }

// A batch's arrays, what is not yet written being NaN. Sequence s has slot 2 s + 1 of twice as many as needed.
struct Batch {
  static constexpr int32_t kInterval = 4;  // of the replay form, where a test uses it

  // The first sequences, as many as have one row, count as steps.
  Batch(const Case& c, std::vector<int32_t> lengths, uint32_t seed = 1)
      : c(c), sequences(static_cast<int32_t>(lengths.size())) {
    const FastWeightShape& shape = c.shape;
    row_begin.push_back(0);
    for (int32_t s = 0; s < sequences; ++s) {
      if (lengths[s] == 1 && steps == s) ++steps;
      row_begin.push_back(row_begin.back() + lengths[s]);
      slot.push_back(2 * s + 1);
    }
    const int32_t rows = row_begin.back();
    projected = Matrix::Random(rows, gate_column() + value_width() + 2 * shape.value_heads, seed);
    mapped = Matrix::Poisoned(rows, channels(), 4);
    beta.assign(int64_t{rows} * shape.value_heads, kNaN);
    log_decay = beta;
    read = Matrix::Poisoned(rows, value_width());
    conv_weight = Normal(int64_t{c.conv_width} * channels(), 2, 0.5f);
    conv_bias = Normal(channels(), 3, 0.5f);
    norm_weight = Normal(shape.value_dim, 4);
    a_log = Normal(shape.value_heads, 5);
    dt_bias = Normal(shape.value_heads, 6);
    const int64_t slots = 2 * sequences + 1;
    tails = Normal(slots * tail_floats(), 7);
    states = Normal(slots * state_floats(), 8);
    for (float& value : states) value = FloatFromBF16(BF16FromFloat(value));
    written.assign(slots * entries_floats(), kNaN);
    pending.assign(slots * 16, 0);
  }

  int64_t key_width() const { return int64_t{c.shape.heads} * c.shape.key_dim; }
  int64_t value_width() const { return int64_t{c.shape.value_heads} * c.shape.value_dim; }
  int64_t channels() const { return 2 * key_width() + value_width(); }
  int64_t gate_column() const { return channels(); }
  int64_t tail_floats() const { return Padded(int64_t{std::max(c.conv_width - 1, 0)} * channels() + 1); }
  int64_t state_floats() const { return Padded(c.shape.state_floats() + 1); }
  int64_t entries_floats() const {
    return Padded(c.shape.value_heads * (kInterval - 1) * FastWeightReplay::entry_floats(c.shape));
  }

  FastWeightMixerParams Params() {
    const FastWeightShape& shape = c.shape;
    const auto rows = static_cast<int32_t>(read.rows);
    const RaggedRows ragged = {sequences, row_begin.data(), slot.data(), steps};
    const auto piece = [](std::vector<float>& values, int64_t slot_floats) {
      return StatePiece{reinterpret_cast<std::byte*>(values.data()), slot_floats * 4};
    };
    const float* const b = projected.data() + gate_column() + value_width();
    FastWeightMixerParams mixer;
    const Matrix& from = c.conv_width > 0 ? mapped : projected;
    if (c.conv_width > 0) {
      mixer.conv = {.rows = ragged,
                    .channels = static_cast<int32_t>(channels()),
                    .width = c.conv_width,
                    .weight = conv_weight.data(),
                    .bias = c.conv_bias ? conv_bias.data() : nullptr,
                    .linear_channels = c.linear_keys ? static_cast<int32_t>(2 * key_width()) : 0,
                    .tail = piece(tails, tail_floats()),
                    .x = projected.data(),
                    .ldx = projected.stride,
                    .y = mapped.data(),
                    .ldy = mapped.stride};
    }
    mixer.query = {.rows = rows,
                   .heads = shape.heads,
                   .dim = shape.key_dim,
                   .map = c.map,
                   .norm = c.norm,
                   .scale = c.query_scale,
                   .x = from.data(),
                   .ldx = from.stride,
                   .y = mapped.data(),
                   .ldy = mapped.stride};
    mixer.key = mixer.query;
    mixer.key.scale = 1.0f;
    mixer.key.x += key_width();
    mixer.key.y += key_width();
    const float* v = from.data() + 2 * key_width();
    if (c.map_values) {
      mixer.value = {.rows = rows,
                     .heads = shape.value_heads,
                     .dim = shape.value_dim,
                     .map = FeatureMapKind::kSilu,
                     .x = v,
                     .ldx = from.stride,
                     .y = mapped.data() + 2 * key_width(),
                     .ldy = mapped.stride};
      v = mixer.value->y;
    }
    if (c.rule != kSum) {
      mixer.gate = {.rows = rows,
                    .heads = shape.value_heads,
                    .b = c.learned_beta ? b : nullptr,
                    .ldb = projected.stride,
                    .beta_scale = c.beta_scale,
                    .beta = beta.data()};
    }
    if (c.rule == kGated) {
      mixer.gate->a = b + shape.value_heads;
      mixer.gate->lda = projected.stride;
      mixer.gate->a_log = a_log.data();
      mixer.gate->dt_bias = dt_bias.data();
      mixer.gate->log_decay = log_decay.data();
    }
    mixer.memory = {.shape = shape,
                    .rule = c.rule,
                    .rows = ragged,
                    .state = piece(states, state_floats()),
                    .q = mixer.query.y,
                    .ldq = mapped.stride,
                    .k = mixer.key.y,
                    .ldk = mapped.stride,
                    .v = v,
                    .ldv = c.map_values ? mapped.stride : from.stride,
                    .beta = mixer.gate ? beta.data() : nullptr,
                    .log_decay = c.rule == kGated ? log_decay.data() : nullptr,
                    .out = read.data(),
                    .ldout = read.stride};
    if (c.output_norm) {
      mixer.norm = {.rows = rows,
                    .groups = shape.value_heads,
                    .dim = shape.value_dim,
                    .x = read.data(),
                    .ldx = read.stride,
                    .weight = norm_weight.data(),
                    .gate_activation = c.gate,
                    .gate = c.gate == GateActivation::kNone ? nullptr : projected.data() + gate_column(),
                    .ldgate = projected.stride,
                    .y = read.data(),
                    .ldy = read.stride};
    }
    return mixer;
  }

  void Run(bool replay = false) {
    ThreadPool pool(2);
    FastWeightMixerParams mixer = Params();
    if (replay) mixer.memory.replay = Replay();
    AsStored(mixer.memory, [&] { FastWeightMixer(On(pool), mixer); });
    if (replay) AdvanceReplay(On(pool), {mixer.memory.rows, kInterval, mixer.memory.replay.pending});
  }

  // Makes all states whole.
  void Flush() {
    ThreadPool pool(1);
    FastWeightParams p = Params().memory;
    p.replay = Replay();
    AsStored(p, [&] {
      FlushReplay(On(pool), {.shape = p.shape, .rule = p.rule, .rows = p.rows, .state = p.state, .replay = p.replay});
    });
  }

  // Calls run() with the memory's states in their type.
  template <typename F>
  void AsStored(FastWeightParams& memory, const F& run) {
    if (c.stored == DType::kF32) return run();
    std::vector<BF16> stored(states.size());
    std::transform(states.begin(), states.end(), stored.begin(), BF16FromFloat);
    memory.state = {reinterpret_cast<std::byte*>(stored.data()), state_floats() * 2, DType::kBF16};
    run();
    std::transform(stored.begin(), stored.end(), states.begin(), FloatFromBF16);
  }

  FastWeightReplay Replay() {
    return {.interval = kInterval,
            .written = {reinterpret_cast<std::byte*>(written.data()), entries_floats() * 4},
            .pending = {reinterpret_cast<std::byte*>(pending.data()), 64}};
  }

  // Sequence s, in a batch of its own.
  Batch Alone(int32_t s) const {
    Batch alone = *this;
    const int32_t first = row_begin[s], rows = row_begin[s + 1] - first;
    alone.sequences = 1;
    alone.steps = rows == 1 ? 1 : 0;
    alone.row_begin = {0, rows};
    alone.slot = {slot[s]};
    for (Matrix* matrix : {&alone.projected, &alone.mapped, &alone.read}) {
      const auto begin = matrix->values.begin() + first * matrix->stride;
      matrix->values = std::vector<float>(begin, begin + rows * matrix->stride);
      matrix->rows = rows;
    }
    return alone;
  }

  std::span<const float> RowsOf(int32_t s) const {
    return std::span(read.values).subspan(row_begin[s] * read.stride, (row_begin[s + 1] - row_begin[s]) * read.stride);
  }

  // Of sequence s: its state, then its tail.
  std::vector<float> KeptOf(int32_t s) const {
    const auto state = states.begin() + slot[s] * state_floats(), tail = tails.begin() + slot[s] * tail_floats();
    std::vector<float> kept(state, state + state_floats());
    kept.insert(kept.end(), tail, tail + tail_floats());
    return kept;
  }

  Case c;
  int32_t sequences;
  int32_t steps = 0;
  std::vector<int32_t> row_begin, slot;
  Matrix projected;  // q | k | v | gate | b | a
  Matrix mapped;     // q | k | v
  Matrix read;
  std::vector<float> beta, log_decay;
  std::vector<float> conv_weight, conv_bias, norm_weight, a_log, dt_bias;
  std::vector<float> tails, states;
  std::vector<float> written;
  std::vector<int32_t> pending;
};

struct References {
  void operator()(const ShortConvParams& p) const { ShortConvReference(p); }
  void operator()(const FeatureMapParams& p) const { FeatureMapReference(p); }
  void operator()(const GateParams& p) const { GateReference(p); }
  void operator()(const AttentionNormParams& p) const { AttentionNormReference(p); }
  void operator()(const FastWeightParams& p) const { FastWeightReference(p); }
  void operator()(const RmsNormParams& p) const { RmsNormReference(p); }
};

std::vector<Case> FusedCases() {
  std::vector<Case> cases;
  std::ranges::copy_if(kCases, std::back_inserter(cases), &Case::fused);
  return cases;
}

class MixerCase : public testing::TestWithParam<Case> {};
class FusedMixerCase : public MixerCase {};
INSTANTIATE_TEST_SUITE_P(Table, FusedMixerCase, testing::ValuesIn(FusedCases()),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Table, MixerCase, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(MixerCase, StepsAgreeWithTheReferencesOfTheOps) {
  const Case& c = GetParam();
  Batch expected(c, {1, 1, 1}), actual(c, {1, 1, 1});
  for (uint32_t step = 1; step <= 3; ++step) {
    ForEachOp(expected.Params(), References());
    actual.Run();
    EXPECT_TRUE(Near(actual.read, expected.read, 2e-5, /*floor=*/1.0)) << "step " << step;
    EXPECT_TRUE(SameBits(actual.tails, expected.tails)) << "step " << step;
    if (c.stored == DType::kF32) {
      EXPECT_TRUE(Near(actual.states, expected.states, 1e-5, /*floor=*/1.0)) << "step " << step;
    } else {
      EXPECT_TRUE(Near(actual.states, expected.states, 1.0 / 256, /*floor=*/1e-2)) << "step " << step;
      expected.states = actual.states;  // what rounding does to later steps is another op's test
    }
    expected.projected = actual.projected = Batch(c, {1, 1, 1}, step + 1).projected;
  }
}

TEST_P(MixerCase, StepsOnADeviceWriteNothingBetween) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device takes a step in one launch";
  Batch batch(GetParam(), {1, 1});
  EXPECT_EQ(HasFusedSteps(batch.Params()), GetParam().fused);
  batch.Run();
  const auto untouched = [](const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isnan(value); });
  };
  EXPECT_EQ(untouched(batch.mapped.values), GetParam().fused);
  EXPECT_EQ(untouched(batch.beta), GetParam().fused || GetParam().rule == kSum);
}

TEST_P(MixerCase, SequencesDoNotNoticeEachOther) {
  const Batch before(GetParam(), {1, 1, 1, 5, 66});
  Batch together = before;
  together.Run();
  for (int32_t s = 0; s < before.sequences; ++s) {
    Batch alone = before.Alone(s);
    alone.Run();
    EXPECT_TRUE(SameBits(alone.read.values, together.RowsOf(s))) << "sequence " << s;
    EXPECT_TRUE(SameBits(alone.KeptOf(0), together.KeptOf(s))) << "sequence " << s;
  }
}

TEST_P(MixerCase, ChunksAgreeWithTheReferencesOfTheOpsBesideSteps) {
  Batch expected(GetParam(), {1, 1, 3, 70}), actual(GetParam(), {1, 1, 3, 70});
  ForEachOp(expected.Params(), References());
  actual.Run();
  const double tolerance = GetParam().stored == DType::kF32 ? 5e-5 : 0.05;
  EXPECT_TRUE(Near(actual.read, expected.read, tolerance, /*floor=*/1.0));
  EXPECT_TRUE(SameBits(actual.tails, expected.tails));
}

TEST_P(MixerCase, PaddingDoesNothing) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only the batches of a device are filled up";
  const Batch before(GetParam(), {1, 1, 1});
  Batch whole = before, padded = before;
  padded.slot[1] = -1;
  whole.Run();
  padded.Run();
  padded.slot[1] = before.slot[1];
  for (const int32_t s : {0, 2}) {
    EXPECT_TRUE(SameBits(padded.RowsOf(s), whole.RowsOf(s)));
    EXPECT_TRUE(SameBits(padded.KeptOf(s), whole.KeptOf(s)));
  }
  EXPECT_TRUE(SameBits(padded.KeptOf(1), before.KeptOf(1)));
  if (!GetParam().fused) return;
  EXPECT_TRUE(SameBits(padded.RowsOf(1), before.RowsOf(1)));
}

TEST_P(FusedMixerCase, TheReplayFormGivesTheBitsOfWritingAtEveryStep) {
  if (TestDevice() == nullptr) GTEST_SKIP() << "only a device leaves out writes";
  Batch plain(GetParam(), {1, 1, 1}), replayed(GetParam(), {1, 1, 1});
  for (uint32_t pass = 1; pass <= 11; ++pass) {
    // Now and then one of the sequences takes a chunk.
    const Batch inputs(GetParam(), {1, 1, pass % 5 == 0 ? 3 : 1}, pass);
    for (Batch* batch : {&plain, &replayed}) {
      batch->row_begin = inputs.row_begin;
      batch->steps = inputs.steps;
      batch->projected = inputs.projected;
      batch->mapped = inputs.mapped;
      batch->read = inputs.read;
      batch->beta = batch->log_decay = inputs.beta;
    }
    plain.Run();
    replayed.Run(/*replay=*/true);
    ASSERT_TRUE(SameBits(replayed.read, plain.read)) << "pass " << pass;
    ASSERT_TRUE(SameBits(replayed.tails, plain.tails)) << "pass " << pass;
  }
  EXPECT_FALSE(SameBits(replayed.states, plain.states)) << "the last write was some steps ago";
  replayed.Flush();
  EXPECT_TRUE(SameBits(replayed.states, plain.states));
}

}  // namespace
}  // namespace palimpsest
