// Checkpoints and tokenizers that cannot be served: the real server refuses each at its start, with exit code 2 and
// words that name the file, what is wrong and what would be right. One row each.

#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoints.h"
#include "tests/support/server_process.h"

namespace palimpsest::testing {
namespace {

using nlohmann::json;

constexpr int kRefused = 2;  // main.cc: a flag or a model is wrong

// Spoils the checkpoint in this folder.
using Spoil = std::function<void(const std::string& folder)>;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// --- ways to spoil config.json

Spoil Config(const std::string& text) {
  return [text](const std::string& folder) { WriteFile(folder + "/config.json", text); };
}

Spoil Set(const std::string& key, const json& value) {
  return [key, value](const std::string& folder) {
    json config = json::parse(ReadFile(folder + "/config.json"));
    config[key] = value;
    WriteFile(folder + "/config.json", config.dump());
  };
}

Spoil Without(const std::string& key) {
  return [key](const std::string& folder) {
    json config = json::parse(ReadFile(folder + "/config.json"));
    config.erase(key);
    WriteFile(folder + "/config.json", config.dump());
  };
}

Spoil ConfigAsText(const std::function<std::string(const std::string&)>& change) {
  return [change](const std::string& folder) {
    WriteFile(folder + "/config.json", change(ReadFile(folder + "/config.json")));
  };
}

// --- ways to spoil the weights

Spoil Weights(const std::function<std::string(std::string)>& change) {
  return [change](const std::string& folder) {
    WriteFile(folder + "/model.safetensors", change(ReadFile(folder + "/model.safetensors")));
  };
}

// The header is changed; its length is put right.
Spoil Header(const std::function<void(json&)>& change) {
  return Weights([change](const std::string& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    json header = json::parse(file.substr(sizeof(length), length));
    const std::string data = file.substr(sizeof(length) + length);
    change(header);
    const std::string text = header.dump();
    length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text + data;
  });
}

Spoil Tensors(const std::function<void(std::vector<TensorToWrite>&)>& change) {
  return [change](const std::string& folder) {
    std::vector<TensorToWrite> tensors = RandomCheckpointTensors({});
    change(tensors);
    WriteShards(folder, tensors, 1);
  };
}

// The weights as two shards, with the index changed.
Spoil Index(const std::function<void(json&)>& change) {
  return [change](const std::string& folder) {
    std::filesystem::remove(folder + "/model.safetensors");
    WriteShards(folder, RandomCheckpointTensors({}), 2);
    json index = json::parse(ReadFile(folder + "/model.safetensors.index.json"));
    change(index);
    WriteFile(folder + "/model.safetensors.index.json", index.dump());
  };
}

constexpr const char* kEmbeddings = "model.embeddings.weight";

void EraseTensor(std::vector<TensorToWrite>& tensors, const std::string& name) {
  PALIMPSEST_CHECK(std::erase_if(tensors, [&](const TensorToWrite& tensor) { return tensor.name == name; }) == 1);
}

TensorToWrite& FindTensor(std::vector<TensorToWrite>& tensors, const std::string& name) {
  for (TensorToWrite& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  PALIMPSEST_CHECK(false);
}

Spoil PutFloat(float value) {
  return Tensors([value](std::vector<TensorToWrite>& tensors) {
    std::memcpy(FindTensor(tensors, kEmbeddings).bytes.data() + 4 * 5, &value, sizeof(value));
  });
}

// --- tokenizers

Spoil File(const std::string& name, const std::string& bytes) {
  return [name, bytes](const std::string& folder) { WriteFile(absl::StrCat(folder, "/", name), bytes); };
}

// A field of a protocol buffer: a string or message of less than 128 bytes.
std::string Field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}
std::string Varint(int number, int value) {
  return std::string{static_cast<char>(number << 3), static_cast<char>(value)};
}

// A piece of a SentencePiece model: type 1 is a normal piece, 2 the unknown one.
std::string Piece(const std::string& text, int type) { return Field(1, Field(1, text) + Varint(3, type)); }

// --- the table

struct Row {
  std::string name;
  Spoil spoil;
  std::vector<std::string> words;
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

std::vector<Row> ConfigRows() {
  return {
      {"NoConfig",
       [](const std::string& folder) { std::filesystem::remove(folder + "/config.json"); },
       {"config.json", "No such file"}},
      {"ConfigIsAFolder",
       [](const std::string& folder) {
         std::filesystem::remove(folder + "/config.json");
         std::filesystem::create_directory(folder + "/config.json");
       },
       {"config.json", "not a regular file"}},
      {"ConfigIsEmpty", Config(""), {"config.json", "not valid JSON"}},
      {"ConfigIsCutInHalf",
       ConfigAsText([](const std::string& text) { return text.substr(0, text.size() / 2); }),
       {"config.json", "not valid JSON"}},
      {"ConfigIsAList", Config("[1, 2]"), {"config.json", "expected an object", "array"}},
      {"ConfigNamesAKeyTwice",
       ConfigAsText([](const std::string& text) {
         return absl::StrCat("{\"hidden_size\": 64, ", text.substr(text.find('{') + 1));
       }),
       {"config.json", "hidden_size", "twice"}},
      {"ConfigIsNestedWithoutEnd", Config(std::string(100'000, '[')), {"config.json", "nested", "deep"}},
      {"ConfigIsHuge", Config(std::string(3 << 20, ' ')), {"config.json", "at most"}},
      {"NoModelType", Without("model_type"), {"model_type", "missing", "delta_net, gated_deltanet"}},
      {"UnknownModelType", Set("model_type", "llama"), {"model_type", "llama", "delta_net, gated_deltanet"}},
      {"ModelTypeOfUnboundedState", Set("model_type", "qwen3_next"), {"qwen3_next", "no fixed size"}},
      {"SizeIsNegative", Set("hidden_size", -32), {"'hidden_size' is -32", "1 to"}},
      {"SizeIsZero", Set("num_hidden_layers", 0), {"'num_hidden_layers' is 0", "1 to"}},
      {"SizeIsAString", Set("hidden_size", "32"), {"'hidden_size'", "an integer"}},
      {"SizeIsAFraction", Set("num_heads", 1.5), {"'num_heads' is 1.5", "an integer"}},
      {"SizeIsAstronomical", Set("vocab_size", int64_t{1} << 40), {"'vocab_size'", "1099511627776", "to 2097152"}},
      {"StateIsHuge",
       [](const std::string& folder) {
         for (const auto& [key, value] : std::vector<std::pair<std::string, int>>{
                  {"num_heads", 64}, {"num_v_heads", 64}, {"head_dim", 1024}, {"num_hidden_layers", 1000}}) {
           Set(key, value)(folder);
         }
       },
       {"one state takes", "at most"}},
      {"ValueHeadsDoNotFit", Set("num_v_heads", 3), {"'num_v_heads' is 3", "multiple of num_heads, which is 2"}},
      {"UnknownKey", Set("secret_sauce", 1), {"unknown key", "secret_sauce"}},
      {"SoftmaxLayers", Set("attn", json{{"layers", {1}}}), {"'attn'", "null", "no state of fixed size"}},
      {"QuantizedWeights",
       Set("quantization_config", json{{"bits", 4}}),
       {"'quantization_config'", "f32, bf16 and f16"}},
      {"UnsupportedActivation", Set("hidden_act", "gelu"), {"'hidden_act'", "gelu", "'swish' or 'silu'"}},
      {"FlagIsANumber", Set("use_gate", 1), {"'use_gate' is 1", "true or false"}},
      {"ConvolutionOfNoWidth", Set("conv_size", 0), {"'conv_size' is 0", "1 to"}},
      {"EpsilonIsZero", Set("norm_eps", 0.0), {"'norm_eps' is 0"}},
      {"EndOfTextIsNoToken", Set("eos_token_id", 256), {"'eos_token_id' is 256", "0 to 255"}},
      {"GenerationConfigIsBroken", File("generation_config.json", "{"), {"generation_config.json", "not valid JSON"}},
      {"GenerationConfigEndsOnNoToken",
       File("generation_config.json", "{\"eos_token_id\": [1, -1]}"),
       {"generation_config.json", "'eos_token_id' is -1"}},
  };
}

std::vector<Row> WeightRows() {
  return {
      {"NoWeights",
       [](const std::string& folder) { std::filesystem::remove(folder + "/model.safetensors"); },
       {"neither model.safetensors nor model.safetensors.index.json"}},
      {"WeightsAreAPipe",
       [](const std::string& folder) {
         std::filesystem::remove(folder + "/model.safetensors");
         PALIMPSEST_CHECK(mkfifo((folder + "/model.safetensors").c_str(), 0600) == 0);
       },
       {"model.safetensors", "not a regular file"}},
      {"WeightsAreEmpty", Weights([](const std::string&) { return ""; }), {"model.safetensors", "has 0 bytes"}},
      {"WeightsAreText",
       Weights([](const std::string&) { return "version https://git-lfs.example/spec/v1\n"; }),
       {"model.safetensors", "is it a safetensors file?"}},
      {"WeightsAreTruncated",
       Weights([](const std::string& file) { return file.substr(0, file.size() - 1); }),
       {"model.safetensors", "truncated"}},
      {"HeaderIsTruncated",
       Weights([](const std::string& file) { return file.substr(0, 100); }),
       {"model.safetensors", "truncated", "the file has 100"}},
      {"WeightsAreTooLong",
       Weights([](const std::string& file) { return file + "x"; }),
       {"model.safetensors", "its tensors end at"}},
      {"HeaderIsNoJson",
       Weights([](std::string file) {
         file[8] = 'x';
         return file;
       }),
       {"model.safetensors", "header", "not valid JSON"}},
      {"ElementTypeIsNotSupported",
       Header([](json& header) { header[kEmbeddings]["dtype"] = "F64"; }),
       {kEmbeddings, "F64", "F32, BF16 and F16"}},
      {"ShapeDisagreesWithOffsets",
       Header([](json& header) {
         header[kEmbeddings]["shape"] = {256, 33};
       }),
       {kEmbeddings, "[256, 33]", "data_offsets"}},
      {"DimensionIsNegative",
       Header([](json& header) {
         header[kEmbeddings]["shape"] = {-256, -32};
       }),
       {kEmbeddings, "no natural number"}},
      {"DimensionsOverflow",
       Header([](json& header) {
         header[kEmbeddings]["shape"] = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
       }),
       {kEmbeddings, "larger than any file"}},
      {"TensorsOverlap",
       Header([](json& header) {
         const uint64_t begin = header["model.norm.weight"]["data_offsets"][0].get<uint64_t>();
         header["model.norm.weight"]["data_offsets"] = {begin - 4, begin + 124};
       }),
       {"model.norm.weight", "inside the tensor before it"}},
      {"TensorHasAnotherShape", Set("hidden_size", 64), {"has shape", "config.json asks for"}},
      {"TensorIsMissing",
       Tensors([](auto& tensors) { EraseTensor(tensors, "model.norm.weight"); }),
       {"'model.norm.weight' [32] is missing"}},
      {"TensorIsMisspelt",
       Tensors([](auto& tensors) { FindTensor(tensors, "model.norm.weight").name = "model.norm.wieght"; }),
       {"'model.norm.weight' [32] is missing", "there is", "model.norm.wieght"}},
      {"TensorIsUnknown",
       Tensors([](auto& tensors) {
         tensors.push_back(MakeTensor("model.extra.weight", DType::kF32, {1}, std::vector<float>{1.0f}));
       }),
       {"unknown tensor", "model.extra.weight"}},
      {"WeightIsNotANumber", PutFloat(std::nanf("")), {kEmbeddings, "NaN or infinity at index 5"}},
      {"WeightIsInfinite", PutFloat(-INFINITY), {kEmbeddings, "NaN or infinity at index 5"}},
      {"IndexLeadsOutOfTheFolder",
       Index([](json& index) { index["weight_map"][kEmbeddings] = "../elsewhere.safetensors"; }),
       {"../elsewhere.safetensors", "in the same folder, without a path"}},
      {"IndexHasNoMap", Index([](json& index) { index.erase("weight_map"); }), {"'weight_map' is missing"}},
      {"IndexNamesAFileThatIsNotThere",
       [](const std::string& folder) {
         Index([](json&) {})(folder);
         std::filesystem::remove(folder + "/model-00002-of-00002.safetensors");
       },
       {"model-00002-of-00002.safetensors", "No such file"}},
      {"IndexPutsATensorInTheWrongFile",
       Index([](json& index) {
         json& file = index["weight_map"][kEmbeddings];
         file = file == "model-00001-of-00002.safetensors" ? "model-00002-of-00002.safetensors"
                                                           : "model-00001-of-00002.safetensors";
       }),
       {kEmbeddings, "weight_map says"}},
  };
}

std::vector<Row> TokenizerRows() {
  return {
      {"TokenizerIsEmpty", File("tokenizer.model", ""), {"tokenizer.model", "is not a SentencePiece model"}},
      {"TokenizerIsText",
       File("tokenizer.model", "these are not the pieces you are looking for"),
       {"tokenizer.model", "is not a SentencePiece model"}},
      {"TokenizerIsCutShort",
       File("tokenizer.model", (Piece("<unk>", 2) + Piece("abc", 1)).substr(0, 15)),
       {"tokenizer.model", "cut short"}},
      {"TokenizerIsOfAnotherModel",
       File("tokenizer.model", Piece("<unk>", 2) + Piece("a", 1) + Piece("b", 1)),
       {"tokenizer.model", "has 3 pieces, but config.json says vocab_size 256"}},
      {"TokenizerHasNoUnknownPiece", File("tokenizer.model", Piece("a", 1)), {"tokenizer.model", "no unknown piece"}},
      {"TokenizerRepeatsAPiece",
       File("tokenizer.model", Piece("<unk>", 2) + Piece("a", 1) + Piece("a", 1)),
       {"tokenizer.model", "piece 2"}},
      {"TokenizerHasAPieceOfNoKnownType",
       File("tokenizer.model", Piece("<unk>", 2) + Piece("a", 9)),
       {"tokenizer.model", "unknown type 9"}},
      {"TokenizerIsAFolder",
       [](const std::string& folder) { std::filesystem::create_directory(folder + "/tokenizer.model"); },
       {"tokenizer.model", "not a regular file"}},
      {"TokenizerIsOfAnotherFormat", File("tokenizer.json", "{}"), {"tokenizer.json", "not supported"}},
      {"NoTokenizerForASmallVocabulary",
       [](const std::string& folder) {
         RandomCheckpointSpec spec;
         spec.vocabulary = 100;
         WriteRandomCheckpoint(folder, spec);
       },
       {"no tokenizer.model", "a vocabulary of 100", "256"}},
      {"NoTokenizerForALargeVocabulary",
       [](const std::string& folder) {
         RandomCheckpointSpec spec;
         spec.vocabulary = 32000;
         WriteRandomCheckpoint(folder, spec);
       },
       {"no tokenizer.model", "a vocabulary of 32000", "256 to 1024"}},
  };
}

class BadCheckpoint : public ::testing::TestWithParam<Row> {};

TEST_P(BadCheckpoint, IsRefusedInWords) {
  const std::string folder = MakeCheckpoint();
  GetParam().spoil(folder);
  const Exit exit = RunServer({absl::StrCat("--model=test=", folder), "--port=0", "--metrics_address="});
  EXPECT_EQ(exit.code, kRefused) << exit.log;
  for (const std::string& word : GetParam().words) EXPECT_THAT(exit.reason, ::testing::HasSubstr(word));
}

std::string NameOf(const ::testing::TestParamInfo<Row>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Config, BadCheckpoint, ::testing::ValuesIn(ConfigRows()), NameOf);
INSTANTIATE_TEST_SUITE_P(Weights, BadCheckpoint, ::testing::ValuesIn(WeightRows()), NameOf);
INSTANTIATE_TEST_SUITE_P(Tokenizer, BadCheckpoint, ::testing::ValuesIn(TokenizerRows()), NameOf);

TEST(BadCheckpoint, AFolderThatIsNotThereIsRefused) {
  const Exit exit = RunServer({"--model=test=/nowhere/at/all", "--port=0", "--metrics_address="});
  EXPECT_EQ(exit.code, kRefused) << exit.log;
  EXPECT_THAT(exit.reason, ::testing::HasSubstr("/nowhere/at/all"));
}

}  // namespace
}  // namespace palimpsest::testing
