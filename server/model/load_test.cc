// Loading a checkpoint: what is accepted, in which words the rest is refused, and what identifies a model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/testing/temporary_folder.h"
#include "kernels/common/aligned_buffer.h"
#include "server/model/model.h"
#include "server/model/testing/random_checkpoint.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using testing::RandomCheckpointSpec;
using testing::TensorToWrite;
using Tensors = std::vector<TensorToWrite>;

// The checkpoint of `spec` with its tensors changed.
absl::StatusOr<std::unique_ptr<Model>> LoadChanged(const RandomCheckpointSpec& spec,
                                                   const std::function<void(Tensors&)>& change,
                                                   const ModelOptions& options = {}) {
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  testing::WriteFile(folder + "/config.json", testing::RandomCheckpointConfig(spec));
  Tensors tensors = testing::RandomCheckpointTensors(spec);
  change(tensors);
  testing::WriteShards(folder, tensors, spec.shards);
  return Model::Load(folder, options);
}

std::unique_ptr<Model> MustLoad(const RandomCheckpointSpec& spec, const std::function<void(Tensors&)>& change) {
  absl::StatusOr<std::unique_ptr<Model>> model = LoadChanged(spec, change);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}
void Unchanged(Tensors&) {}

TensorToWrite& Find(Tensors& tensors, const std::string& name) {
  for (TensorToWrite& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  return tensors[0];
}
void Remove(Tensors& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const TensorToWrite& tensor) { return tensor.name == name; });
}
void SetFloat(TensorToWrite& tensor, size_t index, float value) {
  std::memcpy(tensor.bytes.data() + 4 * index, &value, 4);
}

std::vector<float> LogitsOf(const Model& model) {
  const std::vector<int32_t> tokens = {1, 5, 2, 200, 77, 1, 1, 9};
  const std::vector<int32_t> rows = {0, 1, 2, 3, 4, 5, 6, 7};
  const int32_t row_begin[] = {0, 8}, slot[] = {0};
  AlignedBytes state(model.layout().bytes());
  std::vector<float> logits(8 * model.config().vocabulary);
  ThreadPool pool(1);
  Workspace workspace;
  model.Forward({&pool},
                {.tokens = tokens,
                 .rows = {1, row_begin, slot},
                 .states = state.data(),
                 .state_stride = state.size(),
                 .logit_rows = rows},
                workspace, logits.data());
  return logits;
}

TEST(Load, TellsWhatItLoaded) {
  RandomCheckpointSpec spec;
  const auto model = MustLoad(spec, Unchanged);
  ASSERT_NE(model, nullptr);
  int64_t parameters = 0;
  for (const TensorToWrite& tensor : testing::RandomCheckpointTensors(spec)) {
    parameters += static_cast<int64_t>(tensor.bytes.size()) / SizeOf(tensor.dtype);
  }
  EXPECT_EQ(model->parameter_count(), parameters);
  EXPECT_GE(model->weight_bytes(), 4 * parameters);
  EXPECT_EQ(model->weight_dtype(), DType::kF32);
  EXPECT_EQ(model->math(), LinearMath::kF32);
  EXPECT_EQ(model->config().architecture, "gated_deltanet");
  EXPECT_EQ(model->layout().hash(), StateLayout::FromConfig(model->config()).hash());
  EXPECT_THAT(model->fingerprint(), MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(model->fingerprint().size(), 64);
}

// Names and shapes that other writers give the same tensors.
TEST(Load, WritersOfOtherNamesWriteTheSameModel) {
  RandomCheckpointSpec spec;
  const auto as_it_is = MustLoad(spec, Unchanged);
  ASSERT_NE(as_it_is, nullptr);
  const auto rename = [](Tensors& tensors, const std::function<std::string(const std::string&)>& to) {
    for (TensorToWrite& tensor : tensors) tensor.name = to(tensor.name);
  };
  const std::pair<const char*, std::function<void(Tensors&)>> writers[] = {
      {"wrapped", [&](Tensors& t) { rename(t, [](const std::string& name) { return "module._orig_mod." + name; }); }},
      {"wrapped as a model", [&](Tensors& t) { rename(t, [](const std::string& name) { return "model." + name; }); }},
      {"the inner model",
       [&](Tensors& t) {
         rename(t, [](const std::string& name) { return name.starts_with("model.") ? name.substr(6) : name; });
       }},
      {"embed_tokens", [&](Tensors& t) { Find(t, "model.embeddings.weight").name = "model.embed_tokens.weight"; }},
      {"flat convolutions",
       [&](Tensors& t) {
         for (TensorToWrite& tensor : t) {
           if (tensor.name.ends_with("_conv1d.weight")) tensor.shape.erase(tensor.shape.begin() + 1);
         }
       }},
      {"buffers", [&](Tensors& t) {
         t.push_back(testing::MakeTensor("model.layers.0.attn.rotary.inv_freq", DType::kF32, {2},
                                         std::vector<float>{1.0f, 0.1f}));
       }}};
  for (const auto& [what, change] : writers) {
    SCOPED_TRACE(what);
    const auto model = MustLoad(spec, change);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->fingerprint(), as_it_is->fingerprint());
    EXPECT_EQ(LogitsOf(*model), LogitsOf(*as_it_is));
  }
}

TEST(Load, ATiedMatrixMayBeStoredAsTheHead) {
  RandomCheckpointSpec spec;
  spec.tied = true;
  const auto as_it_is = MustLoad(spec, Unchanged);
  const auto as_head = MustLoad(spec, [](Tensors& t) { Find(t, "model.embeddings.weight").name = "lm_head.weight"; });
  ASSERT_TRUE(as_it_is != nullptr && as_head != nullptr);
  EXPECT_EQ(as_head->fingerprint(), as_it_is->fingerprint());
}

TEST(Load, ArithmeticFollowsTheWeights) {
  RandomCheckpointSpec spec;
  spec.dtype = DType::kBF16;
  const auto automatic = LoadChanged(spec, Unchanged);
  ASSERT_TRUE(automatic.ok());
  EXPECT_EQ((*automatic)->weight_dtype(), DType::kBF16);
  EXPECT_EQ((*automatic)->math(), HasNativeBF16() ? LinearMath::kBF16 : LinearMath::kF32);
  EXPECT_EQ((*LoadChanged(spec, Unchanged, {.math = ModelOptions::Math::kF32}))->math(), LinearMath::kF32);
  EXPECT_EQ((*LoadChanged(spec, Unchanged, {.math = ModelOptions::Math::kBF16}))->math(), LinearMath::kBF16);
  spec.dtype = DType::kF16;
  const auto refused = LoadChanged(spec, Unchanged, {.math = ModelOptions::Math::kBF16});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("bf16 arithmetic needs bf16 weights"));
}

TEST(Load, ShardsAndOneFileAreTheSameModel) {
  RandomCheckpointSpec spec;
  const auto one = MustLoad(spec, Unchanged);
  spec.shards = 3;
  const auto three = MustLoad(spec, Unchanged);
  EXPECT_EQ(one->fingerprint(), three->fingerprint());
  EXPECT_EQ(LogitsOf(*one), LogitsOf(*three));
}

TEST(Load, TheFingerprintNoticesOneBitAndOneSetting) {
  const RandomCheckpointSpec base;
  const std::string fingerprint = MustLoad(base, Unchanged)->fingerprint();
  EXPECT_EQ(fingerprint, MustLoad(base, [](Tensors& tensors) { std::swap(tensors[0], tensors[5]); })->fingerprint());
  EXPECT_NE(fingerprint, MustLoad(base, [](Tensors& tensors) { tensors[3].bytes[0] ^= 1; })->fingerprint());
  RandomCheckpointSpec other = base;
  other.allow_neg_eigval = true;
  EXPECT_NE(fingerprint, MustLoad(other, Unchanged)->fingerprint());
  other = base;
  other.eos_token = 3;  // not part of what the numbers mean
  EXPECT_EQ(fingerprint, MustLoad(other, Unchanged)->fingerprint());
}

// A fixed model keeps its fingerprint: durable snapshots depend on it.
TEST(Load, TheFingerprintOfAModelStaysWhatItIs) {
  EXPECT_EQ(MustLoad({}, Unchanged)->fingerprint(), "faa531210a1c3187e49d9793e4943965c086de3d6a50339a90ff3fc39ac6762e");
}

TEST(Load, OldFilesHoldGateAndUpInOneMatrix) {
  const RandomCheckpointSpec spec;
  const auto today = MustLoad(spec, Unchanged);
  const auto old = MustLoad(spec, [&](Tensors& tensors) {
    for (int i = 0; i < spec.layers; ++i) {
      const std::string mlp = absl::StrCat("model.layers.", i, ".mlp.");
      TensorToWrite& gate = Find(tensors, mlp + "gate_proj.weight");
      gate.bytes += Find(tensors, mlp + "up_proj.weight").bytes;
      gate.shape[0] *= 2;
      Remove(tensors, mlp + "up_proj.weight");
    }
  });
  EXPECT_EQ(LogitsOf(*today), LogitsOf(*old));
  EXPECT_EQ(today->parameter_count(), old->parameter_count());
}

TEST(Load, OldFilesKeepTheNormsInsideTheirModules) {
  const RandomCheckpointSpec spec;
  const auto today = MustLoad(spec, Unchanged);
  const auto old = MustLoad(spec, [&](Tensors& tensors) {
    for (int i = 0; i < spec.layers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      Find(tensors, layer + "attn_norm.weight").name = layer + "attn.norm.weight";
      Find(tensors, layer + "mlp_norm.weight").name = layer + "mlp.norm.weight";
    }
  });
  EXPECT_EQ(LogitsOf(*today), LogitsOf(*old));
}

// Also where the head is as wide as the model, so that shapes cannot tell the two uses of the name apart.
TEST(Load, OlderFilesCallTheNormOfTheOutputNorm) {
  for (const int32_t value_dim : {16, 32}) {
    RandomCheckpointSpec spec;
    spec.value_dim = value_dim;
    const auto today = MustLoad(spec, Unchanged);
    const auto old = MustLoad(spec, [&](Tensors& tensors) {
      for (int i = 0; i < spec.layers; ++i) {
        const std::string layer = absl::StrCat("model.layers.", i, ".");
        Find(tensors, layer + "attn.o_norm.weight").name = layer + "attn.norm.weight";
      }
    });
    EXPECT_EQ(LogitsOf(*today), LogitsOf(*old));
  }
}

TEST(Load, EarlyGatedFilesHaveATensorThatNobodyReads) {
  const auto today = MustLoad({}, Unchanged);
  const auto old = MustLoad({}, [](Tensors& tensors) {
    tensors.push_back(testing::MakeTensor("model.layers.0.attn.D", DType::kF32, {2}, std::vector<float>{1, 1}));
  });
  EXPECT_EQ(LogitsOf(*today), LogitsOf(*old));
  EXPECT_EQ(today->parameter_count(), old->parameter_count());
}

TEST(Load, ATiedMatrixMayBeStoredTwice) {
  RandomCheckpointSpec spec;
  spec.tied = true;
  const auto add_copy = [](Tensors& tensors) {
    tensors.push_back(Find(tensors, "model.embeddings.weight"));
    tensors.back().name = "lm_head.weight";
  };
  const auto once = MustLoad(spec, Unchanged), twice = MustLoad(spec, add_copy);
  EXPECT_EQ(LogitsOf(*once), LogitsOf(*twice));
  const auto another = LoadChanged(spec, [&](Tensors& tensors) {
    add_copy(tensors);
    tensors.back().bytes[0] ^= 1;
  });
  EXPECT_EQ(another.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(another.status().message()),
              HasSubstr("'lm_head.weight' is there and differs from 'model.embeddings.weight'"));
}

// A layer's projections are stacked into one matrix, which has one type.
TEST(Load, ProjectionsOfUnlikeTypesAreWidened) {
  RandomCheckpointSpec spec;
  spec.dtype = DType::kBF16;
  const auto widen = [](TensorToWrite& tensor) {
    std::vector<float> values(tensor.bytes.size() / 2);
    for (size_t i = 0; i < values.size(); ++i) {
      BF16 bits;
      std::memcpy(&bits, tensor.bytes.data() + 2 * i, 2);
      values[i] = FloatFromBF16(bits);
    }
    tensor = testing::MakeTensor(tensor.name, DType::kF32, tensor.shape, values);
  };
  const ModelOptions f32{.math = ModelOptions::Math::kF32};
  const auto alike = LoadChanged(spec, Unchanged, f32);
  const auto unlike = LoadChanged(
      spec, [&](Tensors& tensors) { widen(Find(tensors, "model.layers.1.attn.b_proj.weight")); }, f32);
  ASSERT_TRUE(alike.ok() && unlike.ok()) << unlike.status();
  EXPECT_EQ(LogitsOf(**alike), LogitsOf(**unlike));
  EXPECT_GT((*unlike)->weight_bytes(), (*alike)->weight_bytes());
}

TEST(Load, TensorsNeedNotBeAligned) {
  const RandomCheckpointSpec spec;
  const auto aligned = MustLoad(spec, Unchanged);
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  testing::WriteRandomCheckpoint(folder, spec);
  // One more space at the end of the header moves all tensors to odd addresses.
  std::string file = testing::SerializeSafetensors(testing::RandomCheckpointTensors(spec));
  uint64_t length;
  std::memcpy(&length, file.data(), 8);
  file.insert(8 + length, " ");
  ++length;
  std::memcpy(file.data(), &length, 8);
  testing::WriteFile(folder + "/model.safetensors", file);
  const auto odd = Model::Load(folder);
  ASSERT_TRUE(odd.ok()) << odd.status();
  EXPECT_EQ((*odd)->fingerprint(), aligned->fingerprint());
  EXPECT_EQ(LogitsOf(**odd), LogitsOf(*aligned));
}

struct BadCheckpoint {
  const char* name;
  std::function<void(Tensors&)> change;
  const char* words;

  friend void PrintTo(const BadCheckpoint& row, std::ostream* out) { *out << row.name; }
};

std::vector<BadCheckpoint> BadCheckpoints() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return {
      {"missing", [](Tensors& t) { Remove(t, "model.layers.1.attn.k_proj.weight"); },
       "tensor 'model.layers.1.attn.k_proj.weight' [32, 32] is missing"},
      {"missing_embeddings", [](Tensors& t) { Remove(t, "model.embeddings.weight"); },
       "tensor 'model.embeddings.weight' [256, 32] is missing"},
      {"missing_head", [](Tensors& t) { Remove(t, "lm_head.weight"); }, "tensor 'lm_head.weight' [256, 32] is missing"},
      {"misspelt",
       [](Tensors& t) { Find(t, "model.layers.0.attn.q_proj.weight").name = "model.layers.0.attn.q_porj.weight"; },
       "tensor 'model.layers.0.attn.q_proj.weight' [32, 32] is missing; there is 'model.layers.0.attn.q_porj.weight', "
       "which config.json does not ask for"},
      {"unknown",
       [](Tensors& t) {
         t.push_back(testing::MakeTensor("model.layers.1.attn.c_proj.weight", DType::kF32, {1}, std::vector<float>{1}));
       },
       "unknown tensor 'model.layers.1.attn.c_proj.weight', one of 1 that config.json does not ask for; the nearest "
       "name that it asks for is 'model.layers.1.attn."},
      {"unknown_and_like_nothing",
       [](Tensors& t) { t.push_back(testing::MakeTensor("zzz\n", DType::kF32, {1}, std::vector<float>{1})); },
       "unknown tensor 'zzz\\n', one of 1 that config.json does not ask for"},
      {"layers_that_the_config_does_not_have",
       [](Tensors& t) {
         t.push_back(testing::MakeTensor("model.layers.2.attn_norm.weight", DType::kF32, {32}, std::vector<float>(32)));
       },
       "unknown tensor 'model.layers.2.attn_norm.weight', one of 1"},
      {"wrong_shape",
       [](Tensors& t) {
         Find(t, "model.layers.0.attn.v_proj.weight").shape = {16, 64};
       },
       "tensor 'model.layers.0.attn.v_proj.weight' has shape [16, 64], config.json asks for [32, 32]"},
      {"transposed",
       [](Tensors& t) {
         Find(t, "model.layers.1.mlp.down_proj.weight").shape = {64, 32};
       },
       "tensor 'model.layers.1.mlp.down_proj.weight' has shape [64, 32], config.json asks for [32, 64]"},
      {"wrong_rank",
       [](Tensors& t) {
         Find(t, "model.layers.0.attn.q_conv1d.weight").shape = {32, 1, 1, 4};
       },
       "tensor 'model.layers.0.attn.q_conv1d.weight' has shape [32, 1, 1, 4], config.json asks for [32, 1, 4]"},
      {"decay_of_other_heads",
       [](Tensors& t) {
         Find(t, "model.layers.0.attn.A_log") =
             testing::MakeTensor("model.layers.0.attn.A_log", DType::kF32, {3}, std::vector<float>(3));
       },
       "tensor 'model.layers.0.attn.A_log' has shape [3], config.json asks for [2]"},
      {"one_bias_without_the_others",
       [](Tensors& t) {
         t.push_back(
             testing::MakeTensor("model.layers.0.attn.q_conv1d.bias", DType::kF32, {32}, std::vector<float>(32)));
       },
       "tensor 'model.layers.0.attn.k_conv1d.bias' [32] is missing"},
      {"integers", [](Tensors& t) { Find(t, "model.norm.weight").dtype = DType::kI32; },
       "tensor 'model.norm.weight' is of type i32, a weight is f32, bf16 or f16"},
      {"not_a_number", [](Tensors& t) { SetFloat(Find(t, "model.layers.1.attn.o_proj.weight"), 17, std::nanf("")); },
       "tensor 'model.layers.1.attn.o_proj.weight' holds NaN or infinity at index 17 of 1024"},
      {"infinite", [](Tensors& t) { SetFloat(Find(t, "model.norm.weight"), 31, -kInfinity); },
       "tensor 'model.norm.weight' holds NaN or infinity at index 31 of 32"},
      {"infinite_after_rounding",
       [](Tensors& t) {
         TensorToWrite& norm = Find(t, "model.norm.weight");
         norm = testing::MakeTensor(norm.name, DType::kBF16, {32}, std::vector<float>(32, 3.4e38f));
       },
       "tensor 'model.norm.weight' holds NaN or infinity at index 0 of 32"},
  };
}

class BadCheckpointTest : public ::testing::TestWithParam<BadCheckpoint> {};
INSTANTIATE_TEST_SUITE_P(Load, BadCheckpointTest, ::testing::ValuesIn(BadCheckpoints()),
                         [](const auto& info) { return info.param.name; });

TEST_P(BadCheckpointTest, IsRefusedWithTheTensorNamed) {
  const auto model = LoadChanged({}, GetParam().change);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), MatchesRegex(".*/palimpsest_test_[^/]*: .*"));
  EXPECT_THAT(std::string(model.status().message()), HasSubstr(GetParam().words));
}

// The norm of linear attention's output has the name that old files of others give the norm before the mixer.
TEST(Load, ATensorThatStandsForAnotherIsNotTakenTwice) {
  RandomCheckpointSpec spec;
  spec.model_type = "linear_attn";
  const auto model = LoadChanged(spec, [](Tensors& t) { Remove(t, "model.layers.0.attn_norm.weight"); });
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(std::string(model.status().message()),
              HasSubstr("tensor 'model.layers.0.attn_norm.weight' [32] is missing"));
  const auto halves = LoadChanged({}, [](Tensors& t) {
    TensorToWrite& gate = Find(t, "model.layers.0.mlp.gate_proj.weight");
    gate.bytes += gate.bytes;
    gate.shape[0] *= 2;
  });
  ASSERT_FALSE(halves.ok());
  EXPECT_THAT(std::string(halves.status().message()), HasSubstr("it holds two matrices"));
}

TEST(Load, AMapThatQueriesAndKeysShareMayBeStoredOnceOrTwice) {
  RandomCheckpointSpec spec;
  spec.model_type = "linear_attn";
  spec.settings = R"({"feature_map": "hedgehog", "tie_feature_map_qk": true})";
  const auto change_all = [&](Tensors& tensors, const std::function<void(Tensors&, size_t)>& change) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].name.find("feature_map_q") != std::string::npos) change(tensors, i);
    }
  };
  const auto once = MustLoad(spec, Unchanged);
  const auto of_keys = MustLoad(spec, [&](Tensors& tensors) {
    change_all(tensors, [](Tensors& t, size_t i) { t[i].name[t[i].name.find("map_q") + 4] = 'k'; });
  });
  const auto twice = MustLoad(spec, [&](Tensors& tensors) {
    Tensors copies;
    change_all(tensors, [&](Tensors& t, size_t i) {
      copies.push_back(t[i]);
      copies.back().name[t[i].name.find("map_q") + 4] = 'k';
    });
    tensors.insert(tensors.end(), copies.begin(), copies.end());
  });
  ASSERT_TRUE(once != nullptr && of_keys != nullptr && twice != nullptr);
  EXPECT_EQ(LogitsOf(*once), LogitsOf(*of_keys));
  EXPECT_EQ(LogitsOf(*once), LogitsOf(*twice));
}

TEST(Load, MissingFilesAreNotFound) {
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  EXPECT_EQ(Model::Load(folder + "/nowhere").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Model::Load(folder).status().code(), absl::StatusCode::kNotFound);
  testing::WriteFile(folder + "/config.json", testing::RandomCheckpointConfig({}));
  const absl::Status status = Model::Load(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has neither model.safetensors nor"));
}

TEST(Load, WhatIsNoFolderOfSafetensorsIsToldWithTheCure) {
  const testing::TemporaryFolder temporary;
  const auto said = [](const std::string& path) { return std::string(Model::Load(path).status().message()); };
  for (const auto& [name, cure] : {std::pair("model.gguf", "the model's folder as it was before it was converted"),
                                   std::pair("rwkv.pth", "write its tensors with safetensors.torch.save_file"),
                                   std::pair("pytorch_model.bin", "safe_serialization=True"),
                                   std::pair("weights.safetensors", "call it model.safetensors")}) {
    SCOPED_TRACE(name);
    const std::string file = temporary.path() + "/" + name;
    testing::WriteFile(file, "GGUF");
    EXPECT_THAT(said(file), HasSubstr("is a file; expected the folder of a checkpoint, with config.json and"));
    EXPECT_THAT(said(file), HasSubstr(cure));
    testing::WriteFile(temporary.path() + "/config.json", testing::RandomCheckpointConfig({}));
    EXPECT_THAT(said(temporary.path()), HasSubstr("has neither model.safetensors nor"));
    EXPECT_THAT(said(temporary.path()), HasSubstr(cure));
    std::filesystem::remove(file);
  }
}

TEST(Load, PointersToFilesAreNotTheFiles) {
  const testing::TemporaryFolder temporary;
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid "
      "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
      "\nsize 12345\n";
  testing::WriteRandomCheckpoint(temporary.path(), {});
  for (const char* const name : {"model.safetensors", "config.json"}) {
    testing::WriteFile(temporary.path() + "/" + name, pointer);
    const absl::Status status = Model::Load(temporary.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::string(name) + ": is a Git LFS pointer and not the file"));
  }
}

// Sizes that only the config knows: nothing is allocated before the file has agreed to them.
TEST(Load, AConfigOfAHugeModelBesideASmallFileIsRefused) {
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  testing::WriteRandomCheckpoint(folder, {});
  testing::WriteFile(folder + "/config.json",
                     R"({"model_type": "gated_deltanet", "vocab_size": 2000000, "hidden_size": 131072,
                         "intermediate_size": 131072, "num_hidden_layers": 60, "num_heads": 16, "head_dim": 256})");
  const absl::Status status = Model::Load(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has shape [256, 32], config.json asks for [2000000, 131072]"));
}

TEST(Load, ATruncatedFileIsDataLoss) {
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  testing::WriteRandomCheckpoint(folder, {});
  const std::string path = folder + "/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  const absl::Status status = Model::Load(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: truncated: tensor"));
}

// Any one changed byte of a checkpoint's files gives a model or a reason, never a crash.
TEST(Load, DamagedCheckpointsNeverCrash) {
  RandomCheckpointSpec spec;
  spec.hidden = 8, spec.mlp_inner = 8, spec.layers = 1, spec.heads = 1, spec.value_heads = 1;
  spec.key_dim = 4, spec.value_dim = 4, spec.vocabulary = 8;
  const std::string config = testing::RandomCheckpointConfig(spec);
  const std::string weights = testing::SerializeSafetensors(testing::RandomCheckpointTensors(spec));
  const testing::TemporaryFolder temporary;
  const std::string& folder = temporary.path();
  uint64_t random = 3;
  const auto draw = [&](uint64_t below) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % below;
  };
  int loaded = 0;
  constexpr int kRounds = 600;
  for (int round = 0; round < kRounds; ++round) {
    std::string bad_config = config, bad_weights = weights;
    std::string& victim = round % 3 == 0 ? bad_config : bad_weights;
    victim[draw(round % 3 == 1 ? 2500 : victim.size())] ^= static_cast<char>(1 << draw(8));
    testing::WriteFile(folder + "/config.json", bad_config);
    testing::WriteFile(folder + "/model.safetensors", bad_weights);
    loaded += Model::Load(folder).ok();
  }
  EXPECT_GT(loaded, kRounds / 10);
  EXPECT_LT(loaded, kRounds * 9 / 10);
}

}  // namespace
}  // namespace palimpsest
