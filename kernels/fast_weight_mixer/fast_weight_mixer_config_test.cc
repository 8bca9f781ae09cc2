// Which mixers have fused steps, and the shapes of their launches, which no device is needed for.
#include "kernels/fast_weight_mixer/fast_weight_mixer_config.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/fast_weight_mixer/fast_weight_mixer.h"

namespace palimpsest {
namespace {

TEST(KnownDivisor, IsADivision) {
  for (const int32_t by : {1, 2, 3, 5, 31, 32, 33, 127, 128, 1000, 32767}) {
    const KnownDivisor divisor(by);
    for (int32_t n = 0; n < 1 << 15; ++n) ASSERT_EQ(divisor.Quotient(n), n / by) << n << " by " << by;
  }
}

TEST(MixerStepConfig, EveryRowOfAStateHasItsLanesInOneBlock) {
  for (const int32_t K : {16, 32, 64, 128, 256}) {
    for (const int32_t V : {1, 5, 16, 40, 64, 128, 200, 512, 1024}) {
      for (const int32_t shared_by : {1, 2, 3, 8}) {
        const MixerStepConfig config = ChooseMixerStepConfig({2, 2 * shared_by, K, V});
        ASSERT_EQ(config.value_heads, shared_by);
        ASSERT_EQ(config.threads % 32, 0);
        ASSERT_GE(config.threads, 32);
        ASSERT_LE(config.threads, MixerStepConfig::kMostThreads);
        ASSERT_GE(config.pieces_per_head.divisor * MixerStepConfig::kPieceRows, V);
        ASSERT_GE(config.threads, config.pieces * K / FastWeightRowsConfig::kRowFloats);
        ASSERT_GE(config.parts * config.pieces, shared_by * config.pieces_per_head.divisor);
        ASSERT_LT((config.parts - 1) * config.pieces, shared_by * config.pieces_per_head.divisor)
            << "a part without work";
      }
    }
  }
  EXPECT_EQ(ChooseMixerStepConfig({16, 16, 128, 128}).parts, 1);
  EXPECT_EQ(ChooseMixerStepConfig({6, 6, 256, 512}).parts, 8);
}

TEST(MixerStepConfig, ArraysLieApartAndFitEveryDevice) {
  for (const int32_t K : {16, 64, 256}) {
    for (const int32_t V : {1, 1024}) {
      const MixerStepConfig config = ChooseMixerStepConfig({1, 4, K, V});
      const int32_t values = config.pieces * MixerStepConfig::kPieceRows;
      EXPECT_EQ(config.k, K);
      EXPECT_EQ(config.v, config.k + K);
      EXPECT_EQ(config.k % 4, 0) << "keys are read 16 bytes at a time";
      EXPECT_GE(config.read, config.v + values);
      EXPECT_GE(config.gain, config.read + values);
      EXPECT_GE(config.bytes, 4 * (config.gain + values));
      EXPECT_LE(config.bytes, 48 << 10);
    }
  }
}

FastWeightMixerParams Plain() {
  FastWeightMixerParams mixer;
  mixer.gate = GateParams();
  mixer.memory.shape = {.heads = 2, .value_heads = 4, .key_dim = 64, .value_dim = 48};
  return mixer;
}

TEST(HasFusedSteps, OfDecaysByHeadAndSoftplusAlone) {
  const float some = 0.0f;
  FastWeightMixerParams gated = Plain();
  gated.memory.rule = UpdateRule::kGatedDelta;
  gated.gate->a_log = gated.gate->dt_bias = &some;
  EXPECT_TRUE(HasFusedSteps(gated));

  for (const DecayKind kind : {DecayKind::kSigmoid, DecayKind::kLogSigmoid}) {
    FastWeightMixerParams mixer = gated;
    mixer.gate->decay_kind = kind;
    EXPECT_FALSE(HasFusedSteps(mixer));
  }
  for (const float* GateParams::*weight : {&GateParams::a_log, &GateParams::dt_bias}) {
    FastWeightMixerParams mixer = gated;
    (*mixer.gate).*weight = nullptr;
    EXPECT_FALSE(HasFusedSteps(mixer));
  }
  gated.gate->decay_channels = 64;
  EXPECT_FALSE(HasFusedSteps(gated));
}

TEST(HasFusedSteps, OfMixersThatABlockCanDoAlone) {
  FastWeightMixerParams mixer = Plain();
  EXPECT_TRUE(HasFusedSteps(mixer));

  mixer.gate.reset();
  EXPECT_FALSE(HasFusedSteps(mixer));
  mixer.memory.rule = UpdateRule::kSum;
  EXPECT_TRUE(HasFusedSteps(mixer));

  mixer = Plain();
  mixer.memory.shape.key_dim = 48;
  EXPECT_FALSE(HasFusedSteps(mixer)) << "no rows in registers";

  for (const UpdateRule rule : {UpdateRule::kChannelGatedDelta, UpdateRule::kLowRank, UpdateRule::kChannelGatedSum}) {
    mixer = Plain();
    mixer.memory.rule = rule;
    EXPECT_FALSE(HasFusedSteps(mixer));
  }

  mixer = Plain();
  mixer.memory.sub_steps = 2;
  EXPECT_FALSE(HasFusedSteps(mixer));

  for (FeatureMapParams FastWeightMixerParams::*map : {&FastWeightMixerParams::query, &FastWeightMixerParams::key}) {
    mixer = Plain();
    for (const FeatureMapKind of_several : {FeatureMapKind::kDpfp, FeatureMapKind::kFavor, FeatureMapKind::kT2r,
                                            FeatureMapKind::kHedgehog, FeatureMapKind::kElementwiseProduct}) {
      (mixer.*map).map = of_several;
      EXPECT_FALSE(HasFusedSteps(mixer));
    }
    (mixer.*map).map = FeatureMapKind::kElu1;
    EXPECT_TRUE(HasFusedSteps(mixer));
  }

  mixer = Plain();
  mixer.value = FeatureMapParams{.map = FeatureMapKind::kSilu};
  EXPECT_TRUE(HasFusedSteps(mixer));
  mixer.value->norm = KeyNorm::kL2;
  EXPECT_FALSE(HasFusedSteps(mixer));

  mixer = Plain();
  mixer.attention_norm = AttentionNormParams();
  EXPECT_FALSE(HasFusedSteps(mixer));
}

}  // namespace
}  // namespace palimpsest
