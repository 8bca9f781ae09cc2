#include "server/model/checkpoint/tensor_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <vector>

namespace palimpsest {
namespace {

using ::testing::UnorderedElementsAre;

TensorMap Tensors(std::initializer_list<const char*> names) {
  TensorMap tensors;
  for (const char* const name : names) tensors.emplace(name, TensorView{.shape = {4, 3}});
  return tensors;
}

std::vector<std::string> NamesOf(const TensorMap& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(name);
  return names;
}

std::vector<std::string> Known(std::initializer_list<const char*> names, bool tied = false) {
  return NamesOf(WithKnownNames(Tensors(names), tied));
}

TEST(TensorNames, WhatIsKnownStays) {
  EXPECT_THAT(Known({"model.embeddings.weight", "model.layers.0.attn.q_proj.weight", "lm_head.weight"}),
              UnorderedElementsAre("model.embeddings.weight", "model.layers.0.attn.q_proj.weight", "lm_head.weight"));
}

TEST(TensorNames, WrappersOfAllNamesAreTakenOff) {
  const auto expected = UnorderedElementsAre("model.norm.weight", "lm_head.weight");
  EXPECT_THAT(Known({"module.model.norm.weight", "module.lm_head.weight"}), expected);
  EXPECT_THAT(Known({"_orig_mod.model.norm.weight", "_orig_mod.lm_head.weight"}), expected);
  EXPECT_THAT(Known({"module._orig_mod.model.norm.weight", "module._orig_mod.lm_head.weight"}), expected);
  EXPECT_THAT(Known({"model.model.norm.weight", "model.lm_head.weight"}), expected);
  EXPECT_THAT(Known({"norm.weight", "lm_head.weight"}), expected);
}

TEST(TensorNames, AWrapperOfSomeNamesIsPartOfThem) {
  EXPECT_THAT(Known({"module.model.norm.weight", "lm_head.weight"}),
              UnorderedElementsAre("model.module.model.norm.weight", "lm_head.weight"));
  EXPECT_THAT(Known({"model.norm.weight", "module.lm_head.weight"}),
              UnorderedElementsAre("model.norm.weight", "module.lm_head.weight"));
}

TEST(TensorNames, EmbeddingsHaveOneName) {
  EXPECT_THAT(Known({"model.embed_tokens.weight", "model.norm.weight"}),
              UnorderedElementsAre("model.embeddings.weight", "model.norm.weight"));
  EXPECT_THAT(Known({"model.embed_tokens.weight", "model.embeddings.weight"}),
              UnorderedElementsAre("model.embed_tokens.weight", "model.embeddings.weight"));
  EXPECT_THAT(Known({"model.norm.weight", "lm_head.weight"}, /*tied=*/true),
              UnorderedElementsAre("model.norm.weight", "model.embeddings.weight"));
  EXPECT_THAT(Known({"model.embeddings.weight", "lm_head.weight"}, /*tied=*/true),
              UnorderedElementsAre("model.embeddings.weight", "lm_head.weight"));
}

TEST(TensorNames, BuffersAreLeftOut) {
  EXPECT_THAT(Known({"model.norm.weight", "model.layers.3.attn.rotary.inv_freq",
                     "model.layers.3.self_attn.rotary_emb.inv_freq"}),
              UnorderedElementsAre("model.norm.weight"));
}

TEST(TensorNames, ConvolutionsHaveThreeDimensions) {
  TensorMap tensors = Tensors({"model.layers.0.attn.q_conv1d.weight", "model.layers.0.attn.q_proj.weight"});
  tensors.emplace("model.layers.0.attn.k_conv1d.weight", TensorView{.shape = {4, 1, 3}});
  const TensorMap known = WithKnownNames(tensors, false);
  const std::vector<int64_t> three = {4, 1, 3}, two = {4, 3};
  EXPECT_EQ(known.find("model.layers.0.attn.q_conv1d.weight")->second.shape, three);
  EXPECT_EQ(known.find("model.layers.0.attn.k_conv1d.weight")->second.shape, three);
  EXPECT_EQ(known.find("model.layers.0.attn.q_proj.weight")->second.shape, two);
}

}  // namespace
}  // namespace palimpsest
