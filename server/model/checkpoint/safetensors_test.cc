#include "server/model/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/testing/temporary_folder.h"
#include "server/model/testing/safetensors_writer.h"

namespace palimpsest {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using testing::MakeTensor;
using testing::TensorToWrite;
using testing::WriteFile;

std::vector<TensorToWrite> TwoTensors() {
  return {MakeTensor("a", DType::kF32, {2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6}),
          MakeTensor("b", DType::kBF16, {4}, std::vector<float>{-1, 0.5, 0, 7})};
}

// A file with any header and any data.
std::string FileWith(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, '\1');
}

TEST(Safetensors, ReadsWhatIsThere) {
  std::vector<TensorToWrite> written = TwoTensors();
  written.push_back(MakeTensor("half", DType::kF16, {2, 1}, std::vector<float>{-2.5, 65504}));
  written.push_back(MakeTensor("scalar", DType::kF32, {}, std::vector<float>{9}));
  written.push_back(MakeTensor("nothing", DType::kF32, {3, 0}, std::vector<float>{}));
  written.push_back({.name = "ids", .dtype = DType::kI32, .shape = {1}, .bytes = std::string("\x07\0\0\0", 4)});
  const std::string file = testing::SerializeSafetensors(written);
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(file, "m");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_THAT(*tensors, ElementsAre(Key("a"), Key("b"), Key("half"), Key("ids"), Key("nothing"), Key("scalar")));
  for (const TensorToWrite& tensor : written) {
    const TensorView& view = tensors->at(tensor.name);
    EXPECT_EQ(view.dtype, tensor.dtype);
    EXPECT_EQ(view.shape, tensor.shape);
    ASSERT_EQ(view.bytes(), static_cast<int64_t>(tensor.bytes.size()));
    EXPECT_EQ(std::memcmp(view.data, tensor.bytes.data(), tensor.bytes.size()), 0);
  }
  uint16_t half;
  std::memcpy(&half, tensors->at("half").data, 2);
  EXPECT_EQ(FloatFromF16(half), -2.5f);
}

// A header of any length is allowed, so the data may begin at any byte.
TEST(Safetensors, DataNeedNotBeAligned) {
  const std::string file = FileWith(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )", 4);
  ASSERT_NE(file.size() % 4, 0);
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(file, "m");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ(tensors->at("x").data, reinterpret_cast<const std::byte*>(file.data()) + file.size() - 4);
}

struct BadFile {
  const char* name;
  std::string file;
  absl::StatusCode code;
  const char* words;

  friend void PrintTo(const BadFile& row, std::ostream* out) { *out << row.name; }
};

std::vector<BadFile> BadFiles() {
  constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string good = testing::SerializeSafetensors(TwoTensors());  // 24 + 8 bytes of data
  const auto header = [](const std::string& entry, size_t data_bytes = 4) {
    return FileWith("{\"x\":" + entry + "}", data_bytes);
  };
  const auto two = [](const std::string& first, const std::string& second, size_t data_bytes) {
    return FileWith(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":)" + first +
                        R"(},"y":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}",
                    data_bytes);
  };
  std::string long_header = good;
  const uint64_t claimed = good.size();
  std::memcpy(long_header.data(), &claimed, 8);
  std::string many = "{";
  for (int i = 0; i < 70000; ++i) {
    many += absl::StrCat(i == 0 ? "" : ",", "\"", i, R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})");
  }
  return {
      {"empty", "", kDataLoss, "m: has 0 bytes, a safetensors file has at least 8"},
      {"shorter_than_a_length", "1234567", kDataLoss, "m: has 7 bytes"},
      {"length_alone", std::string("\x10\0\0\0\0\0\0\0", 8), kDataLoss,
       "truncated: the header ends at byte 24, the file has 8"},
      {"header_beyond_the_end", long_header, kDataLoss, "truncated: the header ends at byte"},
      {"length_absurd", std::string(8, '\xff') + good.substr(8), kDataLoss,
       "say that the header has 18446744073709551615 bytes, at most 16777216 are read; is it a safetensors file?"},
      {"another_format", "PK\x03\x04 this is a zip file of some kind", kDataLoss, "is it a safetensors file?"},
      {"header_empty", FileWith("", 0), kDataLoss, "m: header: not valid JSON"},
      {"header_not_json", FileWith("{\"x\":}", 0), kDataLoss, "m: header: not valid JSON"},
      {"header_a_list", FileWith("[]", 0), kDataLoss, "m: header: expected an object, got array"},
      {"header_nested_deeply", FileWith("{\"x\":" + std::string(100000, '['), 0), kDataLoss,
       "m: header: nested deeper than 4, which is not read"},
      {"name_twice",
       FileWith(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                4),
       kDataLoss, "names the key 'x' twice"},
      {"metadata_not_an_object", FileWith(R"({"__metadata__": 3})", 0), kDataLoss, "__metadata__ is not an object"},
      {"entry_not_an_object", header("3"), kDataLoss, "m: tensor 'x': its header entry is not an object"},
      {"entry_with_more_keys", header(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":2})"), kDataLoss,
       "its header entry has an unknown key 'scale'"},
      {"no_dtype", header(R"({"shape":[1],"data_offsets":[0,4]})"), kDataLoss, "its dtype is missing"},
      {"dtype_not_supported", header(R"({"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]})"), kInvalid,
       "m: tensor 'x': element type 'F8_E4M3' is not supported; F32, BF16 and F16 are"},
      {"dtype_f64", header(R"({"dtype":"F64","shape":[1],"data_offsets":[0,8]})", 8), kInvalid, "element type 'F64'"},
      {"no_shape", header(R"({"dtype":"F32","data_offsets":[0,4]})"), kDataLoss, "its shape is missing"},
      {"shape_negative", header(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), kDataLoss,
       "its shape has a dimension that is no natural number"},
      {"shape_fractional", header(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), kDataLoss,
       "its shape has a dimension that is no natural number"},
      {"shape_of_too_many_dimensions", header(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})"),
       kInvalid, "has 9 dimensions, at most 8 are read"},
      // 2^32 * 2^32 elements wrap around to none in 64 bits.
      {"shape_overflows", header(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
       kDataLoss, "its shape is larger than any file"},
      {"dimension_overflows", header(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]})"),
       kDataLoss, "its shape has a dimension of 18446744073709551615"},
      {"no_offsets", header(R"({"dtype":"F32","shape":[1]})"), kDataLoss, "its data_offsets are missing"},
      {"one_offset", header(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})"), kDataLoss, "its data_offsets are"},
      {"offsets_negative", header(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})"), kDataLoss,
       "its data_offsets are missing or not two natural numbers"},
      {"offsets_backwards", header(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), kDataLoss,
       "its shape [1] of F32 takes 4 bytes, its data_offsets are [4, 0]"},
      {"size_differs_from_shape", header(R"({"dtype":"F32","shape":[3],"data_offsets":[0,4]})"), kDataLoss,
       "its shape [3] of F32 takes 12 bytes, its data_offsets are [0, 4]"},
      {"data_truncated", good.substr(0, good.size() - 1), kDataLoss,
       "truncated: tensor 'b' ends at byte 32 of the data, the file has 31"},
      {"data_missing", good.substr(0, good.size() - 32), kDataLoss,
       "truncated: tensor 'a' ends at byte 24 of the data, the file has 0"},
      {"data_longer", good + "x", kDataLoss, "has 33 bytes of data, its tensors end at 32"},
      {"no_tensors_but_data", FileWith("{}", 3), kDataLoss, "has 3 bytes of data, its tensors end at 0"},
      {"tensors_overlap", two("[0,4]", "[2,6]", 6), kInvalid,
       "tensor 'y' begins at byte 2 of the data, inside the tensor before it, which ends at 4"},
      {"tensors_share_their_bytes", two("[0,4]", "[0,4]", 4), kInvalid, "inside the tensor before it"},
      {"gap_between_tensors", two("[0,4]", "[8,12]", 12), kInvalid,
       "bytes 4 to 8 of the data, before tensor 'y', belong to no tensor"},
      {"gap_before_tensors", two("[4,8]", "[8,12]", 12), kInvalid, "bytes 0 to 4 of the data"},
      {"offset_far_beyond",
       header(R"({"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,)"
              R"(18446744073709551615]})"),
       kDataLoss, "ends at byte 18446744073709551615 of the data, the file has 4"},
      {"name_empty", FileWith(R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4), kInvalid,
       "a tensor's name has 0 bytes, expected 1 to 256"},
      {"name_long",
       FileWith("{\"" + std::string(257, 'n') + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0), kInvalid,
       "a tensor's name has 257 bytes"},
      {"too_many_tensors", FileWith(many + "}", 0), kInvalid, "has 70000 tensors, at most 65536 are read"},
  };
}

class BadFileTest : public ::testing::TestWithParam<BadFile> {};
INSTANTIATE_TEST_SUITE_P(Safetensors, BadFileTest, ::testing::ValuesIn(BadFiles()),
                         [](const auto& info) { return info.param.name; });

TEST_P(BadFileTest, IsRefusedWithTheReason) {
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(GetParam().file, "m");
  EXPECT_EQ(tensors.status().code(), GetParam().code) << tensors.status();
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr(GetParam().words));
  EXPECT_LT(tensors.status().message().size(), 500);
}

// Damaged files never crash, and what is accepted lies inside the file. The same damage on every run.
TEST(Safetensors, AnyBytesInStatusOut) {
  const std::string good = testing::SerializeSafetensors(TwoTensors());
  uint64_t random = 1;
  const auto draw = [&](uint64_t below) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % below;
  };
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = good;
    for (uint64_t edits = 1 + draw(3); edits > 0 && !file.empty(); --edits) {
      const size_t at = draw(file.size());
      switch (draw(6)) {
        case 0:
          file[at] = static_cast<char>(file[at] ^ (1 << draw(8)));
          break;
        case 1:
          file[at] = static_cast<char>(draw(256));
          break;
        case 2:
          file.resize(at);
          break;
        case 3:
          file.insert(at, 1, static_cast<char>(draw(256)));
          break;
        case 4:
          file.erase(at, 1 + draw(4));
          break;
        case 5:  // digits are where the damage matters
          for (size_t i = at; i < file.size(); ++i) {
            if (file[i] >= '0' && file[i] <= '9') {
              file[i] = static_cast<char>('0' + draw(10));
              break;
            }
          }
          break;
      }
    }
    const absl::StatusOr<TensorMap> tensors = ParseSafetensors(file, "m");
    if (!tensors.ok()) {
      ++refused;
      ASSERT_TRUE(absl::IsDataLoss(tensors.status()) || absl::IsInvalidArgument(tensors.status())) << tensors.status();
      continue;
    }
    ++accepted;
    const auto* begin = reinterpret_cast<const std::byte*>(file.data());
    for (const auto& [name, tensor] : *tensors) {
      ASSERT_GE(tensor.data, begin);
      ASSERT_LE(tensor.data + tensor.bytes(), begin + file.size());
      ASSERT_GE(std::accumulate(tensor.data, tensor.data + tensor.bytes(), 0u,
                                [](unsigned sum, std::byte byte) { return sum + static_cast<unsigned>(byte); }),
                0u);  // reads every byte, for the address sanitizer
    }
  }
  EXPECT_GT(accepted, 500);  // changes of the numbers alone, or of a name
  EXPECT_GT(refused, 5000);
}

class WeightFilesTest : public ::testing::Test {
 protected:
  void WriteIndex(const nlohmann::json& weight_map) {
    WriteFile(folder_ + "/model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
  }
  void ExpectRefused(absl::StatusCode code, const std::string& words) {
    const absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder_);
    EXPECT_EQ(files.status().code(), code) << files.status();
    EXPECT_THAT(std::string(files.status().message()), HasSubstr(words));
  }
  const testing::TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
};

TEST_F(WeightFilesTest, ReadsOneFile) {
  testing::WriteShards(folder_, TwoTensors(), 1);
  const absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(files->tensors(), ElementsAre(Key("a"), Key("b")));
}

TEST_F(WeightFilesTest, ReadsShardsAndKeepsThemWhenMoved) {
  testing::WriteShards(folder_, TwoTensors(), 2);
  absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder_);
  ASSERT_TRUE(files.ok()) << files.status();
  const WeightFiles moved = *std::move(files);
  ASSERT_THAT(moved.tensors(), ElementsAre(Key("a"), Key("b")));
  float first;
  std::memcpy(&first, moved.tensors().at("a").data + 4, 4);
  EXPECT_EQ(first, 2.0f);
}

TEST_F(WeightFilesTest, NothingThereIsNotFound) {
  ExpectRefused(absl::StatusCode::kNotFound, "has neither model.safetensors nor model.safetensors.index.json");
}

TEST_F(WeightFilesTest, AFolderOrAPipeIsNoFile) {
  std::filesystem::create_directory(folder_ + "/model.safetensors");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "model.safetensors: not a regular file");
  std::filesystem::remove(folder_ + "/model.safetensors");
  ASSERT_EQ(mkfifo((folder_ + "/model.safetensors").c_str(), 0600), 0);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "model.safetensors: not a regular file");
}

TEST_F(WeightFilesTest, ADamagedFileIsNamed) {
  WriteFile(folder_ + "/model.safetensors", "");
  ExpectRefused(absl::StatusCode::kDataLoss, folder_ + "/model.safetensors: has 0 bytes");
}

TEST_F(WeightFilesTest, AMissingShardIsNotFound) {
  testing::WriteShards(folder_, TwoTensors(), 2);
  std::filesystem::remove(folder_ + "/model-00002-of-00002.safetensors");
  ExpectRefused(absl::StatusCode::kNotFound, "model-00002-of-00002.safetensors: No such file");
}

TEST_F(WeightFilesTest, ATensorInAShardThatTheIndexDoesNotListIsRefused) {
  testing::WriteShards(folder_, TwoTensors(), 2);
  WriteFile(folder_ + "/model-00001-of-00002.safetensors", testing::SerializeSafetensors(TwoTensors()));
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "tensor 'b' is in model-00001-of-00002.safetensors, but weight_map says model-00002-of-00002");
  WriteIndex({{"a", "model-00001-of-00002.safetensors"}});
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "tensor 'b' is in model-00001-of-00002.safetensors, but weight_map does not list it");
}

TEST_F(WeightFilesTest, ATensorThatTheIndexListsMustBeThere) {
  testing::WriteShards(folder_, TwoTensors(), 2);
  WriteIndex({{"a", "model-00001-of-00002.safetensors"},
              {"b", "model-00002-of-00002.safetensors"},
              {"c", "model-00002-of-00002.safetensors"}});
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                "weight_map says that tensor 'c' is in model-00002-of-00002.safetensors, but it is not");
}

TEST_F(WeightFilesTest, TheIndexCannotNameFilesElsewhere) {
  for (const std::string file : {"../model.safetensors", "/etc/passwd", "sub/x.safetensors", "", "..", ".safetensors",
                                 "sub\\x.safetensors", "model.bin"}) {
    WriteIndex({{"a", file}});
    ExpectRefused(absl::StatusCode::kInvalidArgument, "expected the name of a .safetensors file in the same folder");
  }
  WriteIndex({{"a", std::string("x\0.safetensors", 14)}});
  ExpectRefused(absl::StatusCode::kInvalidArgument, "expected the name of a .safetensors file in the same folder");
}

TEST_F(WeightFilesTest, TheIndexMustBeAnIndex) {
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{
           {"", "index.json: not valid JSON"},
           {"{}", "'weight_map' is missing, empty or not an object"},
           {R"({"weight_map": {}})", "'weight_map' is missing, empty or not an object"},
           {R"({"weight_map": []})", "'weight_map' is missing, empty or not an object"},
           {R"({"weight_map": {"a": 3}})", "'a' is not mapped to a file name"},
           {R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})", "names the key 'a' twice"}}) {
    WriteFile(folder_ + "/model.safetensors.index.json", text);
    ExpectRefused(absl::StatusCode::kInvalidArgument, words);
  }
}

}  // namespace
}  // namespace palimpsest
